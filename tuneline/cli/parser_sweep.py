"""The arguments of `tuneline sweep` and `tuneline compare`. Imports nothing heavy."""

import argparse
from collections.abc import Callable

from tuneline.cli.parser_numbers import count


def add_sweep(
    command: Callable[[str, str], argparse.ArgumentParser],
    add_config: Callable[[argparse.ArgumentParser], None],
    add_retries: Callable[[argparse.ArgumentParser], None],
) -> None:
    """Adds the commands; `command` makes the parser of one, the others add what other commands have too."""
    sweep = command(
        "sweep", "Run a config with several values of some settings, --set a.b=1,2 --set seed=0,1, and compare them."
    )
    add_config(sweep)
    sweep.add_argument(
        "--jobs", type=count(1), metavar="N", help="variants at the same time (default: as GPUs allow; 1 without any)"
    )
    sweep.add_argument("--dry-run", action="store_true", help="print the variants and the expected time, run nothing")
    sweep.add_argument("--name", metavar="NAME", help="of the sweep's run and report (default: the config's and a key)")
    _add_metrics(sweep)
    sweep.add_argument("--keep", action="store_true", help="keep the checkouts of variants that are done")
    add_retries(sweep)

    compare = command(
        "compare", "Compare finished runs: by what was set differently, over seeds where there are several."
    )
    what = "an experiment (`dvc exp show`), a revision, `workspace`, or the id of a run in MLflow"
    compare.add_argument("runs", nargs="+", metavar="RUN", help=what)
    compare.add_argument("--name", default="comparison", metavar="NAME", help="of the report (default comparison)")
    _add_metrics(compare)


def _add_metrics(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--metric",
        dest="metrics",
        action="append",
        default=[],
        metavar="NAME",
        help="what to compare by, such as evaluate/dpo/accuracy; the first decides which is best (may be repeated)",
    )
    best = parser.add_mutually_exclusive_group()
    best.add_argument("--minimize", dest="lower", action="store_const", const=True, help="less of the first is better")
    best.add_argument("--maximize", dest="lower", action="store_const", const=False, help="more of the first is better")
