"""`python -m benchmarks grpo`: whole steps (rollout, rewards, update) with TRL and with tuneline, and the update alone.

In whole steps each side draws completions with transformers, as it does; how long each gets is given, the same for both
sides (see `benchmarks.grpo_work`). For the update both are handed the same completions, and their losses must agree.
"""

from __future__ import annotations

import argparse
import json
import platform
import tempfile
from dataclasses import asdict
from pathlib import Path

from rich.console import Console

from benchmarks.grpo_report import AGREEMENTS, comparison_of, grpo_table
from benchmarks.grpo_work import GRPOWork, GRPOWorkload, prepare
from benchmarks.options import PROBLEMS, add_data_option, add_shared_options
from benchmarks.parts import Run, check_agreement, run_parts, run_side, warn_if_busy
from benchmarks.runs import SIDES
from tuneline.errors import ConfigError, StageError

PARTS = ("steps", "update")


def main(words: list[str], console: Console) -> int:
    """Prepare, run each part and side in processes of their own, print a table.

    Raises:
        ConfigError: an option out of its range.
        DataError: a data file that is absent, or has too few rows.
        StageError: a process failed, or the two sides did not do the same work.
    """
    arguments = _parser().parse_args(words)
    workload = _workload(arguments)
    sides = [side for side in SIDES if side in arguments.sides]
    parts = [part for part in PARTS if part in arguments.parts]
    with tempfile.TemporaryDirectory(prefix="benchmark-") as temporary:
        folder = Path(arguments.folder or temporary).resolve()
        folder.mkdir(parents=True, exist_ok=True)
        console.print("preparing model, tokenizer and prompts", style="dim")
        work = prepare(workload, folder)
        runs = run_parts(
            parts, sides, arguments.repeats, lambda part, side, turn: _run(part, side, turn, folder, work), console
        )
    comparison = comparison_of(workload, work, runs)
    Console().print(grpo_table(comparison, work))
    if arguments.json:
        machine = {"platform": platform.platform(), "processor": platform.processor()}
        arguments.json.write_text(
            json.dumps(machine | asdict(comparison) | {"work": asdict(work)}, indent=1), encoding="utf-8"
        )
    warn_if_busy(comparison.waited, console)
    return check_agreement(comparison, AGREEMENTS, console)


def _workload(arguments: argparse.Namespace) -> GRPOWorkload:
    least = {"num_generations": 2, "max_completion_length": 2}
    for name in ("steps", "prompts", "num_generations", "batch_size", "repeats", "max_completion_length"):
        value = getattr(arguments, name)
        if value < least.get(name, 1):
            raise ConfigError(f"--{name.replace('_', '-')} {value} must be at least {least.get(name, 1)}.")
    workload = GRPOWorkload(
        data=str(arguments.data),
        steps=arguments.steps,
        prompts=arguments.prompts,
        num_generations=arguments.num_generations,
        batch_size=arguments.batch_size,
        max_completion_length=arguments.max_completion_length,
        learning_rate=arguments.learning_rate,
        gradient_checkpointing=arguments.gradient_checkpointing,
        seed=arguments.seed,
    )
    if workload.completions_a_step % workload.batch_size:
        raise ConfigError(
            f"--batch-size {workload.batch_size} does not divide the {workload.completions_a_step} completions of a "
            "step (--prompts times --num-generations)."
        )
    return workload


def _run(part: str, side: str, turn: int, folder: Path, work: GRPOWork) -> Run:
    run = run_side("benchmarks.grpo_side", part, side, turn, folder)
    if run["num_tokens"] != work.update.real_tokens:
        raise StageError(
            f"{side} learned from {run['num_tokens']:.0f} tokens in the measured steps, and prompts and completions "
            f"have {work.update.real_tokens}: the two sides do not do the same work."
        )
    return run


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks grpo", description=__doc__)
    parser.add_argument("--steps", type=int, default=2, help="steps to measure, after one that warms up (default 2)")
    parser.add_argument("--prompts", type=int, default=4, help="prompts a step (default 4)")
    parser.add_argument("--num-generations", type=int, default=8, help="completions a prompt (default 8)")
    parser.add_argument("--batch-size", type=int, default=8, help="completions a micro-batch (default 8)")
    parser.add_argument("--max-completion-length", type=int, default=256, help="in tokens (default 256)")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS), help="leave one out (default both)")
    add_data_option(parser, PROBLEMS, "JSONL of questions and answers")
    add_shared_options(parser, learning_rate=1e-6)
    return parser
