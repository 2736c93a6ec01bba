"""Verification of completions whose solution is known."""

from __future__ import annotations


def exact_match(completion: str, solution: str) -> bool:
    """Whether a completion is the solution, but for white space around and between words."""
    return completion.split() == solution.split()
