"""What a run did not use: rows that were skipped or fell out, texts that were cut, answers that were cut off."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tasks.report_parts import DataSummary, read_curves
from tasks.report_text import Limits
from tasks.summary import read_metrics

_STEPS = {
    "skipped": "bad rows, skipped",
    "identical_sides": "pairs whose sides are the same, left out",
    "duplicates": "duplicates, left out",
    "overlapping": "rows that held-out data has too, left out",
}
_DATASETS = {"train_dataset": "training rows", "eval_dataset": "held-out rows"}
_CUT_OFF = "completions/clipped_ratio"
_BAD_ROWS_SHOWN = 10


@dataclass(frozen=True)
class Loss:
    """One way in which something was lost, and how much."""

    stage: str
    what: str
    count: float | None
    """None where only the share is known."""
    of: float | None = None

    @property
    def share(self) -> float | None:
        return self.count / self.of if self.count is not None and self.of else None


@dataclass(frozen=True)
class BadRow:
    """A row of a source that could not be used."""

    file: str
    row: str
    reason: str


def read_losses(root: Path, data: DataSummary | None, stages: list[str], limits: Limits) -> tuple[list[Loss], int]:
    """What was lost, by stage, and how many further counts are kept that are zero."""
    every = [*_of_data(data)]
    for stage in stages:
        every += _of_training(root, stage)
    every += _of_evaluation(root)
    lost = [loss for loss in every if loss.count]
    return limits.rows("rows of what was cut or left out", lost), len(every) - len(lost)


def _of_data(data: DataSummary | None) -> Iterator[Loss]:
    for source in data.sources if data else ():
        for step, what in _STEPS.items():
            if step in source.counts:
                yield Loss("prepare", f"{source.name}: {what}", source.counts[step], source.counts.get("read"))


def _of_training(root: Path, stage: str) -> Iterator[Loss]:
    metrics = read_metrics(root, stage)
    for name, what in _DATASETS.items():
        counts = {
            key.rpartition("/")[2]: value for key, value in metrics.items() if key.startswith(f"data/{name}/num_")
        }
        if "num_dropped" in counts:
            yield Loss(stage, f"{what}, dropped as too long", counts["num_dropped"], counts.get("num_rows"))
        if "num_truncated" in counts:
            yield Loss(stage, f"{what}, cut to the length limit", counts["num_truncated"], counts.get("num_rows"))
        if "num_tokens_cut" in counts:
            tokens = counts["num_tokens_cut"] + counts.get("num_tokens", 0)
            yield Loss(stage, f"tokens cut from {what}", counts["num_tokens_cut"], tokens)
    shares = next((curve.series.get("train") for curve in read_curves(root, stage) if curve.name == _CUT_OFF), None)
    if shares is not None:
        mean = sum(shares[1]) / len(shares[1])
        yield Loss(stage, "completions in training, cut off at the length limit (mean share)", mean, 1.0)


def _of_evaluation(root: Path) -> Iterator[Loss]:
    metrics = read_metrics(root, "evaluate")
    num_prompts, num_pairs = (metrics.get(name, 0) for name in ("num_prompts", "num_pairs"))
    for name, what, kept in (
        ("num_prompts_too_long", "test prompts that leave no room for an answer", num_prompts),
        ("num_pairs_too_long", "held-out pairs that the reward model cannot read", num_pairs),
    ):
        if name in metrics:
            yield Loss("evaluate", what, metrics[name], kept + metrics[name])
    for name, value in metrics.items():
        policy, _, measure = name.partition("/")
        if measure == "share_cut_off":
            count = round(value * num_prompts) if num_prompts else value
            yield Loss("evaluate", f"answers of {policy}, cut off at the length limit", count, num_prompts or 1.0)


def read_bad_rows(root: Path, limits: Limits) -> list[BadRow]:
    """The first rows that prepare has skipped, with the reason."""
    try:
        with (root / "data" / "prepared" / "skipped.jsonl").open(encoding="utf-8") as file:
            lines = [line for _, line in zip(range(_BAD_ROWS_SHOWN), file, strict=False)]
        rows = [json.loads(line) for line in lines]
    except (OSError, ValueError):
        return []
    return [
        BadRow(
            limits.text(row.get("file", "")),
            str(row.get("row", "")),
            limits.text(": ".join(str(row[key]) for key in ("field", "reason") if row.get(key))),
        )
        for row in rows
    ]
