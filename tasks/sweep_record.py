"""What is known of a sweep's variants: kept in a file, so that the same command goes on after a death."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from stages.git import git_text
from stages.storage import write_whole
from tasks.summary import RunSummary

SWEEPS = Path(".work/sweeps")
VARIANT_RESULT = Path(".work/variant.json")
"""What the process of a variant leaves in its checkout: its RunSummary."""

VariantState = Literal["waiting", "running", "done", "failed"]


@dataclass
class VariantRecord:
    """One variant: what it is, and how it went."""

    name: str
    chosen: dict[str, str]
    seeds: dict[str, str]
    state: VariantState = "waiting"
    stamp: str = ""
    """Of the code, changes and sources that it was done with."""
    mlflow_run: str = ""
    experiment: str = ""
    """The experiment's name in DVC, once it is saved."""
    seconds: float = 0.0
    stages: dict[str, str] = field(default_factory=dict)
    """What became of each stage: ran, cached, failed, ..."""
    stage_seconds: dict[str, float] = field(default_factory=dict)
    metrics: dict[str, float] = field(default_factory=dict)
    """By `stage/name`."""
    error: str = ""

    @property
    def setting(self) -> dict[str, str]:
        return {name: value for name, value in self.chosen.items() if name not in self.seeds}

    def take(self, run: RunSummary) -> None:
        """Notes how its run went."""
        self.seconds = round(run.seconds, 2)
        self.stages = {stage.name: stage.shown_state for stage in run.stages}
        self.stage_seconds = {stage.name: stage.seconds for stage in run.stages}
        self.metrics = {f"{stage.name}/{name}": value for stage in run.stages for name, value in stage.metrics.items()}


@dataclass
class SweepRecord:
    """A whole sweep, in .work/sweeps/KEY/sweep.json."""

    folder: Path
    name: str
    command: str
    variants: dict[str, VariantRecord]
    mlflow_run: str = ""

    @classmethod
    def open(cls, folder: Path, name: str, command: str, variants: Iterable[VariantRecord]) -> SweepRecord:
        """The record that is there, or a new one; one that cannot be read is begun anew."""
        record = cls(folder, name, command, {variant.name: variant for variant in variants})
        known: dict[str, Any] = {}
        try:
            known = json.loads((folder / "sweep.json").read_text(encoding="utf-8"))
            record.mlflow_run = str(known["mlflow_run"])
            for before in known["variants"]:
                if before["name"] in record.variants:
                    record.variants[before["name"]] = VariantRecord(**before)
        except (OSError, ValueError, KeyError, TypeError):
            pass
        for variant in record.variants.values():
            if variant.state in ("running", "failed"):
                variant.state = "waiting"
        return record

    def save(self) -> None:
        text = json.dumps(
            {
                "name": self.name,
                "command": self.command,
                "mlflow_run": self.mlflow_run,
                "variants": [asdict(variant) for variant in self.variants.values()],
            },
            indent=1,
        )
        write_whole(self.folder / "sweep.json", text)


def stamp_of(root: Path, files: Iterable[str]) -> str:
    """Unlike for any other commit, changes to tracked files, or sources: a variant with the same stamp need not run."""
    digest = hashlib.sha256()
    for command in (["rev-parse", "HEAD"], ["diff", "--binary", "HEAD"]):
        digest.update((git_text(root, *command) or "").encode())
    for path in sorted(set(files)):
        place = root / path
        inside = sorted(place.rglob("*")) if place.is_dir() else [place] if place.is_file() else []
        for file in inside:
            status = file.stat()
            digest.update(f"{file} {status.st_size} {status.st_mtime_ns if file.is_file() else 0}\n".encode())
    return digest.hexdigest()[:32]
