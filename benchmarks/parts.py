"""Benchmarks that measure in parts, each with TRL and with tuneline: the runs, the table they end with, the check that
both sides computed the same."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

from rich.console import Console
from rich.table import Table

from benchmarks.runs import run_python

BUSY = 0.1  # threads waiting for a core, on average
GIB, GIGA = 1024**3, 1e9

Run = dict[str, Any]


@dataclass(frozen=True)
class PartWork:
    """What the measured steps of a part amount to, the same for both sides."""

    steps: int
    completions: int
    completion_tokens: int
    flops: float  # the fewest


@dataclass(frozen=True)
class Agreement:
    """A series of numbers, one a step or an update, that both sides must report alike where both have the same
    completions."""

    key: str
    label: str
    bound: float
    relative: bool


@dataclass(frozen=True)
class PartsComparison:
    """The runs of each part and side, in order."""

    workload: Any
    works: dict[str, PartWork]
    runs: dict[str, dict[str, list[Run]]]

    def median(self, part: str, side: str, *keys: str) -> float:
        """Over the runs; `keys` lead to a number in each, 0 where it has none."""
        return median(_at(run, keys) for run in self.runs[part][side])

    @property
    def peak_flops(self) -> float:
        return median(run["peak_flops"] for sides in self.runs.values() for runs in sides.values() for run in runs)

    @property
    def num_threads(self) -> int:
        sides = next(iter(self.runs.values()))
        return int(next(iter(sides.values()))[0]["num_threads"])

    @property
    def waited(self) -> float:
        return max(self.median(part, side, "waited") for part, sides in self.runs.items() for side in sides)

    def largest_difference(self, agreement: Agreement) -> float | None:
        """Between what the sides report of the update on the same completions, over the whole series."""
        sides = self.runs.get("update", {})
        if len(sides) < 2:
            return None
        pairs = zip(*(runs[0][agreement.key] for runs in sides.values()), strict=True)
        scale = (lambda a, b: max(abs(a), abs(b), 1e-12)) if agreement.relative else (lambda a, b: 1.0)
        differences = [abs(a - b) / scale(a, b) for a, b in pairs]
        return math.nan if any(map(math.isnan, differences)) else max(differences)


def _at(run: Run, keys: tuple[str, ...]) -> float:
    found: Any = run
    for key in keys:
        found = found.get(key, 0.0)
    return float(found)


def run_parts(
    parts: Sequence[str], sides: Sequence[str], repeats: int, run: Callable[[str, str, int], Run], console: Console
) -> dict[str, dict[str, list[Run]]]:
    """`run(part, side, turn)` of each part and side, `repeats` times."""
    runs: dict[str, dict[str, list[Run]]] = {part: {side: [] for side in sides} for part in parts}
    for turn in range(repeats):
        for part in parts:
            # what changes on the machine over time should not fall on one side alone
            for side in sides if turn % 2 == 0 else reversed(sides):
                found = run(part, side, turn)
                runs[part][side].append(found)
                seconds, of = found["loop_seconds"], f"run {turn + 1} of {repeats}"
                console.print(f"{part}, {side}: {seconds:.1f} s, {of}", style="dim", highlight=False)
    return runs


def run_side(module: str, part: str, side: str, turn: int, folder: Path, **options: Any) -> Run:
    """What one process measured, with what matrix products reached just before it; `options` go to `run_python`."""
    peak = json.loads(run_python("peak", ["-m", "benchmarks.peak"], folder))
    result = folder / f"{part}_{side}_{turn}.json"
    run_python(side, ["-m", module, side, part], folder, result, **options)
    return json.loads(result.read_text(encoding="utf-8")) | {"peak_flops": peak["peak"]}


def table_of(
    comparison: PartsComparison,
    *,
    title: str,
    caption: str,
    part_titles: dict[str, str],
    phases: Sequence[str],
    agreements: Sequence[Agreement],
    names: dict[str, str] | None = None,
) -> Table:
    """`names` of the sides, where they are not to be called as they are."""
    table = Table(title=title, caption=caption, title_justify="left", caption_justify="left")
    sides = list(next(iter(comparison.runs.values())))
    table.add_column("")
    for side in sides:
        table.add_column((names or {}).get(side, side), justify="right")
    table.add_column("ratio", justify="right")
    for part in comparison.runs:
        table.add_section()
        table.add_row(f"[bold]{part_titles[part]}")
        _add_part(table, comparison, part, sides)
        _add_phases(table, comparison, part, sides, phases)
        if part == "update":
            _add_agreements(table, comparison, sides, agreements)
    return table


def _add_part(table: Table, comparison: PartsComparison, part: str, sides: list[str]) -> None:
    work = comparison.works[part]

    def row(label: str, quantity: Callable[[str], float], form: Callable[[float], str], better: str = "") -> None:
        values = [quantity(side) for side in sides]
        ratio = values[1] / values[0] if better and len(values) == 2 and all(values) else None
        shown = "" if ratio is None else f"{ratio:.2f} x" if better == "more" else f"1 / {1 / ratio:.2f}"
        table.add_row(label, *map(form, values), shown)

    def loop(side: str) -> float:
        return comparison.median(part, side, "loop_seconds")

    row("completion tokens/s", lambda s: work.completion_tokens / loop(s), lambda x: f"{x:,.0f}", "more")
    row("completions/s", lambda s: work.completions / loop(s), lambda x: f"{x:.2f}", "more")
    row("seconds a step", lambda s: loop(s) / work.steps, lambda x: f"{x:.1f}", "less")
    row("peak memory, GiB", lambda s: comparison.median(part, s, "peak_memory") / GIB, lambda x: f"{x:.2f}", "less")
    row("memory before, GiB", lambda s: comparison.median(part, s, "memory_before") / GIB, lambda x: f"{x:.2f}")
    share = "share of matrix-product peak"
    row(share, lambda s: work.flops / loop(s) / comparison.peak_flops, lambda x: f"{x:.1%}", "more")
    row("threads kept waiting, on average", lambda s: comparison.median(part, s, "waited"), lambda x: f"{x:.2f}")
    row(
        "processor seconds a step, all threads",
        lambda s: comparison.median(part, s, "processor_seconds") / work.steps,
        lambda x: f"{x:.1f}",
        "less",
    )


def _add_phases(table: Table, comparison: PartsComparison, part: str, sides: list[str], phases: Sequence[str]) -> None:
    loops = [comparison.median(part, side, "loop_seconds") for side in sides]
    for phase in phases:
        seconds, processor = (
            [comparison.median(part, side, clock, phase) for side in sides] for clock in ("phases", "processor_phases")
        )
        if max(seconds) >= 0.05:
            shown = [f"{value:.1f} s  {value / loop:4.0%}" for value, loop in zip(seconds, loops, strict=True)]
            ratio = f"1 / {processor[0] / processor[1]:.2f}" if len(seconds) == 2 and min(processor) > 0.05 else ""
            table.add_row(f"  {phase}", *shown, ratio)


def _add_agreements(
    table: Table, comparison: PartsComparison, sides: list[str], agreements: Sequence[Agreement]
) -> None:
    for agreement in agreements:
        last = [f"{comparison.runs['update'][side][0][agreement.key][-1]:.6f}" for side in sides]
        difference = comparison.largest_difference(agreement)
        table.add_row(f"{agreement.label}, last", *last, "" if difference is None else f"± {difference:.1e}")


def warn_if_busy(waited: float, console: Console) -> None:
    if waited > BUSY:
        console.print(
            "[yellow]other processes took cores from these runs: the figures hold on a quiet machine only[/yellow]"
        )


def check_agreement(comparison: PartsComparison, agreements: Sequence[Agreement], console: Console) -> int:
    """0 where the sides agree, else 1, having said on what they do not."""
    agree = True
    for one in agreements:
        difference = comparison.largest_difference(one)
        if difference is not None and not difference <= one.bound:
            name = one.key.replace("_", " ")
            console.print(
                f"[red]the {name} of the two sides differ by {difference:.1e}, more than {one.bound:.0e}[/red]"
            )
            agree = False
    return 0 if agree else 1
