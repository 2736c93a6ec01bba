"""The gate's numbers: a paired bootstrap over items, a minimum gain, and guards with tolerances."""

import json

import numpy as np
import pytest

from stages.schema_promotion import Guards, PromotionSection
from tasks.promotion_gate import Results, compare, paired_bootstrap, read_results
from tuneline.errors import DataError

OPTIONS = PromotionSection(num_resamples=1000)


def results(accuracies, policy="dpo", kl=1.0, length=10, digest="d", task="add"):
    rows = {
        f"item-{i}": {"accuracy": value, "reward": None, "kl": kl, "num_tokens": length, "task": task}
        for i, value in enumerate(accuracies)
    }
    return Results(policy, digest, rows)


def test_the_bootstrap_is_seeded_and_its_interval_has_the_width_of_the_standard_error():
    differences = np.random.default_rng(0).normal(0.1, 1.0, 400)
    options = dict(num_resamples=20_000, confidence=0.95)
    interval = paired_bootstrap(differences, seed=3, **options)
    assert interval == paired_bootstrap(differences, seed=3, **options)
    assert interval.estimate == pytest.approx(differences.mean())
    half_width = 1.96 * differences.std() / 20  # sqrt(400)
    assert interval.high - interval.estimate == pytest.approx(half_width, rel=0.05)
    assert interval.estimate - interval.low == pytest.approx(half_width, rel=0.05)


def test_the_same_mean_gain_is_surer_where_items_pair():
    # both sides vary by 0.5 between items, but the challenger is always the same 0.05 better
    hard = np.tile([0.0, 0.9], 100)
    (line, *_), _ = compare(results(hard), results(hard + 0.05), OPTIONS, seed=0)
    assert line.passed
    assert (line.low, line.high) == pytest.approx((0.05, 0.05))


def test_a_gain_has_to_lie_above_the_minimum_with_its_whole_interval():
    champion, challenger = results([0.0] * 100), results([1.0] * 10 + [0.0] * 90)
    (line, *_), _ = compare(champion, challenger, OPTIONS, seed=0)
    assert line.difference == pytest.approx(0.1)
    assert 0.04 < line.low < 0.06
    assert line.passed
    (line, *_), _ = compare(champion, challenger, PromotionSection(min_gain=0.08), seed=0)
    assert not line.passed
    assert "0.08" in line.verdict
    (line, *_), _ = compare(champion, champion, OPTIONS, seed=0)
    assert not line.passed  # as good is not better
    (line, *_), _ = compare(champion, champion, PromotionSection(min_gain=-0.01), seed=0)
    assert line.passed


@pytest.mark.parametrize(
    ("changed", "name"), [({"kl": 7.0}, "kl"), ({"length": 16}, "length"), ({"length": 4}, "length")]
)
def test_a_guard_refuses_what_gets_worse_by_more_than_its_tolerance(changed, name):
    champion, better = results([0.0] * 50), [1.0] * 50
    lines, notes = compare(champion, results(better, **changed), OPTIONS, seed=0)
    assert [line.name for line in lines if not line.passed] == [name]
    assert not notes
    off = PromotionSection(guards=Guards(kl=None, length=None))
    assert all(line.passed for line in compare(champion, results(better, **changed), off, seed=0)[0])


def test_a_task_that_falls_is_not_paid_for_by_another():
    def of_tasks(add, sort):
        both = {**results([add] * 50).rows, **{f"s{k}": v for k, v in results([sort] * 20, task="sort").rows.items()}}
        return Results("dpo", "d", both)

    lines, _ = compare(of_tasks(0.2, 0.8), of_tasks(0.9, 0.7), OPTIONS, seed=0)
    assert {line.name: line.passed for line in lines if "accuracy" in line.name} == {
        "accuracy": True,
        "accuracy/add": True,
        "accuracy/sort": False,
    }
    assert all(line.passed for line in compare(of_tasks(0.2, 0.8), of_tasks(0.9, 0.75), OPTIONS, seed=0)[0])


def test_other_items_are_not_compared_and_a_metric_that_nobody_knows_is_named():
    with pytest.raises(DataError, match="not asked the same items"):
        compare(results([1.0], digest="a"), results([1.0], digest="b"), OPTIONS, seed=0)
    with pytest.raises(DataError, match="not asked the same items"):
        compare(results([1.0, 1.0]), results([1.0]), OPTIONS, seed=0)
    with pytest.raises(DataError, match=r"promotion\.metric=reward is known of no held-out item"):
        compare(results([1.0]), results([1.0]), PromotionSection(metric="reward"), seed=0)


def test_the_sft_model_diverges_from_itself_by_nothing_and_unmeasured_divergence_is_told():
    lines, _ = compare(results([0.0] * 9, policy="sft", kl=None), results([1.0] * 9, kl=4.0), OPTIONS, seed=0)
    assert next(line for line in lines if line.name == "kl").champion == 0.0
    _, notes = compare(results([0.0] * 9, kl=None), results([1.0] * 9), OPTIONS, seed=0)
    assert notes == ["guard kl: not measured on both sides, so it guards nothing"]


def test_results_are_read_by_policy():
    rows = [{"item": "a", "policy": "sft", "accuracy": 1.0}, {"item": "a", "policy": "dpo", "accuracy": 0.5}]
    text, held_out = "".join(json.dumps(row) + "\n" for row in rows), json.dumps({"digest": "x"})
    assert read_results(text, held_out, "dpo").rows["a"]["accuracy"] == 0.5
    with pytest.raises(DataError, match="no results of ppo; it has those of sft, dpo"):
        read_results(text, held_out, "ppo")
