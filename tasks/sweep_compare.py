"""Settings against one another, over seeds: means with t-intervals, and differences to the best, paired by seed.

The interval is Student's, over seeds: with three of them a bootstrap would cover far less than it says (it never looks
beyond the values that were seen). What all seeds have in common, such as the test items, is not in it.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from tasks.sweep_record import VariantRecord
from tasks.sweep_settings import in_words
from tuneline.errors import ConfigError

LEVEL = 0.95
METHOD = (
    "95 % t-interval over seeds; differences paired over the seeds that both settings have, Welch's if there are none"
)
_LOWER_IS_BETTER = ("loss", "kl", "kl_exact", "perplexity", "seconds", "calibration_error", "share_cut_off", "entropy")
_POLICIES = ("grpo", "ppo", "dpo", "sft")


@dataclass(frozen=True)
class Interval:
    """A mean and how far it may be off; low and high are None for one value alone."""

    mean: float
    low: float | None
    high: float | None


@dataclass(frozen=True)
class SettingResult:
    """One setting under one metric."""

    setting: dict[str, str]
    label: str
    values: dict[str, float]
    """By seed, as in `seed=0`."""
    interval: Interval
    difference: Interval | None
    """To the best setting, whose own is None."""
    is_best: bool
    is_tied: bool
    """Whether the interval of the difference holds 0, or there is none."""


@dataclass(frozen=True)
class MetricComparison:
    """All settings under one metric, the best first."""

    metric: str
    lower_is_better: bool
    settings: tuple[SettingResult, ...]
    num_missing: int
    """Finished variants without this metric, or in which it is not finite."""


@dataclass(frozen=True)
class Comparison:
    """What a sweep comes down to."""

    name: str
    command: str
    metrics: tuple[MetricComparison, ...]
    variants: tuple[VariantRecord, ...]
    method: str = METHOD

    def as_json(self) -> dict[str, Any]:
        return {"level": LEVEL, **asdict(self)}

    @property
    def values(self) -> dict[str, float]:
        """For MLflow: of the best setting under the first metric."""
        if not self.metrics:
            return {}
        first, best = self.metrics[0], self.metrics[0].settings[0].interval
        found = {"mean": best.mean, "low": best.low, "high": best.high}
        return {f"best/{first.metric}/{name}": value for name, value in found.items() if value is not None}


def compare_variants(
    name: str, command: str, variants: Sequence[VariantRecord], metrics: Sequence[str], lower: bool | None = None
) -> Comparison:
    """Variants that are done, grouped by setting, under some metrics.

    Args:
        metrics: Names such as `evaluate/dpo/accuracy`; none chooses those that the varied settings bear on.
        lower: Whether less is better under the first; None goes by its name.

    Raises:
        ConfigError: no variant has a metric of that name, or it is finite in none.
    """
    done = [variant for variant in variants if variant.state == "done"]
    values = [item for variant in done for item in variant.metrics.items()]
    known = list(dict.fromkeys(metric for metric, value in values if math.isfinite(value)))
    chosen = list(metrics) or default_metrics(known, {dotted for variant in done for dotted in variant.setting})
    compared = []
    for number, metric in enumerate(chosen if done else ()):
        if metric not in known:
            raise ConfigError(f"--metric {metric}: no variant has a finite value of it{_nearest(metric, known)}.")
        is_lower = lower if number == 0 and lower is not None else lower_is_better(metric)
        compared.append(_compare(metric, done, is_lower))
    return Comparison(name, command, tuple(compared), tuple(variants))


def default_metrics(known: Sequence[str], varied: Iterable[str]) -> list[str]:
    """First the policy that the varied settings train, then the others'; else what the stages measured."""
    sections = {dotted.split(".")[0] for dotted in varied}
    policies = sorted(_POLICIES, key=lambda policy: policy not in sections)
    wanted = [f"evaluate/{policy}/accuracy" for policy in policies]
    wanted += ["evaluate/reward_model/pairwise_accuracy"]
    wanted += [f"evaluate/{policy}/{measure}" for policy in policies for measure in ("win_rate_reward", "reward", "kl")]
    wanted += [f"{stage}/eval/{measure}" for stage in (*policies, "reward") for measure in ("accuracy", "loss")]
    found = [metric for metric in wanted if metric in known]
    if found:
        return found[:6]
    measured = [metric for metric in known if not metric.endswith("steps")]
    return sorted(measured, key=lambda metric: metric.split("/")[0] not in sections)[:3]


