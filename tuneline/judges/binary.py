"""Judges of single completions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from tuneline.errors import ConfigError
from tuneline.judges.base import BaseBinaryJudge


class AllTrueJudge(BaseBinaryJudge):
    """Right is what all of several judges hold right (a mixture of judges, Xu et al. 2024, arXiv:2409.20370).

    Where one says wrong it is wrong, whatever failed; else a failure of any is one of the whole.

    Raises:
        ConfigError: something that is no binary judge.
    """

    def __init__(self, judges: Sequence[BaseBinaryJudge]):
        wrong = [type(judge).__name__ for judge in judges if not isinstance(judge, BaseBinaryJudge)]
        if wrong or not judges:
            raise ConfigError(f"AllTrueJudge takes at least one BaseBinaryJudge and no others; it was given {wrong}.")
        self.judges = list(judges)

    def judge(  # type: ignore[override]
        self,
        prompts: list[Any],
        completions: list[Any],
        gold_completions: list[Any] | None = None,
        shuffle_order: bool = True,
    ) -> list[int]:
        """For each prompt 1 for right, 0 for wrong, -1 where no judge says wrong and one failed."""
        verdicts = [judge.judge(prompts, completions, gold_completions, shuffle_order) for judge in self.judges]
        return [0 if 0 in one else -1 if any(v != 1 for v in one) else 1 for one in zip(*verdicts, strict=True)]
