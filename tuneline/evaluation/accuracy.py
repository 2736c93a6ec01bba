"""Verification of completions whose solution is known."""

from __future__ import annotations

from collections.abc import Sequence

from tuneline.data.formats import as_reply
from tuneline.evaluation.prompts import Prompts
from tuneline.evaluation.sampling import Completion
from tuneline.rewards import RewardFunctions

RIGHT = 0.5  # a verifier's reward above it means right


def exact_match(completion: str, solution: str) -> bool:
    """Whether a completion is the solution, but for white space around and between words."""
    return completion.split() == solution.split()


def verify(verifier: RewardFunctions | None, prompts: Prompts, completions: Sequence[Completion]) -> list[bool | None]:
    """(prompts,) whether each completion is right; None where no solution is known, or the verifier cannot tell.

    Args:
        verifier: one reward function, which is given the columns of the prompts whose solution is known; what it
            rewards with more than one half is right. None: `exact_match`.
        completions: one a prompt.
    """
    known = [i for i, solution in enumerate(prompts.solutions) if solution is not None]
    outcomes: list[bool | None] = [None] * len(prompts)
    if verifier is None:
        for i in known:
            outcomes[i] = exact_match(completions[i].text, str(prompts.solutions[i]))
        return outcomes
    asked = prompts.select(known)
    scores = verifier.start(
        prompts=asked.values,
        completions=[as_reply(prompts.values[i], completions[i].text) for i in known],
        completion_ids=[completions[i].ids for i in known],
        columns={name: values for name, values in asked.columns.items() if name != "prompt"},
    ).result()
    for i, reward in zip(known, scores.values[:, 0].tolist(), strict=True):
        outcomes[i] = None if reward != reward else reward > RIGHT
    return outcomes