def lower_is_better(metric: str) -> bool:
    last = metric.rpartition("/")[2]
    return last in _LOWER_IS_BETTER or last.endswith(("_loss", "_seconds", "_kl"))


def _compare(metric: str, variants: Sequence[VariantRecord], lower: bool) -> MetricComparison:
    groups: dict[str, tuple[dict[str, str], dict[str, float]]] = {}
    for variant in variants:
        if metric in variant.metrics and math.isfinite(variant.metrics[metric]):
            label = in_words(variant.setting)
            _, values = groups.setdefault(label, (variant.setting, {}))
            values[in_words(variant.seeds) if variant.seeds else "one run"] = variant.metrics[metric]
    ranked = sorted(groups, key=lambda label: statistics.mean(groups[label][1].values()), reverse=not lower)
    results = []
    for label in ranked:
        setting, values = groups[label]
        is_best = label == ranked[0]
        difference = None if is_best else difference_of(values, groups[ranked[0]][1])
        tied = difference is None or difference.low is None or difference.low <= 0 <= (difference.high or 0.0)
        interval = t_interval(list(values.values()))
        results.append(SettingResult(setting, label, values, interval, difference, is_best, tied))
    num_values = sum(len(values) for _, values in groups.values())
    return MetricComparison(metric, lower, tuple(results), len(variants) - num_values)


def t_interval(values: Sequence[float]) -> Interval:
    """Student's interval of the mean of independent values."""
    mean = statistics.mean(values)
    if len(values) < 2:
        return Interval(mean, None, None)
    half = t_quantile(len(values) - 1) * statistics.stdev(values) / math.sqrt(len(values))
    return Interval(mean, mean - half, mean + half)


def difference_of(values: Mapping[str, float], best: Mapping[str, float]) -> Interval:
    """How far a setting is from the best: over the seeds that both have, or by Welch's test where there are none."""
    if common := [seed for seed in values if seed in best]:
        return t_interval([values[seed] - best[seed] for seed in common])
    sides = [list(values.values()), list(best.values())]
    mean = statistics.mean(sides[0]) - statistics.mean(sides[1])
    if min(len(side) for side in sides) < 2:
        return Interval(mean, None, None)
    parts = [statistics.variance(side) / len(side) for side in sides]
    if not sum(parts):
        return Interval(mean, mean, mean)
    freedom = sum(parts) ** 2 / sum(part**2 / (len(side) - 1) for part, side in zip(parts, sides, strict=True))
    half = t_quantile(max(1, math.floor(freedom))) * math.sqrt(sum(parts))
    return Interval(mean, mean - half, mean + half)


def t_quantile(freedom: int, level: float = LEVEL) -> float:
    """The t beyond which, on both sides, 1 - level of Student's distribution lies; by bisection of its closed form."""
    low, high = 0.0, 1e4
    while high - low > 1e-10 * max(1.0, high):
        middle = (low + high) / 2
        low, high = (middle, high) if _mass_within(middle, freedom) < level else (low, middle)
    return (low + high) / 2


def _mass_within(t: float, freedom: int) -> float:
    """P(|T| < t) for whole degrees of freedom (Abramowitz and Stegun 1964, 26.7.3 and 26.7.4)."""
    angle = math.atan2(t, math.sqrt(freedom))
    cosine, sine = math.cos(angle), math.sin(angle)
    if freedom % 2 == 0:
        term = total = 1.0
        for k in range(2, freedom, 2):
            term *= cosine**2 * (k - 1) / k
            total += term
        return sine * total
    if freedom == 1:
        return 2 * angle / math.pi
    term = total = cosine
    for k in range(3, freedom, 2):
        term *= cosine**2 * (k - 1) / k
        total += term
    return 2 / math.pi * (angle + sine * total)


def _nearest(metric: str, known: Sequence[str]) -> str:
    import difflib

    near = difflib.get_close_matches(metric, known, n=1, cutoff=0.4)
    return f"; did you mean {near[0]}?" if near else f"; there are {', '.join(known[:12])}" if known else ""
