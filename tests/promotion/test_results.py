"""Results item by item, and a champion that is evaluated anew: the same model has the same results."""

import json

import pytest

from stages.evaluate_again import CHAMPION, evaluate_again
from stages.evaluate_items import held_out_digest, item_keys
from tasks.promotion_gate import compare, read_results
from tests.promotion.conftest import TinyLine
from tuneline.evaluation.prompts import Prompts


def test_items_are_known_by_their_content_in_any_order_and_twice():
    prompts = Prompts({"prompt": ["a", "b", "a"], "solution": ["1", "2", "1"], "task": [None, "add", None]})
    keys = item_keys(prompts)
    assert keys[2] == f"{keys[0]}-2"
    assert keys[0] != item_keys(Prompts({"prompt": ["a"], "solution": ["2"]}))[0]
    assert held_out_digest(keys, {"temperature": 1}) == held_out_digest(keys[::-1], {"temperature": 1})
    assert held_out_digest(keys, {"temperature": 1}) != held_out_digest(keys, {"temperature": 0})
    assert held_out_digest(keys, {}) != held_out_digest(keys[:2], {})


def texts(folder):
    return tuple((folder / name).read_text() for name in ("items.jsonl", "held_out.json"))


@pytest.mark.parametrize("num_completions", [pytest.param(1, marks=pytest.mark.slow), 3])
def test_evaluated_anew_a_policy_has_the_results_of_its_own_evaluation(line: TinyLine, num_completions):
    sampled = (f"evaluate.num_completions={num_completions}", "evaluate.temperature=1.0")
    line.configure("evaluate.best_of_n=[]", "dpo.training.max_steps=2", *sampled, "evaluate.pass_at=[1]")
    line.run("dpo")
    files = line.run("evaluate") / "report" / "files"
    own, sft = (read_results(*texts(files), name) for name in ("dpo", "sft"))
    assert {row["num_samples"] for row in own.rows.values()} == {num_completions}
    evaluate_again(line.root, line.root / "models" / "dpo", line.root / "again")
    again = read_results(*texts(line.root / "again"), CHAMPION)
    assert again.digest == own.digest
    for key, row in own.rows.items():
        assert {**again.rows[key], "policy": "dpo"} == row
    from stages.schema_promotion import PromotionSection

    lines, notes = compare(again, own, PromotionSection(num_resamples=50), seed=0)
    assert {(one.difference, one.low, one.high) for one in lines} == {(0.0, 0.0, 0.0)}
    assert not notes
    assert [one.name for one in lines] == ["accuracy", "kl", "length", "accuracy/add", "accuracy/sort"]
    metrics = json.loads((files.parent / "metrics.json").read_text())
    mean_kl = sum(row["kl"] for row in own.rows.values()) / len(own.rows)
    assert metrics["dpo/kl_exact"] == pytest.approx(mean_kl, rel=1e-5)
    assert all(row["kl"] is None for row in sft.rows.values())
