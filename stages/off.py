"""A stage that the config turns off: it has the outputs that dvc.yaml expects, and in them a note that says why."""

from __future__ import annotations

import shutil
from pathlib import Path

OFF_NOTE = "OFF.txt"
_FOLDERS = {"ppo": ("rollouts",), "grpo": ("rollouts",)}  # outputs among the reports
# What dvc.yaml draws of a stage's curve.csv: a column even where nothing was logged.
PLOTTED = {
    "sft": ("train/loss",),
    "reward": ("train/loss", "train/accuracy"),
    "dpo": ("train/loss", "train/rewards/accuracies"),
    "ppo": ("train/reward", "train/rewards/verifier/mean", "train/completions/mean_length"),
    "grpo": ("train/reward", "train/completions/mean_length"),
    "collect": (),
}


def write_nothing(name: str, work: Path, reason: str) -> None:
    """Fill a work folder: a note instead of a model, no metrics, curves without a point."""
    final, report = work / "final", work / "report"
    for folder in (final, report):
        shutil.rmtree(folder, ignore_errors=True)
    for folder in (final, *(report / name for name in _FOLDERS.get(name, ()))):
        folder.mkdir(parents=True)
        (folder / OFF_NOTE).write_text(f"{reason}\n", encoding="utf-8")
    report.mkdir(exist_ok=True)
    (report / "metrics.json").write_text("{}\n")
    (report / "curve.csv").write_text(",".join(("step", *PLOTTED[name])) + "\n")


def why_off(model: Path) -> str | None:
    """What the note in the folder of a stage's model says; None where there is no such note."""
    note = model / OFF_NOTE
    return note.read_text(encoding="utf-8").strip() if note.is_file() else None
