"""A judge of pairs where a reward function is wanted."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from tuneline.errors import ConfigError, RewardError
from tuneline.judges.base import BasePairwiseJudge


class JudgedRewards:
    """A reward function: of two completions of a prompt that follow one another the better gets 1 and the other 0.

    Where the judge has no verdict both get None, and `judge/failures` counts their share.

    Raises:
        ConfigError: something that is no judge of pairs.
    """

    def __init__(self, judge: BasePairwiseJudge):
        if not isinstance(judge, BasePairwiseJudge):
            raise ConfigError(f"the judge is a {type(judge).__name__}; pass a BasePairwiseJudge.")
        self.judge = judge
        self.__name__ = type(judge).__name__

    def __call__(
        self, prompts: list, completions: list, log_metric: Callable[[str, float], None] | None = None
    ) -> list[float | None]:
        if len(completions) % 2 or list(prompts[::2]) != list(prompts[1::2]):
            raise RewardError("a judge of pairs wants two completions of each prompt, one behind the other.")
        pairs: list[list[Any]] = [list(pair) for pair in zip(completions[::2], completions[1::2], strict=True)]
        verdicts = self.judge.judge(list(prompts[::2]), pairs)
        if log_metric is not None and verdicts:
            log_metric("judge/failures", sum(v not in (0, 1) for v in verdicts) / len(verdicts))
        rewards: list[float | None] = []
        for verdict in verdicts:
            rewards += [1.0 - verdict, float(verdict)] if verdict in (0, 1) else [None, None]
        return rewards
