"""Rewards for a right answer in mathematics, judged by math-verify. Names and values are those of TRL 1.16.

Deviations: parsing and comparing run in processes that can be killed, on any thread, so that an expression without end
costs its own completion alone; of a conversation with several turns the assistant's last message is read; a text is a
completion, too.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

from tuneline.rewards.choosing import require_math_verify
from tuneline.rewards.texts import Completion, completion_text
from tuneline.rewards.verifying import ask_all

_TIMEOUT = 15.0  # seconds for one answer


def accuracy_reward(
    completions: list[Completion],
    solution: list[str],
    log_extra: Callable[[str, list], None] | None = None,
    **columns: Any,
) -> list[float | None]:
    """1 where a completion's boxed answer equals the solution, 0 where not, None where the solution cannot be parsed.

    Args:
        solution: text or LaTeX, such as `\\frac{1}{3}` or `#### 42`.
        log_extra: given the solutions and what was parsed, for the completions table.

    Raises:
        ConfigError: math-verify is not installed.
    """
    texts = [completion_text(completion) for completion in completions]
    return _verified(texts, solution, log_extra)


def reasoning_accuracy_reward(
    completions: list[Completion],
    solution: list[str],
    reasoning_delimiters: list[str] | None = None,
    log_extra: Callable[[str, list], None] | None = None,
    **columns: Any,
) -> list[float | None]:
    """As `accuracy_reward`, of what stands behind the reasoning; 0 where that did not come to its end.

    Args:
        reasoning_delimiters: the first of these that a completion has ends its reasoning where it last stands; by
            default `</think>`.
    """
    delimiters = ["</think>"] if reasoning_delimiters is None else reasoning_delimiters
    answers: list[str | None] = []
    for completion in completions:
        text = completion_text(completion)
        delimiter = next((one for one in delimiters if one in text), None)
        answers.append(None if delimiter is None else text.rpartition(delimiter)[2])
    return _verified(answers, solution, log_extra)


def _verified(
    texts: list[str | None] | list[str], solution: list[str], log_extra: Callable[[str, list], None] | None
) -> list[float | None]:
    """Rewards of texts against solutions; a text that is None is unfinished."""
    require_math_verify("accuracy_reward")
    asked = [i for i, text in enumerate(texts) if text is not None]
    rewards: list[float | None] = [0.0] * len(texts)
    gold_parsed, answer_parsed = (["[incomplete reasoning]"] * len(texts) for _ in range(2))
    questions = [{"kind": "mathematics", "gold": str(solution[i]), "answer": texts[i]} for i in asked]
    for i, (answers, reason) in zip(asked, ask_all(questions, 2, _TIMEOUT), strict=True):
        gold = answers[0]["gold"] if answers else None
        gold_parsed[i] = gold or "[unparseable]"
        if gold is None:
            rewards[i], answer_parsed[i] = None, "[skipped]"
        elif len(answers) < 2:
            answer_parsed[i] = f"[{reason}]"
        else:
            rewards[i] = float(answers[1]["holds"])
            answer_parsed[i] = answers[1]["answer"] or "[unparseable]"
    if log_extra is not None:
        log_extra("solution", list(solution))
        log_extra("gold_parsed", gold_parsed)
        log_extra("answer_parsed", answer_parsed)
    return rewards


@dataclass(frozen=True)
class CosineScaledReward:
    """See `get_cosine_scaled_reward`."""

    max_len: int
    min_value_wrong: float = -1.0
    max_value_wrong: float = -0.5
    min_value_correct: float = 0.5
    max_value_correct: float = 1.0
    __name__: ClassVar[str] = "cosine_scaled_reward"

    def __call__(
        self, completions: list[Completion], solution: list[str], completion_ids: list[list[int]], **columns: Any
    ) -> list[float | None]:
        is_right = accuracy_reward(completions, solution)
        return [self._scaled(right, len(ids)) for right, ids in zip(is_right, completion_ids, strict=True)]

    def _scaled(self, right: float | None, length: int) -> float | None:
        if right is None:
            return None
        short, long = (
            (self.max_value_correct, self.min_value_correct) if right else (self.min_value_wrong, self.max_value_wrong)
        )
        # A cosine would rise again beyond the longest length.
        progress = min(length / self.max_len, 1.0)
        return long + 0.5 * (short - long) * (1 + math.cos(math.pi * progress))


def get_cosine_scaled_reward(
    max_len: int,
    min_value_wrong: float = -1.0,
    max_value_wrong: float = -0.5,
    min_value_correct: float = 0.5,
    max_value_correct: float = 1.0,
) -> CosineScaledReward:
    """Accuracy on a cosine of the completion's length in tokens (Yeo et al. 2025, arXiv:2502.03373, appendix C.1).

    A right answer goes from `max_value_correct` at no length to `min_value_correct` at `max_len` and beyond; a wrong
    one from `min_value_wrong` to `max_value_wrong`, so that more thought is punished less. None as in
    `accuracy_reward`.
    """
    return CosineScaledReward(max_len, min_value_wrong, max_value_wrong, min_value_correct, max_value_correct)
