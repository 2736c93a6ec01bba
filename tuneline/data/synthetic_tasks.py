"""The tasks of the synthetic data: problems whose answers can be verified, and the mistakes that one makes with them.

| task    | a problem                              | answer  | mistakes                                               |
|---------|----------------------------------------|---------|--------------------------------------------------------|
| add     | What is 47 + 38?                       | 85      | a carry forgotten, one too many or too few             |
| sort    | Sort these digits: 7 2 9 4             | 2 4 7 9 | the wrong way round, neighbours exchanged, one missing |
| reverse | Reverse these letters: t k b q         | q b k t | left as it was, neighbours exchanged, one missing      |
| count   | How often is a in these letters: b a a | 2       | one too many or too few, all letters counted           |
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from random import Random


@dataclass(frozen=True)
class Problem:
    """A problem, its answer, and wrong answers of the kinds that one gives by mistake."""

    key: str  # equal for what is the same problem in other words: 2 + 3 and 3 + 2
    question: str
    solution: str
    mistakes: tuple[str, ...]  # all different from the solution, and from each other


def _problem(key: str, question: str, solution: str, mistakes: list[str]) -> Problem:
    return Problem(key, question, solution, tuple(m for m in dict.fromkeys(mistakes) if m != solution))


def add(random: Random) -> Problem:
    """The sum of two numbers below 100."""
    a, b = random.randrange(100), random.randrange(100)
    total = a + b
    without_carry = total - 10 if a % 10 + b % 10 > 9 else total + 10
    return _problem(
        f"{min(a, b)}+{max(a, b)}",
        f"What is {a} + {b}?",
        str(total),
        [str(without_carry), str(total + 1), str(abs(total - 1))],
    )


def sort(random: Random) -> Problem:
    """Four to six digits in ascending order."""
    digits = [random.randrange(10) for _ in range(random.randrange(4, 7))]
    ordered = sorted(digits)
    return _problem(
        _spaced(digits),
        f"Sort these digits: {_spaced(digits)}",
        _spaced(ordered),
        [_spaced(ordered[::-1]), _spaced(_neighbours_exchanged(ordered, random)), _spaced(ordered[:-1])],
    )


def reverse(random: Random) -> Problem:
    """Four to six letters from the last to the first."""
    letters = [_letter(random, 26) for _ in range(random.randrange(4, 7))]
    turned = letters[::-1]
    return _problem(
        _spaced(letters),
        f"Reverse these letters: {_spaced(letters)}",
        _spaced(turned),
        [_spaced(letters), _spaced(_neighbours_exchanged(turned, random)), _spaced(turned[:-1])],
    )


def count(random: Random) -> Problem:
    """How often a letter occurs among six to ten, of which there are four kinds."""
    letters = [_letter(random, 4) for _ in range(random.randrange(6, 11))]
    wanted = _letter(random, 4)
    number = letters.count(wanted)
    return _problem(
        f"{wanted}:{_spaced(letters)}",
        f"How often is {wanted} in these letters: {_spaced(letters)}",
        str(number),
        [str(number + 1), str(abs(number - 1)), str(len(letters))],
    )


TASKS: dict[str, Callable[[Random], Problem]] = {"add": add, "sort": sort, "reverse": reverse, "count": count}


def _letter(random: Random, kinds: int) -> str:
    return chr(ord("a") + random.randrange(kinds))


def _spaced(items: list) -> str:
    return " ".join(map(str, items))


def _neighbours_exchanged(items: list, random: Random) -> list:
    i = random.randrange(len(items) - 1)
    return [*items[:i], items[i + 1], items[i], *items[i + 2 :]]
