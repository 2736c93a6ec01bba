"""The table that a comparison ends with."""

from __future__ import annotations

from collections.abc import Callable

from rich.table import Table

from benchmarks.parts import GIB, GIGA
from benchmarks.runs import Comparison, Side


def table_of(comparison: Comparison, versions: dict[str, str]) -> Table:
    workload = comparison.workload
    unit = "texts" if workload.kind == "sft" else "pairs"
    table = Table(title=_title(comparison, versions, unit), caption=_caption(comparison, unit), title_justify="left")
    table.caption_justify = "left"
    table.add_column("")
    for name in comparison.sides:
        table.add_column(f"{name} {versions[name]}", justify="right")
    table.add_column("ratio", justify="right")

    def row(label: str, quantity: Callable[[Side], float], form: Callable[[float], str], better: str = "") -> None:
        ratio = comparison.ratio(quantity)
        shown = ""
        if ratio is not None and better:
            shown = f"{1 / ratio:.2f} x" if better == "more" else f"1 / {ratio:.2f}"
        table.add_row(label, *(form(quantity(side)) for side in comparison.sides.values()), shown)

    row("real tokens/s", lambda s: s.tokens_per_second, lambda x: f"{x:,.0f}", "more")
    row(f"{unit}/s", lambda s: s.rows_per_second, lambda x: f"{x:.2f}", "more")
    row("training loop, s", lambda s: s.loop_seconds, lambda x: f"{x:.1f}", "less")
    row("median step, s", lambda s: s.step_seconds, lambda x: f"{x:.2f}", "less")
    row("end to end with tokenisation, s", lambda s: s.end_to_end_seconds, lambda x: f"{x:.1f}", "less")
    row("peak memory in training, GiB", lambda s: s.peak_memory / GIB, lambda x: f"{x:.2f}", "less")
    row("memory when training began, GiB", lambda s: s.memory_before / GIB, lambda x: f"{x:.2f}")
    row("share of matrix-product peak", lambda s: s.share_of_peak, lambda x: f"{x:.1%}", "more")
    row("threads kept waiting, on average", lambda s: s.waited, lambda x: f"{x:.2f}")
    table.add_section()
    row("loss, first step", lambda s: s.losses[0], lambda x: f"{x:.6f}")
    row("loss, last step", lambda s: s.losses[-1], lambda x: f"{x:.6f}")
    row("gradient norm, first step", lambda s: s.grad_norms[0], lambda x: f"{x:.6f}")
    row("gradient norm, last step", lambda s: s.grad_norms[-1], lambda x: f"{x:.6f}")
    difference = comparison.largest_loss_difference
    if difference is not None:
        table.add_row("largest difference of a loss", *([""] * len(comparison.sides)), f"{difference:.1e}")
    return table


def _title(comparison: Comparison, versions: dict[str, str], unit: str) -> str:
    workload = comparison.workload
    checkpointing = "on" if workload.gradient_checkpointing else "off"
    return (
        f"{workload.kind}: Qwen2 of 27 M parameters, float32, {comparison.num_threads} threads, "
        f"{comparison.work.rows} {unit} in {workload.steps} steps of {workload.batch_size}, "
        f"gradient checkpointing {checkpointing}, torch {versions['torch']}, transformers {versions['transformers']}"
    )


def _caption(comparison: Comparison, unit: str) -> str:
    work = comparison.work
    limit = work.flops / comparison.peak_flops
    return (
        f"{work.real_tokens:,} real tokens (every sequence whole, no padding): {work.tree_tokens:,} with shared "
        f"prompts once, {work.padded_tokens:,} padded; {work.targets:,} targets. Matrix products reach "
        f"{comparison.peak_flops / GIGA:,.0f} GFLOP/s, so the {work.flops / GIGA:,.0f} GFLOP that the work needs "
        f"(no padding, prompts once, nothing recomputed) take {limit:.1f} s at least."
    )
