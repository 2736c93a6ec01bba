"""How long each stage took when it last ran here: what `tuneline plan` estimates from. Losing it loses no result."""

import json
from dataclasses import dataclass
from pathlib import Path

from stages.storage import write_whole
from tasks.summary import RunSummary

HISTORY = Path(".work/history.json")


@dataclass(frozen=True)
class PastRun:
    """The last time that a stage ran to its end."""

    seconds: float
    steps: int | None
    """Optimizer steps; None for a stage that does not train."""


def read_history(root: Path, config: str) -> dict[str, PastRun]:
    """By stage, for a config of that name; empty when it was not run yet, or the record is damaged."""
    return _read(root).get(config, {})


def _read(root: Path) -> dict[str, dict[str, PastRun]]:
    try:
        return {
            config: {stage: PastRun(float(past["seconds"]), past["steps"]) for stage, past in stages.items()}
            for config, stages in json.loads((root / HISTORY).read_text()).items()
        }
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return {}


def add_to_history(root: Path, run: RunSummary) -> None:
    """Notes the stages that this run computed."""
    history = _read(root)
    for stage in run.stages:
        if stage.state == "ran" and not stage.off:
            steps = stage.metrics.get("steps")
            history.setdefault(run.name, {})[stage.name] = PastRun(stage.seconds, None if steps is None else int(steps))
    write_whole(root / HISTORY, json.dumps(history, indent=1, default=vars))
