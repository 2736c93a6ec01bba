"""A champion of another test set is fetched from DVC's cache and evaluated anew, with real (tiny) models."""

import pytest

from tasks.promotion import promote
from tasks.registry import Registry
from tests.stages.checkouts import new_checkout

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(900),
    pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::DeprecationWarning"),
]
SMALL = (
    "ppo.rewards=[]",
    "grpo.rewards=[]",
    "evaluate.best_of_n=[]",
    "promotion.num_resamples=200",
    "promotion.first=true",
    "sft.training.max_steps=2",
    "reward.training.max_steps=2",
    "dpo.training.max_steps=2",
)


def test_a_champion_of_other_items_is_evaluated_anew_and_compared(tmp_path, monkeypatch):
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    checkout = new_checkout(tmp_path / "line")
    monkeypatch.chdir(checkout.root)
    checkout.configure(*SMALL)
    checkout.repro()
    first = promote(checkout.root)
    assert first.alias_moved
    made = Registry(checkout.root).of_content("tiny-dpo", Registry(checkout.root).champion("tiny").md5)
    assert Registry(checkout.root).champion("tiny").run_id == made.run_id != ""

    checkout.configure(*SMALL, "evaluate.max_new_tokens=5", "dpo.training.beta=0.4", "promotion.min_gain=-1.0")
    checkout.repro()
    second = promote(checkout.root)
    assert "version 1 was evaluated anew, as its results are of other held-out items" in " ".join(second.reasons)
    assert second.held_out_digest != first.held_out_digest
    assert second.metrics[0].name == "accuracy"
    assert [line.name for line in second.metrics][1:3] == ["kl", "length"]
