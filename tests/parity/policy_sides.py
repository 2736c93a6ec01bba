"""Rollouts with their rewards and log-probabilities, and what TRL's trainers and our functions make of them.

TRL's trainers are real; what they would ask of the model and the sampler is given to them.
"""

import warnings
from dataclasses import dataclass
from typing import Any

import torch
from datasets import Dataset
from torch import Tensor
from torch.testing import assert_close

from tests.models import tiny_causal_lm
from tests.parity.sides import Outcome, assert_same, settings
from tests.trainers.rows import character_tokenizer
from tuneline.advantages import multi_reward_advantages
from tuneline.losses.entropy import entropy_bonus, entropy_threshold, top_entropy_mask
from tuneline.losses.mismatch import mismatch_weights, off_policy_mask
from tuneline.losses.policy import CISPO_CAP, kl_penalty, num_items, policy_loss, token_weights

NUM_GENERATIONS, NUM_SEQUENCES, MAX_LENGTH = 4, 8, 12
EOS, LETTER = 1, 5


class Rollouts:
    """Eight completions of two prompts; the third is cut off, and of the fifth an environment wrote the middle."""

    def __init__(self):
        generator = torch.Generator().manual_seed(5)
        self.lengths = [3, 7, 12, 1, 9, 5, 4, 6]
        shape = (NUM_SEQUENCES, max(self.lengths))
        self.completion_ids = [[LETTER] * (n - 1) + [EOS] for n in self.lengths]
        self.completion_ids[2][-1] = LETTER
        self.is_target = torch.arange(shape[1]) < torch.tensor(self.lengths)[:, None]
        self.is_written = torch.ones(shape, dtype=torch.bool)  # by the policy
        self.is_written[4, 3:6] = False
        self.old = -3 * torch.rand(shape, generator=generator)
        self.new = self.old + 0.3 * torch.randn(shape, generator=generator)
        self.ref = self.old + 0.3 * torch.randn(shape, generator=generator)
        self.sampler = self.old + 0.4 * torch.randn(shape, generator=generator)
        self.sampler[1, 2] = self.sampler[6, 0] = torch.nan  # the sampler gave none
        self.entropies = 2 * torch.rand(shape, generator=generator)
        self.rewards = torch.randn(NUM_SEQUENCES, 2, generator=generator)
        self.rewards[0, 1] = self.rewards[5, 0] = torch.nan
        self.rewards[6] = torch.nan  # no function could judge it

    def targets(self, *, turns=False, mask_truncated=False) -> Tensor:
        """(sequences, length), bool."""
        mask = self.is_target & self.is_written if turns else self.is_target.clone()
        if mask_truncated:
            mask[2] = False
        return mask


def trl_trainer(folder, method, rollouts, **options) -> Any:
    """A trainer that scores the given rollouts in place of drawing its own."""

    def reward(column):
        def function(prompts, completions, **_):
            return [None if value != value else value for value in rollouts.rewards[:, column].tolist()]

        function.__name__ = f"reward_{column}"
        return function

    import trl

    config = getattr(trl, f"{method}Config")(
        output_dir=str(folder / method),
        per_device_train_batch_size=NUM_SEQUENCES,
        num_generations=NUM_GENERATIONS,
        max_completion_length=MAX_LENGTH,
        reward_weights=[1.0, 0.5],
        use_cpu=True,
        bf16=False,
        gradient_checkpointing=False,
        report_to="none",
        **options,
    )
    trainer = getattr(trl, f"{method}Trainer")(
        model=tiny_causal_lm(),
        reward_funcs=[reward(0), reward(1)],
        args=config,
        train_dataset=Dataset.from_list([{"prompt": "what?"}, {"prompt": "why?"}]),
        processing_class=character_tokenizer(),
    )
    trainer.current_gradient_accumulation_steps = 1
    trainer.model.train()
    return trainer


class Leaves:
    """What a trainer asks the model for: the old policy's log-probabilities without a gradient, or the new one's."""

    def __init__(self, trainer, rollouts):
        self.new = rollouts.new.clone().requires_grad_()
        self.entropies = rollouts.entropies.clone().requires_grad_()
        self.trainer, self.rollouts = trainer, rollouts

    def __call__(self, model, *args, **kwargs):
        if model is self.trainer.ref_model:
            return self.rollouts.ref, None, None
        if not torch.is_grad_enabled():
            return self.rollouts.old, None, None
        return self.new, self.entropies, None


INPUTS = [{"prompt": text} for text in ("what?", "why?") for _ in range(NUM_GENERATIONS)]


def outcome(loss: Tensor, new: Tensor, entropies: Tensor, targets: Tensor) -> Outcome:
    loss.backward()
    gradients = {"new": new.grad, "entropies": entropies.grad}
    flat = {name: gradient[targets] for name, gradient in gradients.items() if gradient is not None}
    return Outcome(loss.item(), flat)


@dataclass(frozen=True)
class Options:
    """What a user of either library would set."""

    level: str = "token"
    turns: bool = False
    mask_truncated: bool = False
    beta: float = 0.0
    use_bias_correction_kl: bool = True
    delta: float | None = None
    epsilon_high: float | None = None
    mismatch: tuple[str, float | None, float | None] | None = None  # mode, clip_max, clip_min
    off_policy_threshold: float | None = None
    top_entropy_quantile: float = 1.0
    entropy_coef: float = 0.0
    scale_rewards: str = "group"
    aggregation: str = "sum_then_normalize"


def assert_same_step(ours: Outcome, theirs: Outcome) -> None:
    """The gradients as elsewhere; the loss to what rounding leaves of terms about 1, since the advantages of a group
    cancel in their sum."""
    assert_close(ours.loss, theirs.loss, rtol=1e-5, atol=1e-6)
    assert_same(ours._replace(loss=theirs.loss), theirs)


