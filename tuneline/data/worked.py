"""Answers that work a solution out and end in it, as those of gsm8k (Cobbe et al. 2021, arXiv:2110.14168).

`... sold 48/2 = <<48/2=24>>24 clips.` and, on the last line, `#### 24`.
"""

from __future__ import annotations

import re
from typing import Any

from tuneline.data.validation import UnfitError

_CALCULATION = re.compile(r"<<[^<>\n]*>>")


def split_worked(answer: Any, mark: str = "####") -> tuple[str, str]:
    """The working, and the solution behind the last mark; white space around both goes, and commas in numbers.

    Raises:
        UnfitError: no text, or text without a mark or with nothing behind it.
    """
    if not isinstance(answer, str):
        raise UnfitError("completion", f"is a {type(answer).__name__} and no text that ends in a solution")
    working, found, solution = answer.rpartition(mark)
    if not found or not solution.strip():
        raise UnfitError("completion", f"has no {mark!r} with a solution behind it")
    return working.rstrip(), re.sub(r"(?<=\d),(?=\d{3})", "", solution.strip())


def with_solution(
    values: dict[str, Any], *, mark: str = "####", calculator_marks: str = "strip", ending: str | None = None
) -> dict[str, Any]:
    """A row whose `completion` is worked out, with its `solution` as a column of its own.

    Args:
        mark: stands before the solution.
        calculator_marks: `strip` takes `<<48/2=24>>` out, `keep` leaves it.
        ending: what the completion ends with instead of mark and solution; `{solution}` in it is replaced. None leaves
            them.

    Raises:
        UnfitError: as `split_worked`.
    """
    answer = values.get("completion")
    working, solution = split_worked(answer, mark)
    assert isinstance(answer, str)
    if ending is not None:
        answer = f"{working}\n{ending.replace('{solution}', solution)}"
    if calculator_marks == "strip":
        answer = _CALCULATION.sub("", answer)
    return {**values, "completion": answer, "solution": solution}


def as_chat(values: dict[str, Any], system: str | None = None) -> dict[str, Any]:
    """A row whose text stands in turns: the prompt is the user's, after the system's; what answers it the assistant's.

    Values that are dialogues already stay as they are.
    """
    turns = dict(values)
    if isinstance(values.get("prompt"), str):
        before = [] if system is None else [{"role": "system", "content": system}]
        turns["prompt"] = [*before, {"role": "user", "content": values["prompt"]}]
    for field in ("completion", "chosen", "rejected"):
        if isinstance(values.get(field), str):
            turns[field] = [{"role": "assistant", "content": values[field]}]
    return turns
