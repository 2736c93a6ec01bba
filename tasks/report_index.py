"""The runs of a checkout: the report and the record of each are kept, and a page lists them."""

from __future__ import annotations

import os
import shutil
from dataclasses import dataclass
from pathlib import Path

from stages.storage import write_whole
from tasks.report import REPORT_FILE, page_environment
from tasks.report_outcome import outcome
from tasks.report_text import number
from tasks.summary import RunSummary, load_run, save_run
from tuneline.errors import TunelineError
from tuneline.logging import get_logger

logger = get_logger(__name__)

RUNS = Path("reports/runs")
INDEX_FILE = Path("reports/index.html")
NUM_KEPT = 100
_METRICS_SHOWN = (
    ("evaluate", "sft/accuracy", "sft"),
    ("evaluate", "dpo/accuracy", "dpo"),
    ("evaluate", "ppo/accuracy", "ppo"),
    ("evaluate", "grpo/accuracy", "grpo"),
    ("evaluate", "reward_model/pairwise_accuracy", "pairs ranked rightly"),
)


@dataclass(frozen=True)
class KeptRun:
    """A row of the page."""

    run: RunSummary
    outcome: str
    report: str
    """Its file from the page; empty where it could not be written."""
    metrics: list[str]


def keep_run(root: Path, run: RunSummary) -> None:
    """Keeps the report that was just written, and the record; the oldest beyond `NUM_KEPT` go."""
    folder = root / RUNS / f"{run.started:%Y%m%d-%H%M%S-%f}"
    folder.mkdir(parents=True, exist_ok=True)
    save_run(folder / "run.json", run)
    report = folder / "report.html"
    report.unlink(missing_ok=True)
    try:
        os.link(root / REPORT_FILE, report)
    except OSError:  # another file system
        shutil.copy2(root / REPORT_FILE, report)
    kept = sorted(path for path in (root / RUNS).iterdir() if (path / "run.json").is_file())
    for path in kept[:-NUM_KEPT]:
        shutil.rmtree(path, ignore_errors=True)


def write_index(root: Path) -> Path:
    """Write reports/index.html, the newest run first, and return its path.

    Raises:
        TunelineError: no run was kept.
    """
    runs = read_runs(root)
    if not runs:
        raise TunelineError(f"{root / RUNS} has no run yet; `tuneline run CONFIG` leaves one there.")
    titles = [title for _, _, title in _METRICS_SHOWN]
    html = page_environment().get_template("index.html.jinja").render(runs=runs, titles=titles, num_kept=NUM_KEPT)
    write_whole(root / INDEX_FILE, html)
    return root / INDEX_FILE


def read_runs(root: Path) -> list[KeptRun]:
    """The newest first; a record that cannot be read is passed over with a warning."""
    runs = []
    for path in sorted((root / RUNS).glob("*/run.json"), reverse=True):
        try:
            run = load_run(path)
        except TunelineError as error:
            logger.warning("%s", error)
            continue
        report = path.with_name("report.html")
        link = f"runs/{path.parent.name}/report.html" if report.is_file() else ""
        runs.append(KeptRun(run, outcome(run), link, [_metric(run, stage, name) for stage, name, _ in _METRICS_SHOWN]))
    return runs


def _metric(run: RunSummary, stage: str, name: str) -> str:
    values = next((s.metrics for s in run.stages if s.name == stage and s.state in ("ran", "cached")), {})
    return number(values.get(name))
