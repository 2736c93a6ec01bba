"""What a judge is, and what judges of pairs share: the order in which a pair is shown, and verdicts that fail."""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

from tuneline.errors import RewardError
from tuneline.logging import get_logger

logger = get_logger(__name__)


class BaseJudge(ABC):
    """A judge of completions; prompts and completions are text, or messages where a judge can read them."""

    @abstractmethod
    def judge(self, prompts: list[Any], completions: list[Any], shuffle_order: bool = True) -> list[Any]:
        """A verdict for each prompt.

        Args:
            completions: what is judged, one entry a prompt.
            shuffle_order: show several completions in an order that does not depend on how they were given.
        """


class BaseRankJudge(BaseJudge):
    """Puts the completions of each prompt in order."""

    @abstractmethod
    def judge(self, prompts: list[Any], completions: list[list[Any]], shuffle_order: bool = True) -> list[list[int]]:
        """For each prompt the places of its completions, the best one's first."""


class BasePairwiseJudge(BaseJudge):
    """Chooses one of two completions."""

    @abstractmethod
    def judge(self, prompts: list[Any], completions: list[list[Any]], shuffle_order: bool = True) -> list[int]:
        """For each prompt 0 or 1, the place of the better completion; -1 where the judge failed."""


class BaseBinaryJudge(BaseJudge):
    """Says whether a completion is right."""

    @abstractmethod
    def judge(  # type: ignore[override]
        self,
        prompts: list[Any],
        completions: list[Any],
        gold_completions: list[Any] | None = None,
        shuffle_order: bool = True,
    ) -> list[int]:
        """For each prompt 1 for right, 0 for wrong, -1 where the judge failed."""


class ComparingJudge(BasePairwiseJudge):
    """Base of the judges of pairs here; a subclass writes `compare`.

    With `shuffle_order` the order in which a pair is shown comes from the texts alone, half of them one way round and
    half the other: a preference for a position has no effect on the whole, and the same pair gets the same verdict
    whichever way it is given, in a resumed run too.

    Attributes:
        num_judged, num_failures: pairs judged, and those of them without a verdict, since the judge was made.
    """

    num_judged = 0
    num_failures = 0

    @abstractmethod
    def compare(self, prompts: list[Any], pairs: list[list[Any]]) -> Sequence[int | None]:
        """For each pair, in the order shown, 0 or 1; None or -1 for no verdict."""

    def judge(self, prompts: list[Any], completions: list[list[Any]], shuffle_order: bool = True) -> list[int]:
        """For each prompt 0 or 1, the place of the better completion; -1 where the judge failed.

        Raises:
            RewardError: lists that do not fit, or an answer that is no list of verdicts.
        """
        _check(prompts, completions)
        is_swapped = [
            shuffle_order and shows_second_first(prompt, pair)
            for prompt, pair in zip(prompts, completions, strict=True)
        ]
        shown = [list(pair)[::-1] if swap else list(pair) for pair, swap in zip(completions, is_swapped, strict=True)]
        answers = self.compare(list(prompts), shown) if prompts else []
        if len(answers) != len(prompts):
            raise RewardError(f"{self.__class__.__name__} gave {len(answers)} verdicts for {len(prompts)} prompts.")
        verdicts = []
        for answer, swap in zip(answers, is_swapped, strict=True):
            if answer not in (0, 1):
                verdicts.append(-1)
            else:
                verdicts.append(int(answer) ^ swap)
        num_failures = verdicts.count(-1)
        self.num_judged += len(verdicts)
        self.num_failures += num_failures
        if num_failures:
            logger.warning("%s gave no verdict on %d of %d pairs", self.__class__.__name__, num_failures, len(verdicts))
        return verdicts


def shows_second_first(prompt: Any, pair: Sequence[Any]) -> bool:
    """Whether a pair is shown in the other order than it came; the same order is shown for a pair and its reverse."""
    first, second = sorted(map(repr, pair))
    digest = hashlib.sha256(repr((prompt, first, second)).encode()).digest()
    sorted_comes_first = digest[0] % 2 == 0
    is_sorted = repr(pair[0]) == first
    return is_sorted != sorted_comes_first


def _check(prompts: Sequence[Any], completions: Sequence[Any]) -> None:
    if len(prompts) != len(completions):
        raise RewardError(f"there are {len(prompts)} prompts and {len(completions)} pairs; give a pair each.")
    for i, pair in enumerate(completions):
        if isinstance(pair, str) or len(pair) != 2:
            raise RewardError(f"completions[{i}] is {pair!r:.80}, and not a pair; give two completions a prompt.")
