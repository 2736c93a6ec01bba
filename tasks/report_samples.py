"""Texts side by side: what the policies answered, what was preferred, what was tried in training; with differences."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from tasks.report_parts import read_json
from tasks.report_text import Difference, Limits, difference, prompt_parts

_PAIRS_SHOWN = 8
_ROLLOUTS_SHOWN = 4
_LONG = 120  # characters


@dataclass(frozen=True)
class Answer:
    """What one policy answered."""

    policy: str
    parts: Difference
    """The text, with what differs from the answer of the first policy; without changes where there is no other."""
    is_same: bool
    """Word for word what the first policy answered."""
    correct: bool | None
    reward: float | None
    num_tokens: int | None
    finished: bool


@dataclass(frozen=True)
class Sample:
    """One prompt and what each policy made of it."""

    number: int
    task: str
    solution: str | None
    prompt: list[tuple[str, str]]
    answers: list[Answer]

    @property
    def is_long(self) -> bool:
        """Whether answers need room to be read."""
        return any(sum(len(text) for _, text in answer.parts) > _LONG for answer in self.answers)

    @property
    def num_different(self) -> int:
        return len({"".join(text for kind, text in a.parts if kind != "gone") for a in self.answers})


@dataclass(frozen=True)
class Pair:
    """A held-out preference."""

    prompt: list[tuple[str, str]]
    chosen: str
    rejected: Difference
    task: str


@dataclass(frozen=True)
class Rollout:
    """One completion of an online stage's training."""

    step: int
    prompt: str
    completion: str
    rewards: dict[str, float | None]  # by function
    advantage: float
    num_tokens: int
    is_finished: bool


def read_samples(root: Path, limits: Limits) -> list[Sample]:
    """The completions that evaluate put side by side, each against that of the first policy."""
    known = read_json(root / "reports" / "evaluate" / "files" / "samples.json")
    known = [sample for sample in known if isinstance(sample, dict)] if isinstance(known, list) else []
    shown = limits.rows("samples", known, limits.num_samples)
    return [
        Sample(
            number=i,
            task=limits.text(sample.get("task") or ""),
            solution=None if sample.get("solution") is None else limits.text(sample["solution"]),
            prompt=_prompt(sample.get("prompt", ""), limits),
            answers=list(_answers(sample.get("answers") or {}, limits)),
        )
        for i, sample in enumerate(shown, 1)
    ]


def _answers(answers: dict[str, Any], limits: Limits) -> Iterator[Answer]:
    first: str | None = None
    for policy, answer in answers.items():
        text = limits.text(answer.get("text", ""))
        yield Answer(
            policy=policy,
            parts=difference(first, text) if first is not None else ([("same", text)] if text else []),
            is_same=first == text,
            correct=answer.get("correct"),
            reward=answer.get("reward"),
            num_tokens=answer.get("num_tokens"),
            finished=bool(answer.get("finished", True)),
        )
        first = text if first is None else first


def read_pairs(root: Path, limits: Limits) -> list[Pair]:
    """The first held-out preferences, with what makes the rejected answer another one."""
    try:
        file = pq.ParquetFile(root / "data" / "prepared" / "preference" / "eval.parquet")
        rows = next(file.iter_batches(batch_size=_PAIRS_SHOWN)).to_pylist() if file.metadata.num_rows else []
    except (OSError, pa.ArrowException):
        return []
    pairs = []
    for row in rows:
        chosen, rejected = (limits.text(_reply(row.get(side))) for side in ("chosen", "rejected"))
        changes = difference(chosen, rejected)
        pairs.append(Pair(_prompt(row.get("prompt") or "", limits), chosen, changes, str(row.get("task") or "")))
    return pairs


def _reply(messages: Any) -> str:
    """What is said in a plain answer, or in the messages of one."""
    return "\n".join(text for _, text in prompt_parts(messages))


def read_rollouts(root: Path, stage: str, limits: Limits) -> list[Rollout]:
    """A few rollouts of the first, a middle and the last generation of a stage."""
    try:
        table = pq.ParquetFile(root / "reports" / stage / "rollouts" / "rollouts.parquet")
    except (OSError, pa.ArrowException):
        return []
    steps = [table.metadata.row_group(i).num_rows for i in range(table.num_row_groups)]
    chosen = sorted({0, len(steps) // 2, len(steps) - 1}) if steps else []
    return [
        Rollout(
            step=row["step"],
            prompt=limits.text(row["prompt"]),
            completion=limits.text(row["completion"]),
            rewards={name.removeprefix("rewards/"): row[name] for name in row if name.startswith("rewards/")},
            advantage=row["advantage"],
            num_tokens=row["num_tokens"],
            is_finished=row["is_finished"],
        )
        for group in chosen
        for row in table.read_row_group(group).slice(0, _ROLLOUTS_SHOWN).to_pylist()
    ]


def _prompt(prompt: Any, limits: Limits) -> list[tuple[str, str]]:
    parts = limits.rows("messages of long dialogues", prompt_parts(prompt), 12)
    return [(role, limits.text(text)) for role, text in parts]
