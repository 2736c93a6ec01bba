"""The evaluation as tables of estimates with their intervals."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from tasks.report_text import Limits

MEASURES = {
    "accuracy": "Accuracy ({verifier})",
    "accuracy_gain": "Gain in accuracy over {baseline}, paired",
    "win_rate_verifier": "Win rate against {baseline}, by verifier",
    "win_rate_reward": "Win rate against {baseline}, by reward model",
    "reward": "Mean score of the reward model",
    "kl": "KL from {baseline}, nats a completion (log-ratios)",
    "kl_exact": "KL from {baseline}, nats a completion (exact by token)",
    "completion_length": "Completion length, tokens",
    "share_cut_off": "Share cut off",
    "pairwise_accuracy": "Pairs ranked rightly",
    "calibration_error": "Expected calibration error",
    "length_pearson": "Score and length, Pearson",
    "length_spearman": "Score and length, Spearman",
    "prefers_longer": "Scores the longer answer higher",
    "longer_is_chosen": "Pairs whose longer answer is the chosen one",
}
TRADED = ("accuracy", "reward", "kl", "kl_exact", "completion_length", "share_cut_off")
BEST_OF_N = {
    "accuracy": "Accuracy ({verifier})",
    "reward": "Mean score of the reward model",
    "kl_bound": "KL from {baseline} at most, nats (log n − (n−1)/n)",
}
REWARD_MODEL = "reward_model"
Row = tuple[str, list[Any]]  # label, and a cell a column: a number, or an estimate with its interval


@dataclass(frozen=True)
class Tables:
    """Each with its columns named apart."""

    policies: list[str]
    measures: list[Row]
    traded: list[Row]
    tasks: list[Row]
    best_of_n: list[str]
    best_of_n_measures: list[Row]
    reward: list[Row]
    reward_tasks: list[Row]


def evaluation_tables(evaluation: dict[str, Any], limits: Limits) -> Tables:
    """Of what evaluate has left; all are empty where it has left nothing."""
    measures = evaluation.get("measures") or {}
    by_task = evaluation.get("by_task") or {}
    settings = evaluation.get("settings") or {}
    best_of_n = evaluation.get("best_of_n") or {}
    words = {"baseline": settings.get("baseline", ""), "verifier": settings.get("verifier") or "exact match"}
    labels = {**MEASURES, **{f"pass_at_{k}": f"pass@{k}" for k in settings.get("pass_at", ())}}
    policies = limits.rows("policies", [name for name in measures if name != REWARD_MODEL], 24)
    tasks = limits.rows("tasks", sorted({task for name in policies for task in by_task.get(name, {})}))

    def rows(names: list[str], values: dict[str, Any], labels: dict[str, str]) -> list[Row]:
        known = [measure for measure in labels if any(measure in values[name] for name in names)]
        return [(labels[m].format(**words), [values[name].get(m) for name in names]) for m in known]

    of_reward = limits.rows("tasks", list(by_task.get(REWARD_MODEL, {}).items()))
    return Tables(
        policies=policies,
        measures=rows(policies, measures, labels),
        traded=rows(policies, measures, {name: MEASURES[name] for name in TRADED}),
        tasks=[(limits.text(task), [by_task.get(name, {}).get(task) for name in policies]) for task in tasks],
        best_of_n=list(best_of_n),
        best_of_n_measures=rows(list(best_of_n), best_of_n, BEST_OF_N),
        reward=rows([REWARD_MODEL], measures, labels) if REWARD_MODEL in measures else [],
        reward_tasks=[(limits.text(task), [interval]) for task, interval in of_reward],
    )
