"""How far a stage has got, read from the metrics file that it appends to: .work/STAGE/*/metrics.jsonl."""

import json
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

_TAIL_BYTES = 64 * 1024


@dataclass(frozen=True)
class Progress:
    """The last line of a metrics file."""

    step: int
    max_steps: int | None
    metrics: dict[str, float] = field(default_factory=dict)

    @property
    def share(self) -> float | None:
        """Between 0 and 1; None when the number of steps is not known."""
        return min(1.0, self.step / self.max_steps) if self.max_steps else None

    def describe(self) -> str:
        """Such as `120/400 steps, loss 0.61`."""
        steps = f"{self.step}/{self.max_steps} steps" if self.max_steps else f"{self.step} steps"
        values = {name.removeprefix("train/"): value for name, value in self.metrics.items()}
        shown = [f"{name} {values[name]:.3g}" for name in _SHOWN if name in values]
        return ", ".join([steps, *shown[:2]])


_SHOWN = (
    "reward",
    "completions/mean_length",
    "loss",
    "rewards/accuracies",
    "accuracy",
    "mean_token_accuracy",
    "eval_loss",
)


def read_progress(root: Path, stage: str, since: float) -> Progress | None:
    """What the stage last wrote about itself after `since` (a time.time()); None before it has."""
    path = _newest(root, stage, "metrics.jsonl", since)
    if path is None:
        return None
    with path.open("rb") as file:
        file.seek(max(0, path.stat().st_size - _TAIL_BYTES))
        lines = file.read().decode(errors="replace").split("\n")
    last: Progress | None = None
    for line in lines[:-1]:  # what follows the last line break is still being written
        last = _parse(line, last) or last
    return last


def _parse(line: str, before: Progress | None) -> Progress | None:
    try:
        record = json.loads(line)
        step, max_steps = int(record["step"]), record.get("max_steps")
        metrics = {name: float(value) for name, value in record.get("metrics", {}).items()}
    except (ValueError, KeyError, TypeError, AttributeError):
        return None  # the first line of the tail may be cut
    earlier = before.metrics if before else {}
    return Progress(step, max_steps or (before.max_steps if before else None), {**earlier, **metrics})


def log_file(root: Path, stage: str, since: float) -> Path | None:
    """The log of the stage's present run, where it keeps one."""
    return _newest(root, stage, "log.txt", since)


def user_error(root: Path, stage: str, since: float) -> str:
    """What the stage's present run says that the user has to mend; empty when it says nothing."""
    path = _newest(root, stage, "user_error.txt", since)
    return path.read_text(encoding="utf-8").strip() if path else ""


def _newest(root: Path, stage: str, name: str, since: float) -> Path | None:
    """The file of that name in the work folder that was written to last, if that was after `since` (a time.time())."""
    found = []
    for path in (root / ".work" / stage).glob(f"*/{name}"):
        with suppress(FileNotFoundError):  # the stage removes folders of runs that are over
            found.append((path.stat().st_mtime, path))
    changed, newest = max(found, default=(0.0, None))
    return newest if changed >= since else None
