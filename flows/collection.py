"""`tuneline collect serve`, `status` and `export`: pairs that the stage collect made, labelled by people."""

import argparse
import os
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from stages.loading import load_params
from tasks.collection import COLLECTED, labels_file, open_store, take_in
from tasks.graph import PARAMS_FILE
from tuneline.collection.export import Exported, preference_data, ties_file, write_rows
from tuneline.collection.store import LabelStore
from tuneline.collection.web import open_server, summary
from tuneline.errors import DataError, TunelineError


def run_collect_command(root: Path, console: Console, options: argparse.Namespace) -> int:
    """One of the three actions; returns the exit code."""
    with _store(root, options) as store:
        match options.action:
            case "serve":
                _serve(store, console, options.port)
            case "status":
                _show_status(store, console)
            case "export":
                _export(store, console, options)
    return 0


def _store(root: Path, options: argparse.Namespace) -> LabelStore:
    """The store that is asked for, with what was collected last in it.

    Raises:
        DataError: a store or pairs that cannot be read, or no pair at all.
    """
    pairs, shared = getattr(options, "pairs", None), getattr(options, "shared", None)
    if options.db is not None:
        path = _given(options.db, root)
        if options.action != "serve" and not path.is_file():
            raise DataError(f"{options.db} does not exist; name the file of a store.")
        store = LabelStore(path, **({} if shared is None else {"shared_share": shared}))
    else:
        config = load_params(root / PARAMS_FILE)
        path = labels_file(root, config.name)
        if pairs is None and not path.is_file() and not (root / COLLECTED / "pairs.jsonl").is_file():
            raise _no_pairs(path.relative_to(root))
        store = open_store(root, config.name, config.collect)
        store.shared_share = store.shared_share if shared is None else shared
    try:
        if pairs is not None:
            from tuneline.collection.pairs import read_pairs

            store.add_pairs(read_pairs(_given(pairs, root)))
        elif options.db is None:
            take_in(root, store)
        if not store.pairs():
            raise _no_pairs(store.path)
    except TunelineError:
        store.close()
        raise
    return store


def _no_pairs(path: Path) -> DataError:
    return DataError(
        f"{path} has no pairs. Give the config a `collect` section and run it: the stage collect samples them."
    )


def _given(path: str, root: Path) -> Path:
    """A path as the user typed it, from the folder of the call."""
    return Path(os.environ.get("TUNELINE_CALLED_FROM", root)) / path


def _serve(store: LabelStore, console: Console, port: int | None) -> None:
    server = open_server(store, port)
    progress = store.progress()
    console.print(f"{progress.answered} of {progress.pairs} pairs are labelled. Label here, and stop with Ctrl-C:")
    console.print(f"  {server.address}", soft_wrap=True, markup=False)
    try:
        server.serve()
    except KeyboardInterrupt:
        told = store.progress()
        console.print(f"\n{told.answered} of {told.pairs} pairs are labelled, all of it in {store.path}.", markup=False)


def _show_status(store: LabelStore, console: Console) -> None:
    console.print(status_table(summary(store)))


def status_table(told: dict[str, Any]) -> Table:
    """Progress and agreement, as the terminal shows them."""
    progress = Table(box=None, pad_edge=False, padding=(0, 3, 0, 0), show_header=False)
    progress.add_row("pairs", str(told["pairs"]))
    progress.add_row("answered", str(told["answered"]))
    progress.add_row("with a preference or a tie", str(told["decided"]))
    for name, count in told["annotators"].items():
        progress.add_row(Text(f"labels of {name}"), str(count))
    agreed = told["agreement"]
    left = "-" if agreed["left_share"] is None else f"{100 * agreed['left_share']:.0f} %"
    progress.add_row("preferred what was shown first", left)
    progress.add_row("pairs labelled by several", str(agreed["pairs"]))
    progress.add_row("raw agreement", _number(agreed["raw"]))
    progress.add_row("Krippendorff's alpha", _number(agreed["alpha"]))
    for two in agreed["kappa"]:
        progress.add_row(Text(f"Cohen's kappa, {' and '.join(two['annotators'])}"), _number(two["kappa"]))
    return progress


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"


def _export(store: LabelStore, console: Console, options: argparse.Namespace) -> None:
    if not options.file.endswith((".jsonl", ".json", ".ndjson")):
        raise DataError(f"{options.file}: give a file that ends in .jsonl; rows are written one a line.")
    path = _given(options.file, Path.cwd())
    exported = preference_data(store, one_row_a=options.one_row_a, rounds=options.rounds, how=options.how)
    write_rows(path, exported.preferences)
    write_rows(ties_file(path), exported.ties)
    console.print(f"{path}: {account(exported)}", soft_wrap=True, markup=False)


def account(exported: Exported) -> str:
    """What became of the pairs, in words."""
    return (
        f"{len(exported.preferences)} preferences; {len(exported.ties)} ties, {exported.num_skipped} pairs skipped and "
        f"{exported.num_unlabelled} without a label are not among them; annotators differ on {exported.num_disputed}"
    )
