"""What a run leaves on the terminal: the final table, the report, and how to open the two UIs."""

from pathlib import Path

from rich.console import Console
from rich.table import Table
from rich.text import Text

from flows.settings import mlflow_ui_command, prefect_ui_command
from tasks.display import in_words
from tasks.history import read_history
from tasks.publishing import REPORT
from tasks.summary import RunSummary, headline
from tasks.tracking import tracking_uri

_STYLES = {
    "ran": "green",
    "cached": "dim",
    "failed": "bold red",
    "stopped": "yellow",
    "not started": "dim",
    "off": "dim",
}


def print_end(root: Path, console: Console, run: RunSummary) -> None:
    """The table of a run's stages, where its report lies, and the commands that show more."""
    console.print()
    console.print(stage_table(root, run))
    if run.all_cached:
        console.print(f"Nothing to do: {_stages_in_words(run)} up to date, nothing was computed again.", style="bold")
    console.print()
    if (root / REPORT).is_file():
        _print_pairs(console, {"Report": str(root / REPORT)})
    commands = {"Experiments": mlflow_ui_command(root, tracking_uri(root)), "Runs": prefect_ui_command(root)}
    _print_pairs(console, commands)


def stage_table(root: Path, run: RunSummary) -> Table:
    """Stage, time, cached or run, key metrics."""
    past = read_history(root, run.name)
    table = Table(box=None, pad_edge=False, padding=(0, 3, 0, 0), header_style="bold")
    table.add_column("Stage")
    table.add_column("Time", justify="right")
    table.add_column("State")
    table.add_column("Key metrics", overflow="fold")
    for stage in run.stages:
        state = stage.shown_state
        took = in_words(stage.seconds) if state in ("ran", "failed", "stopped") else "-"
        if state == "cached" and stage.name in past:
            state_text = f"cached (took {in_words(past[stage.name].seconds)})"
        else:
            state_text = state
        table.add_row(stage.name, took, Text(state_text, style=_STYLES[state]), headline(stage))
    if not run.all_cached:
        table.add_row(Text("total", style="bold"), Text(in_words(run.seconds), style="bold"), "", "")
    return table


def _stages_in_words(run: RunSummary) -> str:
    return f"all {len(run.stages)} stages are" if len(run.stages) > 1 else f"{run.stages[0].name} is"


def _print_pairs(console: Console, pairs: dict[str, str]) -> None:
    for name, value in pairs.items():
        console.print(Text(f"{name + ':':<13}", style="bold") + Text(value, style="not bold"), soft_wrap=True)
