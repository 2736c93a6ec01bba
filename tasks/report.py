"""The HTML report of a run: one file with everything in it, for light and dark screens of any width, and for paper.

Each part is read by a module of its own (`report_*.py`) and drawn by a template of its own (`report_templates/`). All
that comes from data, models, configs and logs is escaped, and bounded: what a part leaves out is counted on the page.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jinja2
import yaml

from stages.storage import write_whole
from tasks.report_collection import read_collection
from tasks.report_costs import read_run_costs
from tasks.report_decisions import read_gates, read_promotion
from tasks.report_evaluation import evaluation_tables
from tasks.report_figures import CURVES, Drawer
from tasks.report_losses import read_bad_rows, read_losses
from tasks.report_outcome import outcome, read_troubles
from tasks.report_parts import read_data_summary, read_environment, read_json
from tasks.report_samples import read_pairs, read_rollouts, read_samples
from tasks.report_text import Limits, breakable, command, duration, number, share, size
from tasks.summary import RunSummary, headline, read_metrics, read_off
from tuneline.evaluation import figures

REPORT_FILE = Path("reports/report.html")
MOST_BYTES = 8 * 2**20
"""A page that would be larger shows less of what may be long."""
TEMPLATES = Path(__file__).parent / "report_templates"


def write_report(root: Path, run: RunSummary) -> Path:
    """Write reports/report.html on a run and on what lies in the checkout, and return its path."""
    write_whole(root / REPORT_FILE, render_report(root, run))
    return root / REPORT_FILE


def render_report(root: Path, run: RunSummary, limits: Limits | None = None) -> str:
    """The report as HTML, of `MOST_BYTES` at most.

    Args:
        limits: how much of what may be long is shown; less, where the page would become too large.
    """
    limits = limits or Limits()
    html = _render(root, run, limits)
    for times in (4, 16, 64, 256):
        if len(html.encode()) <= MOST_BYTES:
            break
        html = _render(root, run, limits.smaller(times))
    return html


def _render(root: Path, run: RunSummary, limits: Limits) -> str:
    drawer = Drawer(root, limits)
    data = read_data_summary(root)
    evaluation = read_json(root / "reports" / "evaluate" / "files" / "evaluation.json")
    evaluation = evaluation if isinstance(evaluation, dict) else {}
    trained = list(CURVES)
    earlier = {stage.name for stage in run.stages if stage.state not in ("ran", "cached")}
    losses, num_without_loss = read_losses(root, data, trained, limits)
    parts: dict[str, Any] = {
        "run": run,
        "outcome": outcome(run),
        "troubles": read_troubles(root, run, limits),
        "headlines": {stage.name: limits.text(headline(stage)) for stage in run.stages},
        "earlier": earlier,  # what there is of these stages, an earlier run has left
        "tiles": _tiles(run, {} if "evaluate" in earlier else evaluation),
        "promotion": read_promotion(root, run, limits),
        "gates": read_gates(root, run, limits),
        "collection": read_collection(root, run.config, limits),
        "data": data,
        "length_figures": drawer.lengths(data),
        "pairs": read_pairs(root, limits),
        "losses": losses,
        "num_without_loss": num_without_loss,
        "bad_rows": read_bad_rows(root, limits),
        "curves": {stage: drawer.curves(stage) for stage in trained},
        "metrics": {stage: limits.rows("metrics", _metrics(root, stage)) for stage in trained},
        "off": {stage: read_off(root, stage) for stage in trained},
        "rollouts": {stage: read_rollouts(root, stage, limits) for stage in ("ppo", "grpo")},
        "evaluation": evaluation,
        "tables": evaluation_tables(evaluation, limits),
        "figures": {part: drawer.stored(part) for part in ("evaluation", "tradeoffs")},
        "trajectories": drawer.tradeoffs(),
        "samples": read_samples(root, limits),
        "costs": read_run_costs(root, run),
        "config": limits.block(yaml.safe_dump(run.config, sort_keys=False, allow_unicode=True)),
        "environment": read_environment(root),
    }
    # last, when all has been counted
    html = page_environment().get_template("report.html.jinja").render(**parts, left_out=dict(limits.left_out))
    return html.encode("utf-8", "replace").decode()  # half a surrogate pair, from data, cannot be written


def page_environment() -> jinja2.Environment:
    """How pages are made: everything is escaped, and a name that is not there is an error."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        extensions=["jinja2.ext.do"],
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "number": number,
        "plain": "{:,.6g}".format,
        "share": share,
        "size": size,
        "duration": duration,
        "breakable": breakable,
        "command": command,
    }
    environment.globals |= {"inks": figures.INK, "series": figures.SERIES}
    return environment


def _metrics(root: Path, stage: str) -> list[tuple[str, float]]:
    """What a stage's metrics.json holds, without the counts of rows, which have a table of their own."""
    return [(name, value) for name, value in read_metrics(root, stage).items() if not name.startswith("data/")]


def _tiles(run: RunSummary, evaluation: dict[str, Any]) -> list[tuple[str, str, str]]:
    """(label, value, detail) of what the run comes down to."""
    tiles = []
    for name, measures in (evaluation.get("measures") or {}).items():
        measure = "pairwise_accuracy" if name == "reward_model" else "accuracy"
        if isinstance(measures.get(measure), list):
            estimate, low, high = measures[measure]
            label = "reward model: pairs ranked rightly" if name == "reward_model" else f"{name}: accuracy"
            tiles.append((label, f"{estimate:.1%}", f"{low:.1%} to {high:.1%}"))
    num_cached = sum(stage.state == "cached" for stage in run.stages)
    tiles.append(("this run", duration(run.seconds), f"{num_cached} of {len(run.stages)} stages were up to date"))
    return tiles
