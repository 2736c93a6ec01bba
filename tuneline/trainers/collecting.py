"""How an online trainer comes by experience: draw rollouts, reward them, and ask policy and reference about them."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from tuneline.advantages import combine_rewards, has_spread
from tuneline.environments import Interaction
from tuneline.losses.policy import kl_penalty
from tuneline.memory import give_back_memory
from tuneline.models.layouts import policy_of
from tuneline.rewards.calling import Pending, RewardFunctions, Scores
from tuneline.rollout.protocol import RolloutEngine
from tuneline.trainers.drawing import Drawn, RolloutFunction, draw, draw_with
from tuneline.trainers.experience import ScoredRollout, lay_out_rollouts, sampler_logprobs, support_of

if TYPE_CHECKING:
    from tuneline.trainers.online import OnlineTrainer


class Collector:
    """The parts of collecting, for one trainer.

    Args:
        engine: draws completions.
        rollout_func: makes the rollouts instead.
        interaction: tools and environments.
    """

    def __init__(
        self,
        trainer: OnlineTrainer,
        engine: RolloutEngine,
        rewards: RewardFunctions,
        interaction: Interaction | None,
        rollout_func: RolloutFunction | None,
    ):
        self.trainer, self.engine, self.rewards = trainer, engine, rewards
        self.interaction, self.rollout_func = interaction, rollout_func
        self.seconds: dict[str, float] = defaultdict(float)  # by phase, since the trainer was made
        self._weights_of_engine: int | None = None  # the step whose weights it has
        self._column_names: list[str] = []  # of the rows, for a process that has none of a last batch

    def close(self) -> None:
        """End what serves the trainer: engine, reward workers, tools."""
        self.engine.close()
        self.rewards.close()
        if self.interaction is not None:
            self.interaction.close()

    def draw(self, rows: list[dict[str, Any]], seeds: list[int]) -> Drawn:
        """A rollout a row, by the weights of this step."""
        if self.rollout_func is not None:
            return draw_with(self.rollout_func, rows, self.trainer)
        policy = policy_of(self.trainer.model_wrapped)
        if self._weights_of_engine != self.trainer.state.global_step:
            self.engine.sync_weights(policy)
            self._weights_of_engine = self.trainer.state.global_step
        with self.trainer.compute_loss_context_manager():
            return draw(
                self.engine,
                self.trainer.processing_class,
                rows,
                seeds,
                self.trainer.sampling,
                chat_template_kwargs=self.trainer.args.template_kwargs,
                interaction=self.interaction,
                max_length=self.trainer.args.max_length,
            )

    def forget_weights(self) -> None:
        """Have the engine take over the weights before it draws again, whatever the step."""
        self._weights_of_engine = None

    def note_columns(self, rows: list[dict[str, Any]]) -> None:
        """Remember what these rows hold beside the prompt."""
        if rows:
            self._column_names = list(dict.fromkeys(name for row in rows for name in row if name != "prompt"))

    def start_rewards(self, drawn: Drawn) -> Pending:
        """Begin to reward, in the background."""
        self.note_columns(drawn.rows)
        return self.rewards.start(
            prompts=[row["prompt"] for row in drawn.rows],
            completions=drawn.completions,
            completion_ids=[rollout.completion_ids for rollout in drawn.rollouts],
            columns={name: [row.get(name) for row in drawn.rows] for name in self._column_names},
            trainer_state=self.trainer.state,
            environments=drawn.environments,
        )

    def score(self, scored: list[ScoredRollout]) -> None:
        """What policy and reference say of the targets, micro-batch by micro-batch."""
        # Not DDP's wrapper, which would wait for the other processes: in evaluation they may have less to score.
        policy = self.trainer.model_wrapped if self.trainer.is_deepspeed_enabled else self.trainer.model
        was_training = policy.training
        size, reference = self.trainer.scoring_batch_size, self.trainer.reference
        policy.eval()
        for start in range(0, len(scored), size) if self.trainer.needs_old_logprobs or reference is not None else ():
            chunk = scored[start : start + size]
            rollouts = [one.rollout for one in chunk]
            trees, support = lay_out_rollouts(rollouts).to(self.trainer.args.device), support_of(rollouts)
            support = None if support is None else support.to(self.trainer.args.device)
            temperature = self.trainer.sampling.temperature
            if not self.trainer.scores_as_drawn:
                temperature, support = 1.0, None
            with self.trainer.compute_loss_context_manager():
                answers = self.trainer.ask_policy(policy, trees, support)
                if reference is not None:
                    answers["ref_logprobs"] = reference.logprobs(trees, temperature, support)
            bounds = [one.num_targets for one in chunk]
            for one, *values in zip(chunk, *(v.cpu().split(bounds) for v in answers.values()), strict=True):
                one.by_target |= dict(zip(answers, values, strict=True))
        policy.train(was_training)
        for one in scored:
            one.by_target["sampler_logprobs"] = sampler_logprobs(one.rollout, self.trainer.sampling.cuts_support)
        give_back_memory()  # the caches of generation would lie beside what training needs

    def log_ratios(self, scored: list[ScoredRollout]) -> Tensor:
        """(rollouts,), of all processes: log(policy / reference) of each completion, whose mean is the KL divergence;
        0 of one that does not count. Recorded a token as `kl`."""
        sums, num_counted = [torch.zeros(())] * len(scored), 0
        for i, one in enumerate(scored):
            if one.counts_targets:
                sums[i] = kl_penalty(one.by_target["old_logprobs"], one.by_target["ref_logprobs"], "k1").sum()
                num_counted += one.num_targets
        own = torch.stack(sums) if sums else torch.empty(0)
        self.trainer.record({"kl": (own.sum(), torch.tensor(num_counted))})
        return self.of_all(own)

    def record_rollouts(self, drawn: Drawn, scores: Scores, rewards: Tensor, group_ids: Tensor) -> None:
        """The metrics of a generation; `rewards` (rollouts, functions) and `group_ids` are of all processes."""
        lengths = torch.tensor([float(ScoredRollout(one).num_targets) for one in drawn.rollouts])
        failures = self.of_all(torch.tensor([list(scores.failures.values())], dtype=torch.float32)).sum(0)
        finished = torch.tensor([one.is_finished for one in drawn.rollouts], dtype=torch.bool)
        self.trainer.record(
            {
                **{f"completions/{name}_length": lengths for name in ("mean", "min", "max")},
                **{f"completions/{name}_terminated_length": lengths[finished] for name in ("mean", "min", "max")},
                "completions/clipped_ratio": (~finished).float(),
                **{f"reward_failures/{name}": n for name, n in zip(scores.failures, failures, strict=True) if n},
                **{name: torch.tensor(value) for name, value in scores.metrics.items()},
            }
        )
        if drawn.counts is not None:
            self.trainer.record({name: torch.tensor(value) for name, value in drawn.counts.metrics().items()})
        total = combine_rewards(rewards, self.rewards.weights)
        if not len(total) or not self.rewards.names:
            return
        for name, column in zip(self.rewards.names, rewards.unbind(1), strict=True):
            self.trainer.record(
                {f"rewards/{name}/mean": column[~column.isnan()], f"rewards/{name}/std": _deviation(column)}
            )
        self.trainer.record({"reward": total[~total.isnan()], "reward_std": _deviation(total)})
        if len(group_ids.unique()) < len(group_ids):
            self.trainer.record({"frac_reward_zero_std": (~has_spread(total, group_ids)).float()})

    def counts(self, num_own: int) -> list[int]:
        """How many rows each process has."""
        own = torch.tensor([num_own], device=self.trainer.args.device)
        return self.trainer.accelerator.gather(own).tolist()

    def of_all(self, values: Tensor) -> Tensor:
        """The rows of all processes behind one another, on the CPU; each may have another number of them."""
        if self.trainer.accelerator.num_processes == 1:
            return values
        counts = self.counts(len(values))
        whole = values.new_zeros(max(counts), *values.shape[1:])
        whole[: len(values)] = values
        parts = self.trainer.accelerator.gather(whole[None].to(self.trainer.args.device)).cpu()
        return torch.cat([part[:count] for part, count in zip(parts, counts, strict=True)])

    @contextmanager
    def timed(self, phase: str) -> Iterator[None]:
        begun = time.perf_counter()
        yield
        self.seconds[phase] += time.perf_counter() - begun


def take_over(scores: Scores, positions: Sequence[int], others: Scores) -> None:
    """Put what was said of other rollouts at these positions; what was lost on both is counted."""
    for name, num_lost in others.failures.items():
        scores.failures[name] += num_lost
    for name in {*scores.extras, *others.extras}:
        values = scores.extras.setdefault(name, [None] * len(scores.values))
        found = others.extras.get(name, [None] * len(positions))
        for i, value in zip(positions, found, strict=True):
            values[i] = value


def _deviation(values: Tensor) -> Tensor:
    values = values[~values.isnan()].double()
    return values.std() if len(values) > 1 else values.new_zeros(())
