"""What the PPO benchmark compares, and what its table says about the work."""

from __future__ import annotations

from rich.table import Table

import tuneline
from benchmarks.parts import GIGA, Agreement, PartsComparison, Run, table_of
from benchmarks.peers import TRL_WITH_PPO
from benchmarks.ppo_side import METRICS
from benchmarks.ppo_work import PPOPart, PPOWorkload

PHASES = ("rollout", "rewards", "scoring", "preparing", "forward", "backward", "optimizer", "all else")
TITLES = {"steps": "whole steps", "update": "update alone, on the same completions"}
# TRL takes what the policy drew by from the logits of generation, and what it says now from a pass over padded rows:
# they round otherwise, and KL adds the difference up over a completion.
BOUNDS = {
    "objective/kl": (1e-3, False),
    "objective/scores": (1e-4, False),
    "objective/non_score_reward": (1e-4, False),
    "policy/approxkl_avg": (1e-4, False),
    "policy/clipfrac_avg": (1e-2, False),
    "loss/policy_avg": (1e-4, False),
    "loss/value_avg": (1e-3, True),
    "val/ratio": (1e-4, False),
}
AGREEMENTS = (
    Agreement("losses", "loss of an update", 1e-4, relative=False),
    *(Agreement(name, name, *BOUNDS[name]) for name in METRICS),
)


def comparison_of(
    workload: PPOWorkload, parts: dict[str, PPOPart], runs: dict[str, dict[str, list[Run]]]
) -> PartsComparison:
    return PartsComparison(workload, {part: parts[part].work for part in runs}, runs)


def ppo_table(comparison: PartsComparison, parts: dict[str, PPOPart]) -> Table:
    return table_of(
        comparison,
        title=_title(comparison),
        caption=_caption(comparison, parts),
        part_titles=TITLES,
        phases=PHASES,
        agreements=AGREEMENTS,
        names={"trl": f"trl {TRL_WITH_PPO}", "tuneline": f"tuneline {tuneline.__version__}"},
    )


def _title(comparison: PartsComparison) -> str:
    w = comparison.workload
    checkpointing = "on" if w.gradient_checkpointing else "off"
    value = "a model of its own" if w.value_function == "model" else f"tuneline's a {w.value_function}"
    return (
        f"ppo: policy, reference, reward and value model of 27 M parameters each (value function: {value}), float32, "
        f"{comparison.num_threads} threads, {w.steps} steps of {w.episodes} episodes, {w.num_ppo_epochs} epochs of "
        f"{w.num_mini_batches} mini-batches, gradient checkpointing {checkpointing}"
    )


def _caption(comparison: PartsComparison, parts: dict[str, PPOPart]) -> str:
    lines = [
        f"{TITLES[name]}: {part.work.completions} completions of {part.mean_length:.0f} tokens on average, "
        f"{part.longest} at most, to prompts of {part.mean_prompt:.0f}; {part.real_tokens:,} tokens, "
        f"{part.padded_tokens:,} padded; {part.work.flops / GIGA:,.0f} GFLOP at least."
        for name, part in parts.items()
        if name in comparison.runs
    ]
    return (
        "\n".join(lines) + f"\nMatrix products reach {comparison.peak_flops / GIGA:,.0f} GFLOP/s. The ratios of phases "
        "are of processor time; tuneline rewards while it scores, and the processor time of both counts as scoring. ± "
        "the largest difference between the sides over all steps: of the first, which learns nothing and so has no KL "
        "and ratios of 1, and of those measured."
    )


def first_step_strays(comparison: PartsComparison) -> list[str]:
    """What is not as it must be where the policy is still the reference and the one that drew."""
    strays = []
    for side, runs in comparison.runs.get("update", {}).items():
        for name, value in (("objective/kl", 0.0), ("val/ratio", 1.0)):
            found, bound = runs[0][name][0], BOUNDS[name][0]
            if not abs(found - value) <= bound:
                strays.append(f"{name} of {side} is {found:.6f} before the first update, and must be {value:.0f}")
    return strays
