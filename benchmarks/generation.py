"""`python -m benchmarks generation`: the completions of a GRPO step, drawn as TRL draws them and by tuneline.

Prompts are questions of gsm8k, with G completions each. How long a completion gets is drawn from the lengths of gsm8k's
worked solutions, the same for both sides: a model with random weights would not stop by itself.
"""

from __future__ import annotations

import argparse
import json
import platform
import random
import tempfile
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any

from rich.console import Console
from rich.table import Table

from benchmarks.grpo_work import read_questions
from benchmarks.options import PROBLEMS, add_data_option
from benchmarks.parts import GIB, warn_if_busy
from benchmarks.runs import SIDES, run_python
from benchmarks.workload import make_model, make_tokenizer
from tuneline.errors import ConfigError, DataError


@dataclass(frozen=True)
class GenerationWork:
    """What both sides are asked for. The first call only warms up, with its first prompt."""

    calls: list[list[dict[str, Any]]]  # a call: prompts, with `ids` and the `lengths` of their completions
    max_completion_length: int
    temperature: float
    top_p: float
    top_k: int
    seed: int

    @property
    def lengths(self) -> list[int]:
        return [length for call in self.calls[1:] for prompt in call for length in prompt["lengths"]]


def main(words: list[str], console: Console) -> int:
    """Prepare, run each side in processes of its own, print a table.

    Raises:
        ConfigError: an option out of its range.
        DataError: a data file that is absent, or has too few rows.
        StageError: a process failed.
    """
    arguments = _parser().parse_args(words)
    for name in ("prompts", "num_generations", "calls", "repeats", "max_completion_length"):
        if getattr(arguments, name) < 1:
            raise ConfigError(f"--{name.replace('_', '-')} {getattr(arguments, name)} must be at least 1.")
    runs: dict[str, list[dict[str, float]]] = {side: [] for side in SIDES if side in arguments.sides}
    with tempfile.TemporaryDirectory(prefix="benchmark-") as temporary:
        folder = Path(temporary).resolve()
        console.print("preparing model, tokenizer and prompts", style="dim")
        work = prepare(arguments, folder)
        for turn in range(arguments.repeats):
            for side in runs if turn % 2 == 0 else reversed(runs):
                result = folder / f"{side}_{turn}.json"
                run_python(side, ["-m", "benchmarks.generation_side", side], folder, result)
                runs[side].append(json.loads(result.read_text(encoding="utf-8")))
                seconds = runs[side][-1]["seconds"]
                console.print(f"{side}: {seconds:.1f} s, run {turn + 1} of {arguments.repeats}", style="dim")
    medians = {side: {key: median(run[key] for run in of_side) for key in of_side[0]} for side, of_side in runs.items()}
    Console().print(_table(work, medians))
    if arguments.json:
        machine = {"platform": platform.platform(), "processor": platform.processor()}
        arguments.json.write_text(json.dumps({**machine, "work": asdict(work), "runs": runs}, indent=1), "utf-8")
    warn_if_busy(max(side["waited"] for side in medians.values()), console)
    return 0


def prepare(arguments: argparse.Namespace, folder: Path) -> GenerationWork:
    """Write model, tokenizer and work to `folder`."""
    questions = read_questions(arguments.data)
    num_prompts = arguments.prompts * (arguments.calls + 1)
    if len(questions) < num_prompts:
        raise DataError(
            f"{arguments.data} has {len(questions)} different questions; {num_prompts} are needed: lower --calls or "
            "--prompts."
        )
    tokenizer = make_tokenizer([text for pair in questions.items() for text in pair])
    make_model("sft", arguments.seed, tokenizer).save_pretrained(folder / "model")
    tokenizer.save_pretrained(folder / "model")
    solutions = [len(ids) + 1 for ids in tokenizer(list(questions.values()))["input_ids"]]  # with their end
    draws = random.Random(arguments.seed)
    prompts = [
        {
            "ids": tokenizer(question + "\n")["input_ids"],
            "lengths": [
                min(draws.choice(solutions), arguments.max_completion_length) for _ in range(arguments.num_generations)
            ],
        }
        for question in list(questions)[:num_prompts]
    ]
    work = GenerationWork(
        calls=[prompts[start : start + arguments.prompts] for start in range(0, num_prompts, arguments.prompts)],
        max_completion_length=arguments.max_completion_length,
        temperature=arguments.temperature,
        top_p=arguments.top_p,
        top_k=arguments.top_k,
        seed=arguments.seed,
    )
    (folder / "work.json").write_text(json.dumps(asdict(work)), encoding="utf-8")
    return work


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks generation", description=__doc__)
    parser.add_argument("--prompts", type=int, default=8, help="prompts a call (default 8)")
    parser.add_argument("--num-generations", type=int, default=8, help="completions a prompt (default 8)")
    parser.add_argument("--calls", type=int, default=1, help="calls to measure, after one that warms up (default 1)")
    parser.add_argument("--max-completion-length", type=int, default=256, help="in tokens (default 256)")
    parser.add_argument("--temperature", type=float, default=1.0)
    parser.add_argument("--top-p", type=float, default=1.0)
    parser.add_argument("--top-k", type=int, default=0)
    parser.add_argument("--repeats", type=int, default=1, help="runs of each side, in turns, for medians (default 1)")
    add_data_option(parser, PROBLEMS, "JSONL of questions and answers")
    parser.add_argument("--sides", nargs="+", choices=SIDES, default=list(SIDES), help="leave one out (default both)")
    parser.add_argument("--seed", type=int, default=17)
    parser.add_argument("--json", type=Path, help="write everything measured to this file")
    return parser


def _table(work: GenerationWork, sides: dict[str, dict[str, float]]) -> Table:
    lengths = work.lengths
    call = work.calls[0]
    threads = int(next(iter(sides.values()))["num_threads"])
    table = Table(
        title=(
            f"generation: Qwen2 of 27 M parameters, float32, {threads} threads, {len(work.calls) - 1} calls of "
            f"{len(call)} prompts x {len(call[0]['lengths'])} completions, temperature {work.temperature}, "
            f"top-p {work.top_p}, top-k {work.top_k}"
        ),
        caption=(
            f"Completions of {sum(lengths) / len(lengths):.0f} tokens on average, "
            f"from {min(lengths)} to {max(lengths)}."
        ),
        title_justify="left",
        caption_justify="left",
    )
    table.add_column("")
    for side in sides:
        table.add_column(side, justify="right")
    table.add_column("ratio", justify="right")

    def row(label: str, quantity: Callable[[dict[str, float]], float], form: str, better: str = "") -> None:
        values = [quantity(side) for side in sides.values()]
        ratio = values[1] / values[0] if better and len(values) == 2 else None
        shown = "" if ratio is None else f"{ratio:.2f} x" if better == "more" else f"1 / {1 / ratio:.2f}"
        table.add_row(label, *(format(value, form) for value in values), shown)

    row("completion tokens/s", lambda side: side["tokens"] / side["seconds"], ",.0f", "more")
    row("generation, s", lambda side: side["seconds"], ".1f", "less")
    row("processor time of all threads, s", lambda side: side["processor_seconds"], ".1f", "less")
    row("completion tokens", lambda side: side["tokens"], ",.0f")
    row("peak memory, GiB", lambda side: side["peak_memory"] / GIB, ".2f", "less")
    row("memory before, GiB", lambda side: side["memory_before"] / GIB, ".2f")
    row("threads kept waiting, on average", lambda side: side["waited"], ".2f")
    return table
