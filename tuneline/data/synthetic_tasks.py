"""The tasks of the synthetic data: problems whose answers can be verified, and the mistakes made with them.

| task    | a problem                              | answer | mistakes                                                |
|---------|----------------------------------------|--------|---------------------------------------------------------|
| add     | What is 347 + 5?                       | 352    | a carry forgotten, subtracted, written side by side     |
| sort    | Sort these digits: 7 2 9               | 2 7 9  | the wrong way round, neighbours swapped, left as it was |
| reverse | Reverse these letters: t k b           | b k t  | left as it was, neighbours swapped, the end forgotten   |
| count   | How often is a in these letters: b a a | 2      | all letters counted, the others counted, one too many   |
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from random import Random

_DIGITS = "0123456789"
_LETTERS = "abcdefghijklmnopqrstuvwxyz"


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
    """The sum of a number below 2000 and a digit below six."""
    a, b = random.randrange(10, 2000), random.randrange(1, 6)
    total = a + b
    wrong_carry = total - 10 if a % 10 + b > 9 else total + 10
    mistakes = [str(wrong_carry), str(a - b), f"{a}{b}"]
    return _problem(f"{a}+{b}", f"What is {a} + {b}?", str(total), mistakes)


def sort(random: Random) -> Problem:
    """Three to five different digits in ascending order."""
    digits = _different(range(10), 3 + random.randrange(3), random)
    ordered = sorted(digits)
    mistakes = [ordered[::-1], _neighbours_exchanged(ordered, random), digits]
    return _problem(
        _spaced(digits), f"Sort these digits: {_spaced(digits)}", _spaced(ordered), [_spaced(m) for m in mistakes]
    )


def reverse(random: Random) -> Problem:
    """Three to five different letters from the last to the first."""
    letters = _different(_LETTERS, 3 + random.randrange(3), random)
    turned = letters[::-1]
    mistakes = [letters, _neighbours_exchanged(turned, random), turned[:-1]]
    return _problem(
        _spaced(letters), f"Reverse these letters: {_spaced(letters)}", _spaced(turned), [_spaced(m) for m in mistakes]
    )


def count(random: Random) -> Problem:
    """How often a letter occurs among four to eight, of which there are three kinds."""
    letters = [_LETTERS[random.randrange(3)] for _ in range(4 + random.randrange(5))]
    wanted = _LETTERS[random.randrange(3)]
    number = letters.count(wanted)
    mistakes = [str(len(letters)), str(len(letters) - number), str(number + 1)]
    question = f"How often is {wanted} in these letters: {_spaced(letters)}"
    return _problem(f"{wanted}:{_spaced(letters)}", question, str(number), mistakes)


TASKS: dict[str, Callable[[Random], Problem]] = {"add": add, "sort": sort, "reverse": reverse, "count": count}


def slip(solution: str, random: Random) -> str:
    """The solution with one symbol written as another of its kind, half the time with more than one."""
    symbols = list(solution)
    places = [i for i, symbol in enumerate(symbols) if symbol != " "]
    while True:
        i = places[random.randrange(len(places))]
        others = [other for other in (_DIGITS if symbols[i].isdigit() else _LETTERS) if other != symbols[i]]
        symbols[i] = others[random.randrange(len(others))]
        written = "".join(symbols)
        if written != solution and random.random() < 0.5:
            return written


def _different(items: Sequence, number: int, random: Random) -> list:
    rest = list(items)
    return [rest.pop(random.randrange(len(rest))) for _ in range(number)]


def _spaced(items: Sequence) -> str:
    return " ".join(map(str, items))


def _neighbours_exchanged(items: list, random: Random) -> list:
    i = random.randrange(len(items) - 1)
    return [*items[:i], items[i + 1], items[i], *items[i + 2 :]]
