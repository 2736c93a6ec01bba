"""`python -m benchmarks ppo`: whole steps (rollout, rewards, scores, epochs) with TRL and with tuneline, and the update
alone.

In whole steps each side draws completions with transformers, as it does; how long each gets is given, the same for both
sides (see `benchmarks.ppo_work`). For the update both are handed the same completions, and what they report must agree.
TRL is the last release that has PPO (see `benchmarks.peers`).
"""

from __future__ import annotations

import argparse
import json
import platform
import tempfile
from dataclasses import asdict
from pathlib import Path

from rich.console import Console

from benchmarks.options import PREFERENCES, add_data_option, add_shared_options
from benchmarks.parts import PartsComparison, Run, check_agreement, run_parts, run_side, warn_if_busy
from benchmarks.peers import trl_with_ppo
from benchmarks.ppo_report import AGREEMENTS, comparison_of, first_step_strays, ppo_table
from benchmarks.ppo_work import PARTS, PPOPart, PPOWorkload, prepare
from benchmarks.runs import SIDES
from tuneline.errors import ConfigError, StageError

VALUE_FUNCTIONS = ("model", "head")


def main(words: list[str], console: Console) -> int:
    """Prepare, run each part and side in processes of their own, print a table.

    Raises:
        ConfigError: an option out of its range, or TRL cannot be fetched.
        DataError: a data file that is absent, or has too few rows.
        StageError: a process failed, or the two sides did not do the same work.
    """
    arguments = _parser().parse_args(words)
    workload = _workload(arguments)
    sides = [side for side in SIDES if side in arguments.sides]
    names = _parts(arguments)

    def say(line: str) -> None:
        console.print(line, style="dim", highlight=False)

    packages = trl_with_ppo(say) if "trl" in sides else None
    with tempfile.TemporaryDirectory(prefix="benchmark-") as temporary:
        folder = Path(arguments.folder or temporary).resolve()
        folder.mkdir(parents=True, exist_ok=True)
        say("preparing models, tokenizer and prompts")
        parts = prepare(workload, folder)

        def run(part: str, side: str, turn: int) -> Run:
            return _run(part, side, turn, folder, parts[part], packages)

        comparison = comparison_of(workload, parts, run_parts(names, sides, arguments.repeats, run, console))
    Console().print(ppo_table(comparison, parts))
    if arguments.json:
        found = {
            "platform": platform.platform(),
            "processor": platform.processor(),
            **asdict(comparison),
            "parts": {name: asdict(part) for name, part in parts.items()},
        }
        arguments.json.write_text(json.dumps(found, indent=1), encoding="utf-8")
    warn_if_busy(comparison.waited, console)
    return _check(comparison, console)


def _check(comparison: PartsComparison, console: Console) -> int:
    strays = first_step_strays(comparison)
    for stray in strays:
        console.print(f"[red]{stray}[/red]")
    return check_agreement(comparison, AGREEMENTS, console) or int(bool(strays))


def _run(part: str, side: str, turn: int, folder: Path, work: PPOPart, packages: Path | None) -> Run:
    run = run_side("benchmarks.ppo_side", part, side, turn, folder, packages=packages if side == "trl" else None)
    if abs(run["mean_length"] - work.mean_length) > 1e-3:
        raise StageError(
            f"{side} learned from completions of {run['mean_length']:.3f} tokens on average, and they were to have "
            f"{work.mean_length:.3f}: the two sides do not do the same work."
        )
    return run


def _parts(arguments: argparse.Namespace) -> list[str]:
    """Those to measure: with another value function than TRL's there is no update that both compute alike."""
    comparable = PARTS if arguments.value_function == "model" else ("steps",)
    names = [part for part in comparable if part in arguments.parts]
    if not names:
        raise ConfigError(
            f"--value-function {arguments.value_function} is another than TRL's, so that there is no update that both "
            "compute alike; take --parts steps."
        )
    return names


def _workload(arguments: argparse.Namespace) -> PPOWorkload:
    least = {"response_length": 2}
    for name in (
        "steps",
        "episodes",
        "mini_batches",
        "epochs",
        "rollout_batch_size",
        "max_prompt_length",
        "response_length",
        "repeats",
    ):
        value = getattr(arguments, name)
        if value < least.get(name, 1):
            raise ConfigError(f"--{name.replace('_', '-')} {value} must be at least {least.get(name, 1)}.")
    if arguments.episodes % arguments.mini_batches:
        raise ConfigError(
            f"--mini-batches {arguments.mini_batches} does not divide the {arguments.episodes} episodes of a step."
        )
    return PPOWorkload(
        data=str(arguments.data),
        steps=arguments.steps,
        episodes=arguments.episodes,
        num_mini_batches=arguments.mini_batches,
        num_ppo_epochs=arguments.epochs,
        rollout_batch_size=arguments.rollout_batch_size,
        max_prompt_length=arguments.max_prompt_length,
        response_length=arguments.response_length,
        learning_rate=arguments.learning_rate,
        gradient_checkpointing=arguments.gradient_checkpointing,
        value_function=arguments.value_function,
        seed=arguments.seed,
    )


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks ppo", description=__doc__)
    parser.add_argument("--steps", type=int, default=1, help="steps to measure, after one that warms up (default 1)")
    parser.add_argument("--episodes", type=int, default=32, help="prompts a step, a completion each (default 32)")
    parser.add_argument("--mini-batches", type=int, default=4, help="optimizer steps an epoch (default 4)")
    parser.add_argument("--epochs", type=int, default=4, help="over the episodes of a step (default 4)")
    parser.add_argument(
        "--rollout-batch-size", type=int, default=64, help="episodes that TRL generates and scores at once (default 64)"
    )
    parser.add_argument("--max-prompt-length", type=int, default=512, help="longer ones are left out (default 512)")
    parser.add_argument("--response-length", type=int, default=128, help="of completions, in tokens (default 128)")
    parser.add_argument(
        "--value-function",
        choices=VALUE_FUNCTIONS,
        default="model",
        help="tuneline's (default model, as TRL's); with a head whole steps alone are measured",
    )
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS), help="leave one out (default both)")
    add_data_option(parser, PREFERENCES, "JSONL of preferences, for prompts and answers")
    add_shared_options(parser, learning_rate=3e-6)
    return parser
