"""How a run ended, and for one that did not end well: what was told, the end of the log, and how to go on."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from tasks.progress import log_file
from tasks.report_text import Limits
from tasks.summary import RunSummary, StageSummary

_LOG_LINES = 200


@dataclass(frozen=True)
class Trouble:
    """A stage that failed or was stopped."""

    stage: str
    state: str
    error: str
    log: str
    """The end of the stage's log; empty where it has none of this run."""
    log_path: str


def read_troubles(root: Path, run: RunSummary, limits: Limits) -> list[Trouble]:
    """Of every stage that failed or was stopped, in the order of the line."""
    return [_trouble(root, run, stage, limits) for stage in run.stages if stage.state in ("failed", "stopped")]


def _trouble(root: Path, run: RunSummary, stage: StageSummary, limits: Limits) -> Trouble:
    path = log_file(root, stage.name, run.started.timestamp() - 1)
    log = ""
    if path is not None:
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
        log = limits.end("\n".join(lines[-_LOG_LINES:]))
        if len(lines) > _LOG_LINES:
            limits.left_out["lines of logs"] += len(lines) - _LOG_LINES
    return Trouble(stage.name, stage.state, limits.end(stage.error), log, str(path.relative_to(root)) if path else "")


def outcome(run: RunSummary) -> str:
    """In a few words, for titles and messages."""
    by_state = {state: [s.name for s in run.stages if s.state == state] for state in ("failed", "stopped")}
    if by_state["failed"]:
        return f"failed in {', '.join(by_state['failed'])}"
    if run.stopped or by_state["stopped"]:
        return f"stopped in {', '.join(by_state['stopped'])}" if by_state["stopped"] else "stopped"
    if run.all_cached:
        return "nothing had to be computed again"
    return "finished"
