"""Nash learning from human feedback by mirror descent (Munos et al. 2023, arXiv:2312.00886, Nash-MD-PG): the policy
plays against the geometric mixture of itself and its reference, and is rewarded for how probably it is preferred.

The gradient is that of the paper, section 7: grad log pi(y) times P(y beats y') - 1/2 - beta log(pi(y) / ref(y)), all
of whole completions. TRL weighed the gradient of each token by the log-ratio of that token alone, which leaves out how
a token changes the divergence of those after it.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from tuneline.logprobs import sum_by_sequence, token_logprobs
from tuneline.rollout.mixture import MixtureEngine
from tuneline.trainers.drawing import Drawn
from tuneline.trainers.experience import Experience, ScoredRollout
from tuneline.trainers.nash_md_config import NashMDConfig
from tuneline.trainers.pairs import PairedTrainer


class NashMDTrainer(PairedTrainer):
    """The first of two completions is the policy's and learned from, the second the mixture's. The probability that
    the first is preferred is a judge's verdict, or the logistic function of the difference of their rewards
    (Bradley-Terry). The mixture draws by the transformers engine, whatever the policy draws by.

    For the arguments and what is raised see `PairedTrainer`.
    """

    args: NashMDConfig
    config_class = NashMDConfig
    method = "NashMD"

    @property
    def reads_every_target(self) -> bool:
        return True  # a completion at even odds has a divergence too

    def draw(self, rows: list[dict[str, Any]], seeds: list[int]) -> Drawn:
        assert self.reference is not None
        reference, as_reference = self.reference.callable_model()
        share = self.of_this_epoch(self.args.mixture_coefs)
        firsts = self.collector.draw(rows[::2], seeds[::2])
        policy = self.accelerator.unwrap_model(self.model)
        tokens = self.args.generation_tokens
        engine = MixtureEngine(policy, reference, share, switch=as_reference, max_cached_tokens=tokens)
        self.record({"mixture_coef": torch.tensor(share)})
        with self.compute_loss_context_manager():
            return self.with_seconds(firsts, engine, rows, seeds)

    def collect(self, rows: list[dict[str, Any]], group_size: int, key: tuple[Any, ...]) -> list[ScoredRollout]:
        return super().collect(rows, group_size, key)[::2]

    def assign_credit(self, rewards: Tensor, group_ids: Tensor, drawn: Drawn, scored: list[ScoredRollout]) -> Tensor:
        """The first completion's probability to be preferred, above one half; 0 for the second."""
        scores = self.total_scores(rewards, drawn)
        margins = scores[:, 0] - scores[:, 1]
        probabilities = (margins.sign() + 1) / 2 if self.judge is not None else margins.sigmoid()
        is_known = ~margins.isnan()
        self.record(
            {
                "rewards/probabilities": probabilities[is_known],
                "rewards/accuracies": (margins[is_known] > 0).float(),
                "rewards/margins": margins[is_known],
            }
        )
        first = sum(self.collector.counts(len(scored))[: self.accelerator.process_index])
        own = is_known[group_ids][first : first + len(scored)]
        for one, counts in zip(scored, own.tolist(), strict=True):
            one.counts_targets = counts
        credit = (probabilities - 0.5).nan_to_num(nan=0.0)
        return torch.stack([credit, torch.zeros_like(credit)], 1).flatten()

    def num_items(self, experience: Experience) -> Tensor:
        return experience.weights.sum()

    def loss(self, model: nn.Module, experience: Experience) -> Tensor:
        trees, weights = experience.trees, experience.weights
        logps = sum_by_sequence(token_logprobs(model, trees).logprobs, trees)
        ref_logps = sum_by_sequence(experience.by_target["ref_logprobs"], trees)
        log_ratios = (logps - ref_logps).detach()
        scores = experience.advantages * logps
        penalties = self.beta * log_ratios * logps
        count = weights.sum()
        recorded = {
            "loss/score": scores.detach(),
            "loss/kl": penalties.detach(),
            "objective/kl": log_ratios,
            "objective/entropy": -logps.detach(),
            "beta": torch.full_like(log_ratios, self.beta),
        }
        self.record({name: ((values * weights).sum(), count) for name, values in recorded.items()})
        return (penalties - scores) * weights
