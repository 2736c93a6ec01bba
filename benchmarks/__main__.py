"""`python -m benchmarks sft|reward|dpo|generation|grpo|ppo`: the same work with TRL and tuneline, what each took.

`python -m benchmarks pipeline`: what orchestration costs, with and without many past runs. `python -m benchmarks all`
measures one after the other with the defaults of each; the first that fails ends it.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import platform
import sys
import tempfile
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

from rich.console import Console

import tuneline
from benchmarks import generation, grpo, pipeline, ppo
from benchmarks.options import PREFERENCES, add_data_option, add_shared_options
from benchmarks.parts import warn_if_busy
from benchmarks.report import table_of
from benchmarks.runs import SIDES, compare
from benchmarks.workload import KINDS, Workload
from tuneline.errors import ConfigError, DataError, TunelineError

LOSS_TOLERANCE = 1e-3  # relative; separate sums in float32 drift apart as training goes on


WITH_OPTIONS_OF_THEIR_OWN: dict[str, Callable[[list[str], Console], int]] = {
    "generation": generation.main,  # trains nothing
    "grpo": grpo.main,
    "ppo": ppo.main,
    "pipeline": pipeline.main,  # without another side
}
BENCHMARKS = ("sft", "reward", "dpo", *WITH_OPTIONS_OF_THEIR_OWN)


def main() -> int:
    console = Console(stderr=True)
    try:
        if sys.argv[1:] != ["all"]:
            return _run(sys.argv[1:], console)
        for name in BENCHMARKS:
            if failed := _run([name], console):
                return failed
        return 0
    except TunelineError as error:
        console.print(f"[red]error:[/red] {error}", highlight=False, markup=True)
        return 2


def _run(words: list[str], console: Console) -> int:
    if words and words[0] in WITH_OPTIONS_OF_THEIR_OWN:
        return WITH_OPTIONS_OF_THEIR_OWN[words[0]](words[1:], console)
    return _run_trainer(_parser().parse_args(words), console)


def _run_trainer(arguments: argparse.Namespace, console: Console) -> int:
    versions = _versions(arguments.sides)
    if not arguments.data.is_file():
        raise DataError(
            f"the data file {arguments.data} is absent; name another with --data: JSONL (.gz or not) with chosen and "
            "rejected, either beside a prompt or as whole dialogues of hh-rlhf."
        )
    workload = Workload(
        kind=arguments.kind,
        data=str(arguments.data),
        steps=_num_steps(arguments),
        batch_size=arguments.batch_size,
        max_length=arguments.max_length,
        learning_rate=arguments.learning_rate,
        gradient_checkpointing=arguments.gradient_checkpointing,
        seed=arguments.seed,
    )
    sides = tuple(side for side in SIDES if side in arguments.sides)
    with tempfile.TemporaryDirectory(prefix="benchmark-") as temporary:
        comparison = compare(
            workload,
            Path(arguments.folder or temporary).resolve(),
            repeats=arguments.repeats,
            sides=sides,
            say=lambda line: console.print(line, style="dim", highlight=False),
        )
    Console().print(table_of(comparison, versions))
    if arguments.json:
        machine = {"platform": platform.platform(), "processor": platform.processor(), "versions": versions}
        arguments.json.write_text(json.dumps({**machine, **asdict(comparison)}, indent=1), encoding="utf-8")
    warn_if_busy(max(side.waited for side in comparison.sides.values()), console)
    difference = comparison.largest_loss_difference
    if difference is not None and difference > LOSS_TOLERANCE:
        console.print(f"[red]the losses differ by {difference:.1e}, more than {LOSS_TOLERANCE:.0e}[/red]")
        return 1
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks",
        description=__doc__,
        epilog="generation, grpo, ppo and pipeline have options of their own",
    )
    parser.add_argument("kind", choices=KINDS)
    amount = parser.add_mutually_exclusive_group()
    amount.add_argument("--rows", type=int, default=128, help="rows to measure, pairs or texts (default 128)")
    amount.add_argument("--steps", type=int, help="optimizer steps to measure, in place of --rows")
    parser.add_argument("--batch-size", type=int, default=8, help="rows a step (default 8)")
    add_data_option(parser, PREFERENCES, "JSONL of preferences")
    parser.add_argument("--max-length", type=int, default=1024, help="longer rows are left out (default 1024 tokens)")
    add_shared_options(parser, learning_rate=1e-5)
    return parser


def _num_steps(arguments: argparse.Namespace) -> int:
    for name in ("batch_size", "rows", "repeats", "max_length"):
        if getattr(arguments, name) < 1:
            raise ConfigError(f"--{name.replace('_', '-')} {getattr(arguments, name)} must be at least 1.")
    if arguments.steps is not None:
        if arguments.steps < 1:
            raise ConfigError(f"--steps {arguments.steps} must be at least 1.")
        return arguments.steps
    if arguments.rows % arguments.batch_size:
        raise ConfigError(f"--rows {arguments.rows} is not a multiple of --batch-size {arguments.batch_size}.")
    return arguments.rows // arguments.batch_size


def _versions(sides: list[str]) -> dict[str, str]:
    versions = {"tuneline": tuneline.__version__}
    for name in ("torch", "transformers", *(side for side in sides if side != "tuneline")):
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            raise ConfigError(f"the benchmark needs {name}, which is not installed: pip install {name}") from None
    return versions


if __name__ == "__main__":
    sys.exit(main())
