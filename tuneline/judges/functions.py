"""Judges that are functions, scripts or chance."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from typing import Any

from tuneline.judges.base import BaseRankJudge, ComparingJudge
from tuneline.logging import get_logger

logger = get_logger(__name__)


class FunctionJudge(ComparingJudge):
    """A function of (prompt, first, second) that gives 0 or 1, the place of the better one, or None.

    One that raises costs its pair, which is counted as a failure; the first reason is logged.
    """

    def __init__(self, function: Callable[[Any, Any, Any], int | None]):
        self.function = function
        self._is_told = False

    def compare(self, prompts: list[Any], pairs: list[list[Any]]) -> list[int | None]:
        return [self._ask(prompt, *pair) for prompt, pair in zip(prompts, pairs, strict=True)]

    def _ask(self, prompt: Any, first: Any, second: Any) -> int | None:
        try:
            return self.function(prompt, first, second)
        except Exception as error:
            if not self._is_told:
                logger.warning("the judge's function raised %r; said once, then only counted", error)
                self._is_told = True
            return None


class ScriptedJudge(ComparingJudge):
    """Says what it was told to, in turn and over again, of the pairs as they are given: for tests and dry runs."""

    def __init__(self, verdicts: Sequence[int]):
        self.verdicts = list(verdicts)

    def judge(self, prompts: list[Any], completions: list[list[Any]], shuffle_order: bool = True) -> list[int]:
        return super().judge(prompts, completions, shuffle_order=False)

    def compare(self, prompts: list[Any], pairs: list[list[Any]]) -> list[int]:
        first = self.num_judged
        return [self.verdicts[(first + i) % len(self.verdicts)] for i in range(len(pairs))]


class RandomPairwiseJudge(ComparingJudge):
    """Chooses by chance, the same for the same pair: a baseline that everything has to beat."""

    def __init__(self, seed: int = 0):
        self.seed = seed

    def compare(self, prompts: list[Any], pairs: list[list[Any]]) -> list[int]:
        return [_digest(self.seed, prompt, pair) % 2 for prompt, pair in zip(prompts, pairs, strict=True)]


class RandomRankJudge(BaseRankJudge):
    """Puts completions in an order by chance, the same for the same completions."""

    def __init__(self, seed: int = 0):
        self.seed = seed

    def judge(self, prompts: list[Any], completions: list[list[Any]], shuffle_order: bool = True) -> list[list[int]]:
        return [
            sorted(range(len(group)), key=lambda i: _digest(self.seed, prompt, group[i], i))
            for prompt, group in zip(prompts, completions, strict=True)
        ]


def _digest(*key: Any) -> int:
    return int.from_bytes(hashlib.sha256(repr(key).encode()).digest()[:8], "little")
