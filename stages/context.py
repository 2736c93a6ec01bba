"""What a stage's own process is given: its settings, and the folder that it works in."""

from __future__ import annotations

import logging
import os
import signal
import sys
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

from stages.loading import load_params
from stages.schema import PipelineConfig
from stages.supervise import die_with_parent, watch_owner
from tuneline.errors import TunelineError

WORK = "TUNELINE_WORK"
USER_ERROR_FILE = "user_error.txt"


@dataclass(frozen=True)
class StageContext:
    """One run of one stage. What it makes lies in `work`, from where it is published."""

    name: str
    config: PipelineConfig
    work: Path

    @classmethod
    def load(cls, name: str) -> StageContext:
        """The context that the driver has prepared; without one, that of params.yaml and a folder `manual`."""
        logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stdout, force=True)
        given = os.environ.get(WORK)
        work = Path(given) if given else Path(".work") / name / "manual"
        work.mkdir(parents=True, exist_ok=True)
        sys.excepthook = _Excepthook(work)
        if given:
            die_with_parent(signal.SIGKILL)
            watch_owner()
        return cls(name, load_params(work / "config.json" if given else Path("params.yaml")), work)

    @property
    def final(self) -> Path:
        """What is published as the stage's outputs."""
        return self.work / "final"

    @property
    def report(self) -> Path:
        """What is published as reports/NAME."""
        return self.work / "report"

    @property
    def metrics_file(self) -> Path:
        return self.work / "metrics.jsonl"


@dataclass(frozen=True)
class _Excepthook:
    """An error that the user can mend is one message, kept for the driver: a launcher passes on no exit code."""

    work: Path

    def __call__(self, kind: type[BaseException], error: BaseException, traceback: TracebackType | None) -> None:
        if isinstance(error, TunelineError):
            (self.work / USER_ERROR_FILE).write_text(str(error), encoding="utf-8")
            print(f"error: {error}", file=sys.stderr, flush=True)
        else:
            sys.__excepthook__(kind, error, traceback)
