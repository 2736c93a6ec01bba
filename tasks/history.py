"""How long each stage took when it last ran here: what `tuneline plan` estimates from. Losing it loses no result."""

import json
import os
from dataclasses import dataclass
from pathlib import Path

from tasks.summary import RunSummary

HISTORY = Path(".work/history.json")


@dataclass(frozen=True)
class PastRun:
    """The last time that a stage ran to its end."""

    seconds: float
    steps: int | None
    """Optimizer steps; None for a stage that does not train."""


def read_history(root: Path) -> dict[str, PastRun]:
    """By stage; empty when nothing was run yet, or the record is damaged."""
    try:
        record = json.loads((root / HISTORY).read_text())
        return {name: PastRun(float(past["seconds"]), past["steps"]) for name, past in record.items()}
    except (OSError, ValueError, KeyError, TypeError):
        return {}


def add_to_history(root: Path, run: RunSummary) -> None:
    """Notes the stages that this run computed."""
    history = read_history(root)
    for stage in run.stages:
        if stage.state == "ran":
            steps = stage.metrics.get("steps")
            history[stage.name] = PastRun(stage.seconds, None if steps is None else int(steps))
    path = root / HISTORY
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_suffix(f".{os.getpid()}.tmp")
    aside.write_text(json.dumps({name: vars(past) for name, past in history.items()}, indent=1))
    os.replace(aside, path)
