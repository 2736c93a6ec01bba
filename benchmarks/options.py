"""Options that all side-by-side benchmarks have."""

from __future__ import annotations

import argparse
from pathlib import Path

from benchmarks.runs import SIDES


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