class Grpo:
    def __init__(self, folder):
        self.rollouts = Rollouts()
        # as if the rollouts served two updates: the old policy's log-probabilities are asked for
        self.trainer = trl_trainer(folder, "GRPO", self.rollouts, num_iterations=2)
        from trl import GRPOTrainer

        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that it is experimental
            from trl.experimental.gmpo import GMPOTrainer
        self.loss_of = {"gmpo": GMPOTrainer._compute_loss}
        self.usual_loss = GRPOTrainer._compute_loss

    def theirs(self, loss_type: str, options: Options) -> Outcome:
        trainer, rollouts = self.trainer, self.rollouts
        leaves = Leaves(trainer, rollouts)
        sampled = [row[:n].tolist() for row, n in zip(rollouts.sampler, rollouts.lengths, strict=True)]
        written = [row[:n].long().tolist() for row, n in zip(rollouts.is_written, rollouts.lengths, strict=True)]
        generated = (
            [[LETTER]] * NUM_SEQUENCES,
            rollouts.completion_ids,
            written if options.turns else None,
            [""] * NUM_SEQUENCES,
            sampled if options.mismatch else None,
            {},
            None,
            None,
        )
        bound = CISPO_CAP if loss_type == "cispo" else 0.2  # TRL has no default of its own for the cap
        mode, clip_max, clip_min = options.mismatch or ("sequence_mask", 3.0, None)
        with (
            settings(
                trainer,
                loss_type=loss_type,
                importance_sampling_level=options.level,
                epsilon_high=bound if options.epsilon_high is None else options.epsilon_high,
                beta=options.beta,
                ref_model=object(),
                mask_truncated_completions=options.mask_truncated,
                use_vllm=options.mismatch is not None,
                vllm_importance_sampling_correction=options.mismatch is not None,
                vllm_importance_sampling_mode=mode,
                vllm_importance_sampling_clip_max=clip_max,
                vllm_importance_sampling_clip_min=clip_min,
                off_policy_mask_threshold=options.off_policy_threshold,
                top_entropy_quantile=options.top_entropy_quantile,
                entropy_coef=options.entropy_coef,
                _entropy_bonus_enabled=options.entropy_coef != 0,
                scale_rewards=options.scale_rewards,
                multi_objective_aggregation=options.aggregation,
                _generate=lambda prompts: generated,
                _get_per_token_logps_and_entropies=leaves,
            ),
            settings(trainer.args, delta=options.delta, use_bias_correction_kl=options.use_bias_correction_kl),
        ):
            inputs = trainer._generate_and_score_completions(INPUTS)
            compute = self.loss_of.get(loss_type, self.usual_loss)
            loss = compute(trainer, trainer.model, inputs)
        targets = rollouts.targets(turns=options.turns, mask_truncated=options.mask_truncated)
        return outcome(loss, leaves.new, leaves.entropies, targets)

    def ours(self, loss_type: str, options: Options) -> Outcome:
        rollouts = self.rollouts
        targets = rollouts.targets(turns=options.turns, mask_truncated=options.mask_truncated)
        ids = targets.nonzero()[:, 0]
        new_leaf = rollouts.new.clone().requires_grad_()
        entropies_leaf = rollouts.entropies.clone().requires_grad_()
        new, old, ref, sampler, entropies = (
            values[targets] for values in (new_leaf, rollouts.old, rollouts.ref, rollouts.sampler, entropies_leaf)
        )
        groups = torch.arange(NUM_SEQUENCES) // NUM_GENERATIONS
        advantages = multi_reward_advantages(
            rollouts.rewards,
            groups,
            torch.tensor([1.0, 0.5]),
            scale_rewards=options.scale_rewards,
            aggregation=options.aggregation,
        )[ids]
        ratios, ratio_level = None, "token"
        if options.mismatch:
            mode, clip_max, clip_min = options.mismatch
            ratio_level = mode.split("_")[0]
            ratios = mismatch_weights(old, sampler, ids, NUM_SEQUENCES, mode=mode, clip_max=clip_max, clip_min=clip_min)
        is_uncertain = top_entropy_mask(entropies, entropy_threshold(entropies, options.top_entropy_quantile))
        mask = is_uncertain
        if options.off_policy_threshold is not None:
            mask = mask & off_policy_mask(
                new,
                sampler if options.mismatch else old,
                advantages,
                ids,
                NUM_SEQUENCES,
                threshold=options.off_policy_threshold,
            )
        loss = policy_loss(
            new,
            old,
            advantages,
            ids,
            NUM_SEQUENCES,
            loss_type=loss_type,
            importance_sampling_level=options.level,
            epsilon_high=options.epsilon_high,
            delta=options.delta,
            mask=mask,
            sampler_ratios=ratios,
            sampler_ratio_level=ratio_level,
        )
        losses = loss.losses
        if options.beta:
            losses = losses + options.beta * kl_penalty(
                new, ref, "k3", loss.ratios if options.use_bias_correction_kl else None
            )
        items = num_items(loss_type, len(ids), NUM_SEQUENCES, MAX_LENGTH)
        losses = token_weights(loss_type, ids, NUM_SEQUENCES) * losses
        if options.entropy_coef:
            count = is_uncertain.sum()
            losses = losses + entropy_bonus(
                entropies, options.entropy_coef, num_items=items, num_targets=count, mask=is_uncertain
            )
        return outcome(losses.sum() / items, new_leaf, entropies_leaf, targets)

    def compare(self, loss_type: str, **chosen: Any) -> None:
        options = Options(**chosen)
        assert_same_step(self.ours(loss_type, options), self.theirs(loss_type, options))
