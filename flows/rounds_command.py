"""`tuneline rounds`: what happens around the flow, from the settings to the final table."""

import argparse
import shlex
from importlib import import_module
from pathlib import Path

from rich.console import Console
from rich.table import Table

from flows.running import check_server
from flows.server import start_temporary_server
from flows.settings import has_prefect_server
from tasks.display import display
from tuneline.errors import StageError


def run_rounds(root: Path, console: Console, options: argparse.Namespace, config: Path) -> int:
    """Runs the loop and prints its table; returns the exit code."""
    if has_prefect_server():
        check_server()
    else:
        server = start_temporary_server(root / ".prefect" / "server.log")
        with console.status("Starting Prefect ..."):
            import_module("flows.rounds")  # which imports Prefect, while the server does the same
            server.wait_until_ready()
    from flows.rounds import collecting_config, rounds
    from tasks.rounds import REPORTS, Rounds

    overrides = [*options.overrides, *([f"collect.labels={options.labels}"] if options.labels else [])]
    checked = collecting_config(str(config), overrides, root)
    try:
        with display.shown_on(console):
            rounds(
                config=str(config),
                overrides=options.overrides,
                num_rounds=options.rounds,
                labels=options.labels,
                retries=options.retries,
                retry_delay=options.retry_delay,
                port=options.port,
                root=str(root),
            )
    except StageError as failure:
        console.print(f"\n{failure}\n", markup=False, soft_wrap=True)
        console.print(f"Go on where it stopped:  {_again(options, config)}", markup=False, soft_wrap=True)
        return 1 if getattr(failure, "retriable", True) else 2
    console.print(_table(*Rounds(root, checked).table()))
    console.print(f"Table and plot: {REPORTS / checked.name}", markup=False, soft_wrap=True)
    return 0


def _table(header: list[str], rows: list[list[str]]) -> Table:
    """A column a round; the intervals are in the files."""
    table = Table(box=None, pad_edge=False, padding=(0, 3, 0, 0), header_style="bold")
    table.add_column(header[0])
    for row in rows:
        table.add_column(row[0], justify="right", no_wrap=True)
    for number, name in enumerate(header[1:], 1):
        table.add_row(name, *(row[number].partition(" (")[0] for row in rows))
    return table


def _again(options: argparse.Namespace, config: Path) -> str:
    changes = [part for change in options.overrides for part in ("--set", change)]
    labels = ["--labels", options.labels] if options.labels else []
    return shlex.join(["tuneline", "rounds", str(config), "--rounds", str(options.rounds), *labels, *changes])
