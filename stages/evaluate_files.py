"""What an evaluation leaves: metrics, figures, and completions side by side. The same results give the same bytes."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from stages.evaluate_items import write_items
from tuneline.data.storage import write_parquet
from tuneline.evaluation import figures
from tuneline.evaluation.intervals import Interval
from tuneline.evaluation.measures import (
    Answers,
    Draws,
    Measures,
    ScoredPairs,
    accuracy_by_task,
    best_of_n_measures,
    flat_metrics,
    metric_names,
    pairwise_accuracy_by_task,
    policy_measures,
    reward_model_measures,
)
from tuneline.evaluation.preferences import calibration
from tuneline.evaluation.prompts import Prompts

REWARD_MODEL = "reward_model"
Intervals = dict[str, Interval]


def write_results(
    report: Path,
    prompts: Prompts,
    answers: Mapping[str, Answers],
    draws: Draws | None,
    pairs: ScoredPairs | None,
    settings: Mapping[str, Any],
    notes: Sequence[str],
    num_left_out: Mapping[str, int],
) -> dict[str, float]:
    """Write the folder described in `stages.evaluate` and return its metrics.

    Args:
        answers: by policy, in the order of the line.
        draws: many answers of the baseline with their rewards, for best-of-n; None leaves it out.
        settings: what was asked for; its `baseline` names the policy that the others are compared with.
    """
    baseline_name = settings["baseline"]
    baseline = answers.get(baseline_name)
    measures: dict[str, Measures] = {}
    by_task: dict[str, Intervals] = {}
    for name, of_one in answers.items():
        compared_with = baseline if name != baseline_name else None
        measures[name] = policy_measures(of_one, compared_with, settings["seed"], settings.get("pass_at", ()))
        by_task[name] = accuracy_by_task(of_one.correct, prompts.tasks)
    counts = {"num_prompts": len(prompts), **num_left_out}
    if pairs is not None:
        measures[REWARD_MODEL] = reward_model_measures(pairs)
        by_task[REWARD_MODEL] = pairwise_accuracy_by_task(pairs)
        counts["num_pairs"] = len(pairs.chosen_scores)
    best_of_n: dict[int, Measures] = {}
    if draws is not None:
        best_of_n = {n: best_of_n_measures(draws, n, settings["seed"]) for n in settings["best_of_n"]}
    metrics = _flat(measures, by_task, counts)
    for n, of_n in best_of_n.items():
        metrics |= flat_metrics(of_n, f"best_of_{n}")

    files = report / "files"
    (files / "figures").mkdir(parents=True, exist_ok=True)
    _write_json(report / "metrics.json", metrics)
    record = {"settings": settings, "counts": counts, "notes": notes, "measures": measures, "by_task": by_task}
    record["best_of_n"] = {str(n): of_n for n, of_n in best_of_n.items()}
    _write_json(files / "evaluation.json", _without_nan(record))
    _write_json(files / "samples.json", _samples(prompts, answers, settings["num_side_by_side"]))
    write_parquet({files / "completions.parquet": _rows(prompts, answers)})
    write_items(files, prompts, answers, settings)
    for name, svg in _draw(answers, measures, by_task, best_of_n, pairs, baseline_name).items():
        (files / "figures" / f"{name}.svg").write_text(svg, encoding="utf-8")
    return metrics


def _flat(
    measures: Mapping[str, Measures], by_task: Mapping[str, Intervals], counts: Mapping[str, int]
) -> dict[str, float]:
    task_names = metric_names(sorted({task for tasks in by_task.values() for task in tasks}))
    metrics: dict[str, float] = dict(counts)
    for name, of_one in measures.items():
        metrics |= flat_metrics(of_one, name)
        measure = "pairwise_accuracy" if name == REWARD_MODEL else "accuracy"
        for task, interval in by_task[name].items():
            metrics |= flat_metrics({measure: interval}, name, f"/{task_names[task]}")
    return metrics


def _draw(
    answers: Mapping[str, Answers],
    measures: Mapping[str, Measures],
    by_task: Mapping[str, Intervals],
    best_of_n: Mapping[int, Measures],
    pairs: ScoredPairs | None,
    baseline: str,
) -> dict[str, str]:
    """SVG by name, for what there is."""
    drawn = {}
    overall = {name: measures[name]["accuracy"] for name in answers if "accuracy" in measures[name]}
    if overall:
        tasks = sorted({task for name in answers for task in by_task[name]})
        accuracies = {"all": overall} | {task: {name: by_task[name][task] for name in overall} for task in tasks}
        drawn["accuracy"] = figures.accuracy_bars(accuracies)  # type: ignore[arg-type]
    lengths = {name: [c.num_tokens for c in of_one.completions] for name, of_one in answers.items()}
    drawn["lengths"] = figures.histograms(lengths, "Completion length", "tokens", whole=True)
    for measure, label in (("reward", "mean score of the reward model"), ("accuracy", "share answered rightly")):
        points: dict[str, tuple[Any, Any]] = {
            name: (measures[name].get("kl", Interval(0, 0, 0)), measures[name][measure])
            for name in answers
            if measure in measures[name]
        }
        curve: dict[int, tuple[Any, Any]] = {
            n: (of_one["kl_bound"], of_one[measure]) for n, of_one in best_of_n.items() if measure in of_one
        }
        if len(curve) > 1 or any("kl" in measures[name] for name in points):
            title = f"What {measure} costs in divergence"
            drawn[f"{measure}_kl"] = figures.against_divergence(points, curve, baseline, title, label)
    if pairs is not None:
        drawn["reliability"] = figures.reliability(calibration(pairs.chosen_scores, pairs.rejected_scores))
        sides = {"chosen": pairs.chosen_scores, "rejected": pairs.rejected_scores}
        drawn["pair_scores"] = figures.histograms(sides, "Reward model: scores of held-out pairs", "score")
        scores = {name: of_one.rewards for name, of_one in answers.items() if of_one.rewards is not None}
        drawn["policy_scores"] = figures.histograms(scores, "Reward model: scores of the policies", "score")
    return drawn


def _samples(prompts: Prompts, answers: Mapping[str, Answers], num_shown: int) -> list[dict[str, Any]]:
    """The first prompts with what each policy answered."""
    return [
        {
            "prompt": prompts.values[i],
            "task": prompts.tasks[i],
            "solution": prompts.solutions[i],
            "answers": {
                name: {
                    "text": of_one.completions[i].text,
                    "correct": of_one.correct[i],
                    "reward": None if of_one.rewards is None else float(f"{of_one.rewards[i]:.6g}"),
                    "num_tokens": of_one.completions[i].num_tokens,
                    "finished": of_one.completions[i].finished,
                }
                for name, of_one in answers.items()
            },
        }
        for i in range(min(num_shown, len(prompts)))
    ]


def _rows(prompts: Prompts, answers: Mapping[str, Answers]) -> list[dict[str, Any]]:
    """All completions, a row for each prompt and policy."""
    return [
        {
            "prompt": prompts.values[i],
            "task": prompts.tasks[i],
            "solution": prompts.solutions[i],
            "policy": name,
            "completion": of_one.completions[i].text,
            "finished": of_one.completions[i].finished,
            "num_tokens": of_one.completions[i].num_tokens,
            "correct": of_one.correct[i],
            "reward": None if of_one.rewards is None else of_one.rewards[i],
            "kl": None if of_one.divergences is None else of_one.divergences.exact[i],
        }
        for i in range(len(prompts))
        for name, of_one in answers.items()
    ]


def _without_nan(value: Any) -> Any:
    """The same with null for nan, which JSON has not, and plain lists for tuples."""
    if isinstance(value, Mapping):
        return {key: _without_nan(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_without_nan(item) for item in value]
    return None if isinstance(value, float) and value != value else value


def _write_json(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value, indent=1, ensure_ascii=False, allow_nan=False) + "\n", encoding="utf-8")
