"""A verifier that a config may name."""

import re


def has_solution(completions, solution, **columns):
    """Whether a completion has what the solution, a pattern, describes."""
    return [
        float(bool(re.search(pattern, completion[0]["content"])))
        for completion, pattern in zip(completions, solution, strict=True)
    ]
