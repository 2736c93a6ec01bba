"""Options that all side-by-side benchmarks have, and where their data lies."""

from __future__ import annotations

import argparse
from pathlib import Path

from benchmarks.runs import ROOT, SIDES

PREFERENCES, PROBLEMS = "hh-harmless.jsonl.gz", "gsm8k-train.jsonl.gz"


def add_data_option(parser: argparse.ArgumentParser, name: str, what: str) -> None:
    """`--data`, by default data/NAME of the checkout, as in configs/, or else shared/data/NAME beside it."""
    places = (ROOT / "data" / name, ROOT.parent / "shared" / "data" / name)
    default = next((place for place in places if place.is_file()), places[0])
    parser.add_argument("--data", type=Path, default=default, help=f"{what} (default data/{name})")


def add_shared_options(parser: argparse.ArgumentParser, *, learning_rate: float) -> None:
    parser.add_argument("--repeats", type=int, default=1, help="runs of each side, in turns, for medians (default 1)")
    parser.add_argument("--learning-rate", type=float, default=learning_rate, help="default %(default)s")
    parser.add_argument(
        "--gradient-checkpointing",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="on both sides alike; on by default, as in TRL",
    )
    parser.add_argument("--sides", nargs="+", choices=SIDES, default=list(SIDES), help="leave one out (default both)")
    parser.add_argument("--seed", type=int, default=17)
    parser.add_argument("--json", type=Path, help="write everything measured to this file")
    parser.add_argument("--folder", type=Path, help="keep what the sides read here (default a temporary folder)")
