"""`tuneline plan` and `status`: what would run, what is up to date. No result is changed."""

import fcntl
import time
from dataclasses import replace
from pathlib import Path

from rich.console import Console
from rich.table import Table
from rich.text import Text

from flows.chosen import RUN_LOCK, plans_of
from stages.loading import load_config, load_params
from stages.supervise import lock_if_free
from tasks.display import in_words
from tasks.estimates import estimate
from tasks.graph import PARAMS_FILE, StagePlan, plan_stages
from tasks.history import read_history
from tasks.progress import read_progress
from tasks.summary import StageSummary, headline, read_metrics, read_off

_SHOWN_REASONS = 4


def show_plan(root: Path, console: Console, config: Path, overrides: list[str]) -> int:
    """What `tuneline run` would do with this config: stages, reasons, steps, tokens and time."""
    checked = load_config(config, overrides, root=root)
    settings = checked.model_dump(mode="json")
    with lock_if_free(root / RUN_LOCK) as is_free:
        plans = plans_of(root, checked, is_free=is_free)
    history = read_history(root, checked.name)
    prepared = all(plan.up_to_date for plan in plans if plan.name == "prepare")
    table = Table(box=None, pad_edge=False, padding=(0, 3, 0, 0), header_style="bold")
    for title in ("Stage", "Plan"):
        table.add_column(title, no_wrap=True)
    for title in ("Steps", "Tokens", "Time"):
        table.add_column(title, justify="right", no_wrap=True)
    table.add_column("Why", overflow="fold")
    total, unknown = 0.0, []
    for plan in plans:
        off = checked.why_off(plan.name)
        if plan.up_to_date or off is not None:
            state, why = ("cached", "up to date") if off is None else ("off", off.removeprefix("off: "))
            table.add_row(plan.name, Text(state, style="dim"), "-", "-", "-", Text(why, style="dim"))
            continue
        expected = estimate(root, plan.name, settings, history.get(plan.name), prepared=prepared)
        if expected.seconds is None:
            unknown.append(plan.name)
        total += expected.seconds or 0.0
        row = (_count(expected.steps), _count(expected.tokens), _time(expected.seconds))
        follows = tuple(name for name in plan.follows if checked.why_off(name) is None)
        table.add_row(plan.name, Text(_verb(plan), style="green"), *row, _why(replace(plan, follows=follows)))
    console.print(table)
    console.print(_conclusion([p for p in plans if checked.why_off(p.name) is None], total, unknown), style="bold")
    return 0


def _verb(plan: StagePlan) -> str:
    return "run" if plan.reasons else "may run"


def _why(plan: StagePlan) -> str:
    reasons = list(plan.reasons)
    if len(reasons) > _SHOWN_REASONS:
        reasons[_SHOWN_REASONS:] = [f"and {len(reasons) - _SHOWN_REASONS} more"]
    return "; ".join(reasons) or f"if {' or '.join(plan.follows) or 'a stage that is off'} makes something new"


def _conclusion(plans: list[StagePlan], total: float, unknown: list[str]) -> str:
    to_run = [plan.name for plan in plans if not plan.up_to_date]
    if not to_run:
        return "Nothing to do: everything is up to date."
    text = f"{len(to_run)} of {len(plans)} stages to run"
    if unknown:
        return f"{text}; how long {', '.join(unknown)} will take is known once they have run here."
    return f"{text}, about {in_words(total)} as measured by their last runs."


def _count(number: int | None) -> str:
    return "-" if number is None else f"{number:,}"


def _time(seconds: float | None) -> str:
    return "-" if seconds is None else f"~{in_words(seconds)}"


def show_status(root: Path, console: Console) -> int:
    """What is up to date under the settings of the last run, what is not and why, and what runs at this moment."""
    config = load_params(root / PARAMS_FILE)
    console.print(Text(f"Settings of the last run: {config.name} (params.yaml)", style="bold"))
    table = Table(box=None, pad_edge=False, padding=(0, 3, 0, 0), header_style="bold")
    for title in ("Stage", "State"):
        table.add_column(title, no_wrap=True)
    table.add_column("What is known", overflow="fold")
    for plan in plan_stages(root):
        if _is_running(root, plan.name):
            progress = read_progress(root, plan.name, time.time() - 24 * 3600)
            table.add_row(plan.name, Text("running", style="yellow"), progress.describe() if progress else "")
        elif plan.up_to_date:
            off = read_off(root, plan.name)
            summary = StageSummary(plan.name, "cached", 0.0, read_metrics(root, plan.name), off)
            text = Text("off", style="dim") if off else Text("up to date", style="green")
            table.add_row(plan.name, text, headline(summary))
        else:
            table.add_row(plan.name, Text("out of date", style="red"), _why(plan))
    console.print(table)
    return 0


def _is_running(root: Path, stage: str) -> bool:
    """Whether a process holds the stage's lock."""
    path = root / ".work" / stage / "lock"
    if not path.is_file():
        return False
    with path.open() as file:
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False
