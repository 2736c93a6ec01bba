"""The statistics of a comparison: intervals by hand, pairs by seed, which setting is best, what is missing."""

import math

import pytest

from tasks.sweep_compare import (
    compare_variants,
    default_metrics,
    difference_of,
    lower_is_better,
    t_interval,
    t_quantile,
)
from tasks.sweep_record import VariantRecord
from tuneline.errors import ConfigError


@pytest.mark.parametrize(
    ("freedom", "quantile"), [(1, 12.706), (2, 4.303), (3, 3.182), (4, 2.776), (9, 2.262), (30, 2.042)]
)
def test_t_quantiles_are_those_of_the_table(freedom, quantile):
    assert t_quantile(freedom) == pytest.approx(quantile, abs=5e-4)


def test_an_interval_over_seeds():
    interval = t_interval([1.0, 2.0, 3.0])  # the standard error is 1 / sqrt(3)
    assert interval.mean == 2.0
    assert interval.high - 2.0 == pytest.approx(4.3027 / math.sqrt(3), abs=1e-3)
    assert t_interval([1.0]).low is None


def test_what_seeds_have_in_common_does_not_widen_a_difference():
    best = {"seed=0": 0.1, "seed=1": 0.5, "seed=2": 0.9}
    paired = difference_of({seed: value - 0.05 for seed, value in best.items()}, best)
    assert paired.mean == pytest.approx(-0.05)
    assert paired.high < -0.049
    some = difference_of({"seed=1": 0.4, "seed=2": 0.8, "seed=7": 5.0}, best)
    assert some.mean == pytest.approx(-0.1)
    unpaired = difference_of({"seed=3": 0.05, "seed=4": 0.45, "seed=5": 0.85}, best)
    assert unpaired.low < 0 < unpaired.high


def variant(beta, seed, value, state="done", metric="evaluate/dpo/accuracy"):
    chosen = {"dpo.training.beta": beta, "seed": seed}
    metrics = {} if value is None else {metric: value}
    return VariantRecord(f"{beta}-{seed}", chosen, {"seed": seed}, state=state, metrics=metrics)


def test_settings_are_ranked_and_differences_go_to_the_best():
    variants = [
        variant(b, s, v)
        for b, vs in (("0.1", (0.5, 0.6, 0.55)), ("0.3", (0.8, 0.9, 0.86)))
        for s, v in zip("012", vs, strict=True)
    ]
    variants += [variant("0.3", "3", None, state="failed"), variant("0.1", "3", None)]
    comparison = compare_variants("sweep", "command", variants, [])
    (metric,) = comparison.metrics
    assert [setting.label for setting in metric.settings] == ["beta=0.3", "beta=0.1"]
    assert metric.settings[0].is_best
    assert metric.settings[0].values == {"seed=0": 0.8, "seed=1": 0.9, "seed=2": 0.86}
    assert not metric.settings[1].is_tied
    assert metric.settings[1].difference.high < 0
    assert metric.num_missing == 1
    assert comparison.values["best/evaluate/dpo/accuracy/mean"] == pytest.approx(0.8533, abs=1e-3)
    assert len(comparison.as_json()["variants"]) == 8


def test_less_is_better_for_losses_and_can_be_said():
    assert lower_is_better("dpo/eval/loss")
    assert not lower_is_better("evaluate/dpo/accuracy")
    variants = [variant("0.1", "0", 1.0, metric="x/y"), variant("0.2", "0", 2.0, metric="x/y")]
    assert compare_variants("s", "c", variants, ["x/y"]).metrics[0].settings[0].label == "beta=0.2"
    assert compare_variants("s", "c", variants, ["x/y"], lower=True).metrics[0].settings[0].label == "beta=0.1"
    with pytest.raises(ConfigError, match="did you mean x/y"):
        compare_variants("s", "c", variants, ["x/z"])


def test_the_metric_that_the_varied_settings_bear_on_comes_first():
    known = ["evaluate/sft/accuracy", "evaluate/dpo/accuracy", "evaluate/grpo/accuracy", "dpo/steps"]
    assert default_metrics(known, ["dpo.training.beta"])[0] == "evaluate/dpo/accuracy"
    assert default_metrics(known, ["sft.training.learning_rate"])[0] == "evaluate/sft/accuracy"
    assert default_metrics(["dpo/steps", "dpo/loss"], []) == ["dpo/loss"]


def test_a_sweep_in_which_nothing_is_done_compares_nothing():
    comparison = compare_variants("s", "c", [variant("0.1", "0", None, state="failed")], ["any"])
    assert comparison.metrics == ()
    assert comparison.values == {}


def test_a_metric_that_is_finite_nowhere_is_as_one_that_is_missing():
    """A sweep whose variants have all diverged still ends with its report."""
    metrics = {"dpo/eval/loss": math.nan, "sft/eval/loss": 0.5}
    variants = [VariantRecord(f"v{b}", {"beta": b}, {}, state="done", metrics=metrics) for b in ("1", "2")]
    comparison = compare_variants("x", "x", variants, [])
    assert [metric.metric for metric in comparison.metrics] == ["sft/eval/loss"]
    assert comparison.values["best/sft/eval/loss/mean"] == 0.5
    with pytest.raises(ConfigError, match="dpo/eval/loss: no variant has a finite value of it"):
        compare_variants("x", "x", variants, ["dpo/eval/loss"])
