"""What a step of the older interface computes: readings of a batch, their credit, and the passes that learn from it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from torch import Tensor, nn

from tuneline.classic.batch import StepBatch
from tuneline.classic.config import ClassicPPOConfig
from tuneline.classic.reading import CausalReader, EncoderDecoderReader, Reader, Reading, Rows
from tuneline.classic.statistics import Before, Credit, Updates
from tuneline.controllers import AdaptiveKLController, FixedKLController
from tuneline.gae import gae, token_rewards, whiten
from tuneline.logging import get_logger
from tuneline.losses.policy import policy_loss
from tuneline.losses.value import value_loss
from tuneline.models.adapters import adapters_off
from tuneline.rollout.protocol import rollout_seed
from tuneline.running_moments import RunningMoments

logger = get_logger(__name__)


class Learning:
    """Policy, value head and reference, with all that moves while they learn.

    Args:
        model: with a value head.
        reference: a language model that is ready to read; None for the policy without its adapter.
    """

    def __init__(
        self,
        config: ClassicPPOConfig,
        accelerator: Accelerator,
        model: Any,
        reference: nn.Module | None,
        optimizer: torch.optim.Optimizer,
    ):
        self.config, self.accelerator, self.model = config, accelerator, model
        self.reader: Reader = EncoderDecoderReader(model) if model.is_encoder_decoder else CausalReader(model)
        self.learner, self.optimizer = accelerator.prepare(self.reader.learner, optimizer)
        self.reference = None if reference is None else reference.to(accelerator.device)
        self.kl_ctl: AdaptiveKLController | FixedKLController = FixedKLController(config.init_kl_coef)
        if config.adap_kl_ctrl:
            self.kl_ctl = AdaptiveKLController(config.init_kl_coef, config.target, config.horizon)
        self.running = RunningMoments()
        self.num_steps = 0

    @torch.no_grad()
    def read(self, batch: StepBatch) -> Before:
        """Policy, value head and reference, before the first update."""
        self.learner.eval()
        num_targets = sum(batch.target_counts)
        logprobs, values, ref_logprobs, kl = torch.zeros(4, num_targets, device=self.accelerator.device)
        # in the mini-batches of the first pass: a sequence reads the same to the bit, and the first ratio is 1
        for sequences in (part for update in self._updates_of(batch, 0) for part in update):
            rows = self._rows(batch, sequences)
            with self.accelerator.autocast():
                reading = self.reader.read(self.learner, rows)
                logprobs[rows.numbers], values[rows.numbers] = reading.logprobs, reading.values
                with self.as_reference() as reference:
                    ref_logprobs[rows.numbers] = self.reader.logprobs(reference, rows)
                if self.config.kl_penalty == "full":
                    kl[rows.numbers] = self.reader.kl(self.model.pretrained_model, self.as_reference, rows)
        differences = logprobs - ref_logprobs
        match self.config.kl_penalty:
            case "kl":
                kl = differences
            case "abs":
                kl = differences.abs()
            case "mse":
                kl = differences.square() / 2
        return Before(logprobs, values, ref_logprobs, kl)

    def rewards(self, batch: StepBatch, before: Before) -> tuple[Tensor, Tensor]:
        """(targets,) and (sequences,): rewards of the tokens, and the scores in them."""
        ids, num_sequences = batch.sequence_ids.to(self.accelerator.device), len(batch)
        scores = self._scaled(batch.scores).to(self.accelerator.device)
        rewards = token_rewards(scores, before.kl, ids, num_sequences, kl_coef=self.kl_ctl.value)
        if self.config.whiten_rewards:
            rewards = whiten(rewards, torch.ones_like(rewards), reduce=self.sum, shift_mean=False)
        return rewards, scores

    def credit(self, batch: StepBatch, before: Before, rewards: Tensor, scores: Tensor) -> Credit:
        """Advantages and returns, from what `rewards` gave."""
        ids, num_sequences = batch.sequence_ids.to(self.accelerator.device), len(batch)
        estimate = gae(rewards, before.values, ids, num_sequences, gamma=self.config.gamma, lam=self.config.lam)
        advantages = whiten(estimate.advantages, torch.ones_like(rewards), reduce=self.sum)
        return Credit(before, rewards, advantages, estimate.returns, scores, ids, num_sequences)

    def _scaled(self, scores: Tensor) -> Tensor:
        if self.config.use_score_scaling:
            self.running.update(scores, self.sum)
            if self.config.use_score_norm:
                scores = scores - self.running.mean
            scores = scores / self.running.std
        if self.config.score_clip is not None:
            scores = scores.clamp(-self.config.score_clip, self.config.score_clip)
        return scores

    def update(self, batch: StepBatch, credit: Credit) -> Updates:
        """The passes over a batch; sequences are shuffled anew in each."""
        updates, config = Updates(), self.config
        self.learner.train()
        for epoch in range(config.ppo_epochs):
            moved = torch.zeros(())
            for parts in self._updates_of(batch, epoch):
                moved = self._one_update(batch, credit, parts, updates)
            if config.early_stopping and moved > 1.5 * config.target_kl:
                logger.info("pass %d of %d was the last: KL %.3f", epoch + 1, config.ppo_epochs, moved)
                break
        self.learner.eval()
        num_skipped = int(updates.num_skipped)
        if num_skipped:
            logger.warning(
                "%d mini-batches taught nothing: their mean ratio was above ratio_threshold=%g; the learning rate may "
                "be too high",
                num_skipped,
                config.ratio_threshold,
            )
        return updates

    def _updates_of(self, batch: StepBatch, epoch: int) -> Iterator[list[list[int]]]:
        """The sequences of each mini-batch of each update of a pass."""
        order = np.random.default_rng(self.seed("order", self.num_steps, epoch)).permutation(len(batch)).tolist()
        size, num_parts = self.config.mini_batch_size, self.config.gradient_accumulation_steps
        parts = [sorted(order[start : start + size]) for start in range(0, len(order), size)]
        for start in range(0, len(parts), num_parts):
            yield parts[start : start + num_parts]

    def _one_update(self, batch: StepBatch, credit: Credit, parts: list[list[int]], updates: Updates) -> Tensor:
        """A step of the optimizer; returns how far the policy had moved before it, (), in nats a target."""
        counts = batch.target_counts
        num_targets = self.sum(torch.tensor([float(sum(counts[i] for part in parts for i in part))]))[0].clamp(min=1)
        moved = torch.zeros(1, device=self.accelerator.device)
        for number, part in enumerate(parts):
            is_last = number == len(parts) - 1
            with nullcontext() if is_last else self.accelerator.no_sync(self.learner):
                rows = self._rows(batch, part)
                with self.accelerator.autocast():
                    reading = self.reader.read(self.learner, rows)
                losses = self._losses(reading, rows.numbers, credit, updates)
                # DDP takes the mean over processes, and what is wanted is the sum
                self.accelerator.backward(losses.sum() * self.accelerator.num_processes / num_targets.to(losses.device))
                moved += (credit.before.logprobs[rows.numbers] - reading.logprobs.detach()).sum()
        if self.config.max_grad_norm is not None:
            self.accelerator.clip_grad_norm_(self.learner.parameters(), self.config.max_grad_norm)
        self.optimizer.step()
        self.optimizer.zero_grad()
        return self.sum(moved)[0] / num_targets.to(moved.device)

    def _losses(self, reading: Reading, numbers: Tensor, credit: Credit, updates: Updates) -> Tensor:
        """(targets,), with their gradient."""
        config = self.config
        old_logprobs, old_values = credit.before.logprobs[numbers], credit.before.values[numbers]
        advantages, returns = credit.advantages[numbers], credit.returns[numbers]
        policy = policy_loss(
            reading.logprobs, old_logprobs, advantages, credit.sequence_ids[numbers], credit.num_sequences,
            epsilon=config.cliprange,
        )  # fmt: skip
        value = value_loss(reading.values, old_values, returns, cliprange_value=config.cliprange_value)
        differences = (reading.logprobs - old_logprobs).detach()
        updates.add(
            policy_loss=policy.losses,
            value_loss=value.losses,
            entropy=reading.entropies,
            approxkl=differences.square() / 2,
            policykl=-differences,
            policy_clipped=policy.is_clipped_low | policy.is_clipped_high,
            value=reading.values,
            value_error=(reading.values - returns).square(),
            value_clipped=value.is_clipped,
        )
        updates.ratios.append(policy.ratios.detach())
        is_wild = policy.ratios.detach().mean() > config.ratio_threshold
        updates.num_skipped = updates.num_skipped + is_wild
        return (policy.losses + config.vf_coef * value.losses) * ~is_wild

    def _rows(self, batch: StepBatch, sequences: Sequence[int]) -> Rows:
        return self.reader.rows(batch, sequences).to(self.accelerator.device)

    @contextmanager
    def as_reference(self) -> Iterator[Any]:
        """The reference policy: a model of its own, or the policy without its adapter."""
        if self.reference is not None:
            yield self.reference
            return
        with adapters_off(self.model.pretrained_model):
            yield self.model.pretrained_model

    def sum(self, values: Tensor) -> Tensor:
        """A small tensor summed over the processes."""
        if self.accelerator.num_processes == 1:
            return values
        return self.accelerator.reduce(values.to(self.accelerator.device), "sum").to(values.device)

    def seed(self, *key: Any) -> int:
        """Of what this process draws."""
        return rollout_seed(self.config.seed, *key, self.accelerator.process_index)
