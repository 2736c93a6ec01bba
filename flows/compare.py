"""`tuneline compare`: finished runs against one another, by setting and over seeds."""

from __future__ import annotations

import argparse
import shlex
from pathlib import Path

from rich.console import Console

from flows.sweep import check_name, comparison_tables, metric_words
from tasks.sweep_compare import compare_variants
from tasks.sweep_report import write_sweep_report
from tasks.sweep_sources import read_runs
from tuneline.errors import ConfigError


def run_compare(root: Path, console: Console, options: argparse.Namespace) -> int:
    """Prints the comparison and writes its page and numbers.

    Raises:
        ConfigError: fewer than two runs are given, or no run has the metric.
    """
    if len(set(options.runs)) < 2:
        raise ConfigError("compare takes two runs or more: experiments, revisions, `workspace`, or MLflow's run ids.")
    check_name(options.name)
    records = read_runs(root, list(dict.fromkeys(options.runs)))
    command = shlex.join(["tuneline", "compare", *options.runs, *metric_words(options)])
    comparison = compare_variants(options.name, command, records, options.metrics, options.lower)
    for table in comparison_tables(comparison):
        console.print(table)
        console.print()
    for path in write_sweep_report(root, comparison):
        console.print(str(path), soft_wrap=True, highlight=False)
    return 0
