"""Runs each side in a process of its own, one after the other, and brings together what they measured."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks import FOLDER, RESULT
from benchmarks.workload import Work, Workload
from tuneline.errors import StageError

ROOT = Path(__file__).resolve().parents[1]
SIDES = ("trl", "tuneline")


@dataclass(frozen=True)
class Side:
    """The medians of one side's runs."""

    name: str
    loop_seconds: float
    step_seconds: float
    end_to_end_seconds: float
    rows_per_second: float
    tokens_per_second: float
    peak_memory: float  # bytes, of the process during training
    memory_before: float  # bytes, when training began
    waited: float  # threads that were ready to run and had no core, on average over the training loop
    share_of_peak: float  # FLOP/s of the fewest FLOPs that do the work, over the measured peak
    losses: tuple[float, ...]  # a step; of the first run
    grad_norms: tuple[float, ...]
    runs: tuple[dict[str, Any], ...]


@dataclass(frozen=True)
class Comparison:
    workload: Workload
    work: Work
    peak_flops: float  # median FLOP/s of matrix products, measured before each run
    num_threads: int
    sides: dict[str, Side]

    def ratio(self, quantity: Callable[[Side], float]) -> float | None:
        """TRL's over tuneline's."""
        if len(self.sides) < 2:
            return None
        return quantity(self.sides["trl"]) / quantity(self.sides["tuneline"])

    @property
    def largest_loss_difference(self) -> float | None:
        """Relative, over all steps; each side's own rounding grows as training goes on."""
        if len(self.sides) < 2:
            return None
        pairs = zip(*(side.losses for side in self.sides.values()), strict=True)
        return max(abs(a - b) / max(abs(a), abs(b), 1e-12) for a, b in pairs)


def compare(
    workload: Workload, folder: Path, *, repeats: int, sides: tuple[str, ...], say: Callable[[str], None]
) -> Comparison:
    """Prepare the work in `folder`, run the sides `repeats` times in turns, and take medians.

    Raises:
        StageError: a process failed (the message holds the end of what it wrote), or a side did other work.
    """
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "workload.json").write_text(json.dumps(asdict(workload)), encoding="utf-8")
    say("preparing model, tokenizer and rows")
    run_python("prepare", ["-m", "benchmarks.prepare"], folder)
    work = Work(**json.loads((folder / "work.json").read_text(encoding="utf-8")))

    runs: dict[str, list[dict[str, Any]]] = {side: [] for side in sides}
    for turn in range(repeats):
        # what changes on the machine over time should not fall on one side alone
        for side in sides if turn % 2 == 0 else reversed(sides):
            peak = json.loads(run_python("peak", ["-m", "benchmarks.peak"], folder))
            run = _train(side, workload.kind, folder, turn)
            if run["num_tokens"] != work.real_tokens:
                raise StageError(
                    f"{side} trained on {run['num_tokens']:.0f} tokens in the measured steps, and the rows have "
                    f"{work.real_tokens}: the two sides do not do the same work."
                )
            runs[side].append({**run, "peak_flops": peak["peak"]})
            say(f"{side}: {run['loop_seconds']:.1f} s in the training loop, run {turn + 1} of {repeats}")
    peaks = [run["peak_flops"] for of_side in runs.values() for run in of_side]
    peak_flops = median(peaks)
    num_threads = next(iter(runs.values()))[0]["num_threads"]
    summaries = {side: _summarize(side, of_side, work, peak_flops) for side, of_side in runs.items()}
    return Comparison(workload, work, peak_flops, num_threads, summaries)


def _train(side: str, kind: str, folder: Path, turn: int) -> dict[str, Any]:
    """One process: the script of this kind, with its import from this side's library."""
    text = (ROOT / "benchmarks" / "scripts" / f"{kind}.py").read_text(encoding="utf-8")
    assert text.count("from trl import ") == 1
    script = folder / f"{kind}_{side}.py"
    script.write_text(text.replace("from trl import ", f"from {side} import "), encoding="utf-8")
    result = folder / f"{kind}_{side}_{turn}.json"
    run_python(side, [str(script)], folder, result)
    return json.loads(result.read_text(encoding="utf-8"))


def run_python(
    name: str, arguments: list[str], folder: Path, result: Path | None = None, packages: Path | None = None
) -> str:
    """What a Python process of this side wrote to its output; `packages` is a folder whose packages go before those
    that are installed.

    Raises:
        StageError: it failed; the message holds the end of what it wrote.
    """
    environment = {
        "OMP_WAIT_POLICY": "passive",  # for both sides: spinning threads crawl beside a busy neighbour
        **os.environ,
        "PYTHONPATH": os.pathsep.join(str(entry) for entry in (packages, ROOT, os.environ.get("PYTHONPATH")) if entry),
        FOLDER: str(folder),
        RESULT: str(result or ""),
        "HF_HUB_OFFLINE": "1",  # also keeps TRL's telemetry at home
        "HF_DATASETS_CACHE": str(folder / "cache" / name),
        "TOKENIZERS_PARALLELISM": "false",
        "TRL_EXPERIMENTAL_SILENCE": "1",
    }
    run = subprocess.run([sys.executable, *arguments], env=environment, capture_output=True, text=True, check=False)
    if run.returncode:
        raise StageError(
            f"{name} ended with exit code {run.returncode}; the end of what it wrote:\n{run.stderr[-3000:]}"
        )
    return run.stdout


def _summarize(name: str, runs: list[dict[str, Any]], work: Work, peak_flops: float) -> Side:
    loop_seconds = median(run["loop_seconds"] for run in runs)
    return Side(
        name=name,
        loop_seconds=loop_seconds,
        step_seconds=median(second for run in runs for second in run["step_seconds"]),
        end_to_end_seconds=median(run["end_to_end_seconds"] for run in runs),
        rows_per_second=work.rows / loop_seconds,
        tokens_per_second=work.real_tokens / loop_seconds,
        peak_memory=median(run["peak_memory"] for run in runs),
        memory_before=median(run["memory_before"] for run in runs),
        waited=median(run["waited"] for run in runs),
        share_of_peak=work.flops / loop_seconds / peak_flops,
        losses=tuple(runs[0]["losses"]),
        grad_norms=tuple(runs[0]["grad_norms"]),
        runs=tuple(runs),
    )
