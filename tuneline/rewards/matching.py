"""Rewards for saying just what the column `solution` says, as text or as a number."""

from __future__ import annotations

import math
import re
from typing import Any

from tuneline.rewards.texts import Completion, completion_text

_UNSIGNED = r"(?:\d{1,3}(?:,\d{3})+(?!\d)|\d+)(?:\.\d+)?(?:[eE][-+]?\d+)?|\.\d+(?:[eE][-+]?\d+)?"
# A sign behind a digit or a bracket takes away: in `5-3` the second number is 3.
_NUMBER = re.compile(rf"((?<![\d)\].])[-+])?\$?\s?({_UNSIGNED})(?:\s?/\s?({_UNSIGNED}))?")
_MARKED = (re.compile(r"####\s*(.+)"), re.compile(r"\\boxed\{([^{}]*)\}"))


def exact_match_reward(
    completions: list[Completion], solution: list[Any], *, ignore_case: bool = False, **columns: Any
) -> list[float | None]:
    """1 where a completion is the solution, 0 where not, None where there is none. Blanks around do not count."""

    def plain(text: str) -> str:
        return text.strip().casefold() if ignore_case else text.strip()

    return [
        None if right is None else float(plain(completion_text(completion)) == plain(str(right)))
        for completion, right in zip(completions, solution, strict=True)
    ]


def numeric_match_reward(
    completions: list[Completion],
    solution: list[Any],
    *,
    relative_tolerance: float = 1e-6,
    absolute_tolerance: float = 1e-9,
    **columns: Any,
) -> list[float | None]:
    """1 where a completion's answer is the number of the solution, 0 where not, None where the solution has no number.

    The answer is the number behind the last `####` or in the last `\\boxed{}`, without either the last number of the
    text: thousands separators, currency signs, fractions and exponents are read. Whole numbers must be equal, others
    within the larger of the two tolerances.
    """
    rewards: list[float | None] = []
    for completion, right in zip(completions, solution, strict=True):
        wanted = final_number(str(right)) if right is not None else None
        given = final_number(completion_text(completion))
        if wanted is None:
            rewards.append(None)
        elif isinstance(wanted, int) and isinstance(given, int):
            rewards.append(float(wanted == given))
        else:
            is_close = given is not None and math.isclose(
                wanted, given, rel_tol=relative_tolerance, abs_tol=absolute_tolerance
            )
            rewards.append(float(is_close))
    return rewards


def final_number(text: str) -> int | float | None:
    """The number that a text gives as its answer (see `numeric_match_reward`); an int where it is written as one."""
    text = text.replace("\u2212", "-").replace("\\$", "$").replace("{,}", ",")
    for mark in _MARKED:
        marked = mark.findall(text)
        if marked:
            numbers = _NUMBER.findall(marked[-1])
            return _value(*numbers[0]) if numbers else None
    numbers = _NUMBER.findall(text)
    return _value(*numbers[-1]) if numbers else None


def _value(sign: str, above: str, below: str) -> int | float | None:
    factor = -1 if sign == "-" else 1
    digits = above.replace(",", "")
    if not below and digits.isdecimal() and len(digits) < 1000:
        return factor * int(digits)
    value = factor * float(digits)
    if below:
        divisor = float(below.replace(",", ""))
        value = value / divisor if divisor else math.inf
    return value if math.isfinite(value) else None
