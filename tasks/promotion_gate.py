"""Challenger against champion on the same held-out items: a paired bootstrap of the gain, and guards. Plain numbers."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from stages.schema_promotion import PromotionSection
from tuneline.errors import DataError

_LARGEST_DRAW = 4_000_000  # numbers drawn at once


class Results(NamedTuple):
    """One policy's results on the held-out items."""

    policy: str
    digest: str
    """Of the items and of how they were asked: only results with the same one may be compared."""
    rows: dict[str, dict[str, Any]]
    """By the items' keys: accuracy (mean over an item's samples), reward, kl, num_tokens, task; null where unknown."""


class Interval(NamedTuple):
    """A mean with the ends of its interval."""

    estimate: float
    low: float
    high: float


@dataclass(frozen=True)
class Line:
    """One row of the decision's table: means of both sides, and the challenger's minus the champion's."""

    name: str
    champion: float
    challenger: float
    difference: float
    low: float
    high: float
    passed: bool
    verdict: str


def read_results(items: str, held_out: str, policy: str) -> Results:
    """A policy's results from the text of items.jsonl and held_out.json.

    Raises:
        DataError: the policy has none.
    """
    rows = [json.loads(line) for line in items.splitlines() if line]
    own = {row["item"]: row for row in rows if row["policy"] == policy}
    if not own:
        known = ", ".join(dict.fromkeys(row["policy"] for row in rows))
        raise DataError(f"The evaluation has no results of {policy}; it has those of {known}.")
    return Results(policy, str(json.loads(held_out)["digest"]), own)


def paired_bootstrap(differences: Sequence[float], *, seed: int, num_resamples: int, confidence: float) -> Interval:
    """The mean difference with its percentile interval (Efron and Tibshirani 1993, ch. 13); items are resampled.

    Args:
        differences: one an item, challenger minus champion; several samples of an item are averaged before, since they
            are no further items.
        confidence: coverage, such as 0.95.
    """
    values = np.asarray(differences, dtype=np.float64)
    generator = np.random.default_rng(seed)
    means: list[np.ndarray] = []
    at_once = max(1, _LARGEST_DRAW // values.size)
    for start in range(0, num_resamples, at_once):
        drawn = generator.integers(values.size, size=(min(at_once, num_resamples - start), values.size))
        means.append(values[drawn].mean(axis=1))
    low, high = np.quantile(np.concatenate(means), [(1 - confidence) / 2, (1 + confidence) / 2])
    return Interval(math.fsum(values) / values.size, float(low), float(high))


def compare(
    champion: Results, challenger: Results, options: PromotionSection, seed: int
) -> tuple[list[Line], list[str]]:
    """The table, its first line the metric that has to rise, and notes on what could not be compared.

    Raises:
        DataError: the two were asked other items or otherwise, or the metric is known of no item.
    """
    if champion.digest != challenger.digest or champion.rows.keys() != challenger.rows.keys():
        raise DataError("champion and challenger were not asked the same items in the same way; evaluate both anew.")
    comparison = _Comparison(champion, challenger, options, seed)
    notes: list[str] = []
    line = comparison.metric(options.metric)
    if line is None:
        other = "reward" if options.metric == "accuracy" else "accuracy"
        raise DataError(
            f"promotion.metric={options.metric} is known of no held-out item; name solutions in prepare.test, or set "
            f"promotion.metric={other}."
        )
    lines = [line]
    guards = options.guards
    for name, guard, of_one in (
        ("kl", guards.kl, comparison.kl),
        ("length", guards.length, comparison.length),
    ):
        if guard is not None:
            guarded = of_one(guard)
            notes += [f"guard {name}: not measured on both sides, so it guards nothing"] if guarded is None else []
            lines += [] if guarded is None else [guarded]
    if guards.task_accuracy is not None:
        lines += comparison.tasks(guards.task_accuracy)
    return lines, notes


class _Comparison:
    def __init__(self, champion: Results, challenger: Results, options: PromotionSection, seed: int):
        self.champion, self.challenger, self.options, self.seed = champion, challenger, options, seed

    def metric(self, name: str) -> Line | None:
        found = self._of(name, name, None)
        if found is None:
            return None
        own, other, gain = found
        passed = gain.low > self.options.min_gain
        limit = f"{self.options.min_gain:g}"
        share = f"{self.options.confidence:.0%} interval"
        verdict = (
            f"passes: the {share} lies above {limit}" if passed else f"refused: the {share} reaches down to {limit}"
        )
        return Line(name, other, own, *gain, passed, verdict)

    def kl(self, tolerance: float) -> Line | None:
        found = self._of("kl", "kl", None)
        if found is None:
            return None
        own, other, rise = found
        return Line("kl", other, own, *rise, *_within(rise.estimate, tolerance, "rises"))

    def length(self, tolerance: float) -> Line | None:
        found = self._of("length", "num_tokens", None)
        if found is None:
            return None
        own, other, change = found
        share = abs(change.estimate) / other if other else math.inf
        passed = share <= tolerance
        verdict = f"{'within' if passed else 'refused: beyond'} {tolerance:.0%} of the champion's: {share:.0%}"
        return Line("length", other, own, *change, passed, verdict)

    def tasks(self, tolerance: float) -> list[Line]:
        lines = []
        for task in sorted({str(row["task"]) for row in self.challenger.rows.values() if row["task"] is not None}):
            found = self._of(f"accuracy/{task}", "accuracy", task)
            if found is not None:
                own, other, gain = found
                passed_verdict = _within(-gain.estimate, tolerance, "falls")
                lines.append(Line(f"accuracy/{task}", other, own, *gain, *passed_verdict))
        return lines

    def _of(self, name: str, column: str, task: str | None) -> tuple[float, float, Interval] | None:
        """Means of challenger and champion over the items that both know, and their difference; None without any."""
        pairs = []
        for key in sorted(self.challenger.rows):  # one order whatever the files' is: the same draws
            rows = self.challenger.rows[key], self.champion.rows[key]
            own, other = (_value(row, column, side) for row, side in zip(rows, self._sides, strict=True))
            if own is not None and other is not None and (task is None or str(rows[0]["task"]) == task):
                pairs.append((own, other))
        if not pairs:
            return None
        own_values, other_values = zip(*pairs, strict=True)
        options = self.options
        interval = paired_bootstrap(
            [own - other for own, other in pairs],
            seed=self.seed,
            num_resamples=options.num_resamples,
            confidence=options.confidence,
        )
        return math.fsum(own_values) / len(pairs), math.fsum(other_values) / len(pairs), interval

    @property
    def _sides(self) -> tuple[str, str]:
        return self.challenger.policy, self.champion.policy


def _value(row: Mapping[str, Any], column: str, policy: str) -> float | None:
    if column == "kl" and policy == "sft":
        return 0.0  # from itself
    value = row[column]
    return None if value is None else float(value)


def _within(worse_by: float, tolerance: float, verb: str) -> tuple[bool, str]:
    passed = worse_by <= tolerance + 1e-12  # a fall of 0.05 by rounding is one of 0.05
    return passed, f"within its tolerance of {tolerance:g}" if passed else f"refused: {verb} by more than {tolerance:g}"
