"""What the GRPO benchmark measured, and the table that it ends with."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from statistics import median
from typing import Any

from rich.table import Table

from benchmarks.generation import GIB
from benchmarks.grpo_work import GRPOWork, GRPOWorkload

GIGA = 1e9
PHASES = ("rollout", "rewards", "scoring", "preparing", "forward", "backward", "all else")
TITLES = {"steps": "whole steps", "update": "update alone"}

Run = dict[str, Any]


@dataclass(frozen=True)
class GRPOComparison:
    """The runs of each part and side, in order."""

    workload: GRPOWorkload
    work: GRPOWork
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

    def largest_difference(self, key: str, *, relative: bool) -> float | None:
        """Between what the sides report of the update on the same completions, over all steps."""
        sides = self.runs.get("update", {})
        if len(sides) < 2:
            return None
        pairs = zip(*(runs[0][key] for runs in sides.values()), strict=True)
        differences = [abs(a - b) / (max(abs(a), abs(b), 1e-12) if relative else 1.0) for a, b in pairs]
        return math.nan if any(map(math.isnan, differences)) else max(differences)


def _at(run: Run, keys: tuple[str, ...]) -> float:
    found: Any = run
    for key in keys:
        found = found.get(key, 0.0)
    return float(found)


def table_of(comparison: GRPOComparison) -> Table:
    table = Table(title=_title(comparison), caption=_caption(comparison), title_justify="left")
    table.caption_justify = "left"
    sides = list(next(iter(comparison.runs.values())))
    table.add_column("")
    for side in sides:
        table.add_column(side, justify="right")
    table.add_column("ratio", justify="right")
    for part in comparison.runs:
        table.add_section()
        table.add_row(f"[bold]{TITLES[part]}")
        _add_part(table, comparison, part, sides)
    return table


def _add_part(table: Table, comparison: GRPOComparison, part: str, sides: list[str]) -> None:
    work = comparison.work
    flops = work.flops_of_step if part == "steps" else work.flops_of_update

    def row(label: str, quantity: Callable[[str], float], form: Callable[[float], str], better: str = "") -> None:
        values = [quantity(side) for side in sides]
        ratio = values[1] / values[0] if better and len(values) == 2 and all(values) else None
        shown = "" if ratio is None else f"{ratio:.2f} x" if better == "more" else f"1 / {1 / ratio:.2f}"
        table.add_row(label, *map(form, values), shown)

    def loop(side: str) -> float:
        return comparison.median(part, side, "loop_seconds")

    row("completion tokens/s", lambda s: work.completion_tokens / loop(s), lambda x: f"{x:,.0f}", "more")
    row("completions/s", lambda s: work.completions / loop(s), lambda x: f"{x:.2f}", "more")
    row("seconds a step", lambda s: loop(s) / comparison.workload.steps, lambda x: f"{x:.1f}", "less")
    row("peak memory, GiB", lambda s: comparison.median(part, s, "peak_memory") / GIB, lambda x: f"{x:.2f}", "less")
    row("memory before, GiB", lambda s: comparison.median(part, s, "memory_before") / GIB, lambda x: f"{x:.2f}")
    share = "share of matrix-product peak"
    row(share, lambda s: flops / loop(s) / comparison.peak_flops, lambda x: f"{x:.1%}", "more")
    row("threads kept waiting, on average", lambda s: comparison.median(part, s, "waited"), lambda x: f"{x:.2f}")
    row(
        "processor seconds a step, all threads",
        lambda s: comparison.median(part, s, "processor_seconds") / comparison.workload.steps,
        lambda x: f"{x:.1f}",
        "less",
    )
    for phase in PHASES:
        seconds, processor = (
            [comparison.median(part, side, clock, phase) for side in sides] for clock in ("phases", "processor_phases")
        )
        if max(seconds) >= 0.05:
            shown = [f"{value:.1f} s  {value / loop(side):4.0%}" for value, side in zip(seconds, sides, strict=True)]
            ratio = f"1 / {processor[0] / processor[1]:.2f}" if len(seconds) == 2 and min(processor) > 0.05 else ""
            table.add_row(f"  {phase}", *shown, ratio)
    if part == "update":
        _add_agreement(table, comparison, sides)


def _add_agreement(table: Table, comparison: GRPOComparison, sides: list[str]) -> None:
    labels = {"losses": ("loss", False), "grad_norms": ("gradient norm", True), "entropies": ("entropy", True)}
    for key, (label, relative) in labels.items():
        last = [f"{comparison.runs['update'][side][0][key][-1]:.6f}" for side in sides]
        difference = comparison.largest_difference(key, relative=relative)
        table.add_row(f"{label}, last step", *last, "" if difference is None else f"± {difference:.1e}")


def _title(comparison: GRPOComparison) -> str:
    w = comparison.workload
    checkpointing = "on" if w.gradient_checkpointing else "off"
    return (
        f"grpo: Qwen2 of 27 M parameters, float32, {comparison.num_threads} threads, {w.steps} steps of {w.prompts} "
        f"prompts x {w.num_generations} completions in micro-batches of {w.batch_size}, gradient checkpointing "
        f"{checkpointing}"
    )


def _caption(comparison: GRPOComparison) -> str:
    work = comparison.work
    return (
        f"{work.completions} completions of {work.mean_length:.0f} tokens on average, {work.longest} at most; "
        f"{work.update.real_tokens:,} tokens with a prompt for each, {work.update.tree_tokens:,} with each prompt "
        f"once. Matrix products reach {comparison.peak_flops / GIGA:,.0f} GFLOP/s; the update needs "
        f"{work.flops_of_update / GIGA:,.0f} GFLOP (no padding, prompts once, nothing recomputed), the rollout a third "
        f"of that. The ratios of phases are of processor time. ± "
        "the largest difference between the sides, of losses absolute, else relative."
    )
