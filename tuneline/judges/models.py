"""A reward model as a judge."""

from __future__ import annotations

import math
from typing import Any

from torch import nn
from transformers import PreTrainedTokenizerBase

from tuneline.judges.base import ComparingJudge
from tuneline.rewards.models import RewardModel


class RewardModelJudge(ComparingJudge):
    """Holds better what a sequence classifier scores higher; of equal ones the first shown.

    Args:
        model: a sequence classifier, its name or folder; of several labels the first is the score.
        tokenizer: by default that of the model's folder.

    Raises:
        ModelError: no sequence classifier, or one without a tokenizer.
    """

    def __init__(self, model: str | nn.Module, tokenizer: PreTrainedTokenizerBase | None = None):
        self.reward = RewardModel.load(model, tokenizer) if isinstance(model, str) else RewardModel(model, tokenizer)

    def compare(self, prompts: list[Any], pairs: list[list[Any]]) -> list[int | None]:
        scores = self.reward(
            [prompt for prompt in prompts for _ in range(2)], [completion for pair in pairs for completion in pair]
        )
        return [
            None if math.isnan(first) or math.isnan(second) else int(second > first)
            for first, second in zip(scores[::2], scores[1::2], strict=True)
        ]
