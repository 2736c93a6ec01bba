"""The quickstart as a user runs it: what it promises about the models that come out."""

import json

import pytest

from stages.loading import load_config, write_params
from tests.stages.conftest import ROOT, Checkout, new_checkout


@pytest.fixture(scope="module")
def line(tmp_path_factory) -> Checkout:
    checkout = new_checkout(tmp_path_factory.mktemp("quickstart") / "line")
    write_params(load_config(ROOT / "configs" / "quickstart.yaml", root=ROOT), checkout.root / "params.yaml")
    checkout.repro()
    return checkout


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_sft_leaves_room_the_reward_model_ranks_and_dpo_is_better_beyond_chance(line):
    metrics = json.loads((line.root / "reports" / "evaluate" / "metrics.json").read_text())
    assert 0.30 <= metrics["sft/accuracy"] <= 0.80
    assert metrics["reward_model/pairwise_accuracy"] >= 0.85
    assert metrics["dpo/accuracy_low"] > metrics["sft/accuracy_high"]
    assert metrics["num_prompts"] >= 500
