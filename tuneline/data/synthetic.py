"""Verifiable problems made on the machine: noisy demonstrations, preference pairs, problems to explore and to test.

Which of them a problem can be part of is decided by a hash of the problem alone, so no problem to learn from is in the
test set, and none of the demonstrations elsewhere, whatever their sizes, tasks and seeds; problems to explore are drawn
from those of the preferences. The same arguments give the same rows, in chat form.
"""

from __future__ import annotations

import difflib
import hashlib
from collections.abc import Callable, Iterator, Sequence
from random import Random
from typing import Any, Literal, NamedTuple, get_args

from datasets import Dataset

from tuneline.data.synthetic_tasks import TASKS, Problem, slip
from tuneline.errors import ConfigError

Role = Literal["demonstrations", "preferences", "prompts", "test"]
Row = dict[str, Any]

# A problem's hash falls into one of ten shares.
_SHARES: dict[Role, range] = {
    "test": range(2),
    "demonstrations": range(2, 6),
    "preferences": range(6, 10),
    "prompts": range(6, 10),
}
_DRAWS_A_ROW = 200  # a task with fewer problems than rows asked for shows by drawing known ones again and again


class SyntheticData(NamedTuple):
    """Three sets without a common problem; each row names its `task`."""

    demonstrations: Dataset  # prompt, completion, task
    preferences: Dataset  # prompt, chosen, rejected, task
    test: Dataset  # prompt, solution, task


def make_synthetic(
    num_demonstrations: int,
    num_preferences: int,
    num_test: int,
    tasks: Sequence[str] | None = None,
    noise: float = 0.0,
    seed: int = 0,
) -> SyntheticData:
    """All three sets of one seed; see `make_rows`."""
    return SyntheticData(
        Dataset.from_list(make_rows("demonstrations", num_demonstrations, tasks=tasks, noise=noise, seed=seed)),
        Dataset.from_list(make_rows("preferences", num_preferences, tasks=tasks, seed=seed)),
        Dataset.from_list(make_rows("test", num_test, tasks=tasks, seed=seed)),
    )


def make_rows(
    role: Role,
    num_rows: int,
    *,
    tasks: Sequence[str] | None = None,
    noise: float = 0.0,
    slips: float = 0.0,
    seed: int = 0,
) -> list[Row]:
    """Rows of one set: the tasks in turns, no question twice.

    Args:
        role: `demonstrations` have a prompt and a completion, `preferences` a right and a wrong answer,
            `prompts` and `test` the solution.
        tasks: names among `TASKS`; None takes all.
        noise: share of the demonstrations that give a wrong answer, in 0..1. The wrong answers of demonstrations and of
            preferences are mistakes of the same kinds.
        slips: share of the rejected answers that are no such mistake, but the right answer with a symbol or more
            written as another, as a policy that samples writes them; in 0..1.

    Raises:
        ConfigError: an unknown task, or more rows than there are problems.
    """
    assert role in get_args(Role), role
    drawn = [_problems(name, role, seed) for name in _known(tasks)]
    random = Random(f"{seed} {role} answers")
    rows = []
    for i in range(num_rows):
        name, problem = next(drawn[i % len(drawn)])
        rows.append(
            {
                "prompt": _turn("user", problem.question),
                **_ANSWERS[role](problem, _Shares(noise, slips), random),
                "task": name,
            }
        )
    return rows


class _Shares(NamedTuple):
    noise: float
    slips: float


def _demonstration(problem: Problem, shares: _Shares, random: Random) -> Row:
    is_wrong = random.random() < shares.noise
    return {"completion": _turn("assistant", _mistake(problem, random) if is_wrong else problem.solution)}


def _preference(problem: Problem, shares: _Shares, random: Random) -> Row:
    is_slip = shares.slips > 0 and random.random() < shares.slips
    rejected = slip(problem.solution, random) if is_slip else _mistake(problem, random)
    return {"chosen": _turn("assistant", problem.solution), "rejected": _turn("assistant", rejected)}


def _solution(problem: Problem, shares: _Shares, random: Random) -> Row:
    return {"solution": problem.solution}


_ANSWERS: dict[Role, Callable[[Problem, _Shares, Random], Row]] = {
    "demonstrations": _demonstration,
    "preferences": _preference,
    "prompts": _solution,
    "test": _solution,
}


def _mistake(problem: Problem, random: Random) -> str:
    return problem.mistakes[random.randrange(len(problem.mistakes))]


def _problems(task: str, role: Role, seed: int) -> Iterator[tuple[str, Problem]]:
    """Problems of a task that are the role's, no question twice, in an order of the seed's."""
    random = Random(f"{seed} {role} {task}")
    seen: set[str] = set()
    while True:
        for _ in range(_DRAWS_A_ROW):
            problem = TASKS[task](random)
            if problem.question not in seen and _share(task, problem.key) in _SHARES[role]:
                break
        else:
            raise ConfigError(
                f"synthetic: the task {task!r} has hardly more than the {len(seen):,} problems that were found for "
                f"{role}; ask for fewer rows, or add tasks."
            )
        seen.add(problem.question)
        yield task, problem


def _share(task: str, key: str) -> int:
    return int.from_bytes(hashlib.sha256(f"{task} {key}".encode()).digest()[:8], "big") % 10


def _known(tasks: Sequence[str] | None) -> list[str]:
    names = list(TASKS) if tasks is None else list(dict.fromkeys(tasks))
    for name in names:
        if name not in TASKS:
            near = difflib.get_close_matches(name, TASKS, n=1)
            hint = f" (nearest: {near[0]!r})" if near else ""
            raise ConfigError(f"synthetic.tasks: unknown task {name!r}{hint}; there are {', '.join(TASKS)}.")
    if not names:
        raise ConfigError(f"synthetic.tasks is empty; name some of {', '.join(TASKS)}, or leave it out for all.")
    return names


def _turn(role: str, content: str) -> list[dict[str, str]]:
    return [{"role": role, "content": content}]
