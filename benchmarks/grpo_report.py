"""What the GRPO benchmark compares, and what its table says about the work."""

from __future__ import annotations

from rich.table import Table

from benchmarks.grpo_work import GRPOWork, GRPOWorkload
from benchmarks.parts import GIGA, Agreement, PartsComparison, PartWork, Run, table_of

PHASES = ("rollout", "rewards", "scoring", "preparing", "forward", "backward", "all else")
TITLES = {"steps": "whole steps", "update": "update alone"}
# Gradients and entropies of TRL go through sums over padded rows, which round otherwise.
AGREEMENTS = (
    Agreement("losses", "loss", 1e-4, relative=False),
    Agreement("grad_norms", "gradient norm", 1e-3, relative=True),
    Agreement("entropies", "entropy", 1e-4, relative=True),
)


def comparison_of(workload: GRPOWorkload, work: GRPOWork, runs: dict[str, dict[str, list[Run]]]) -> PartsComparison:
    flops = {"steps": work.flops_of_step, "update": work.flops_of_update}
    works = {part: PartWork(workload.steps, work.completions, work.completion_tokens, flops[part]) for part in runs}
    return PartsComparison(workload, works, runs)


def grpo_table(comparison: PartsComparison, work: GRPOWork) -> Table:
    return table_of(
        comparison,
        title=_title(comparison),
        caption=_caption(comparison, work),
        part_titles=TITLES,
        phases=PHASES,
        agreements=AGREEMENTS,
    )


def _title(comparison: PartsComparison) -> str:
    w = comparison.workload
    checkpointing = "on" if w.gradient_checkpointing else "off"
    return (
        f"grpo: Qwen2 of 27 M parameters, float32, {comparison.num_threads} threads, {w.steps} steps of {w.prompts} "
        f"prompts x {w.num_generations} completions in micro-batches of {w.batch_size}, gradient checkpointing "
        f"{checkpointing}"
    )


def _caption(comparison: PartsComparison, work: GRPOWork) -> str:
    return (
        f"{work.completions} completions of {work.mean_length:.0f} tokens on average, {work.longest} at most; "
        f"{work.update.real_tokens:,} tokens with a prompt for each, {work.update.tree_tokens:,} with each prompt "
        f"once. Matrix products reach {comparison.peak_flops / GIGA:,.0f} GFLOP/s; the update needs "
        f"{work.flops_of_update / GIGA:,.0f} GFLOP (no padding, prompts once, nothing recomputed), the rollout a third "
        f"of that. The ratios of phases are of processor time. ± "
        "the largest difference between the sides, of losses absolute, else relative."
    )
