"""The quickstart as a user runs it: what it promises about the models that come out."""

import json

import pytest

from stages.loading import load_config, load_params, write_params
from stages.schema import ONLINE_STAGES, STAGES
from tests.stages.checkouts import ROOT, Checkout, new_checkout

pytestmark = [pytest.mark.slow, pytest.mark.timeout(3600)]


@pytest.fixture(scope="module")
def line(tmp_path_factory) -> Checkout:
    return run(tmp_path_factory.mktemp("quickstart") / "line")


def run(root) -> Checkout:
    checkout = new_checkout(root)
    write_params(load_config(ROOT / "configs" / "quickstart.yaml", root=ROOT), checkout.root / "params.yaml")
    checkout.repro()
    return checkout


def metrics_of(line, stage="evaluate"):
    return json.loads((line.root / "reports" / stage / "metrics.json").read_text())


def test_sft_leaves_room_the_reward_model_ranks_and_dpo_is_better_beyond_chance(line):
    metrics = metrics_of(line)
    assert 0.30 <= metrics["sft/accuracy"] <= 0.80
    assert metrics["reward_model/pairwise_accuracy"] >= 0.85
    assert metrics["dpo/accuracy_low"] > metrics["sft/accuracy_high"]
    assert metrics["num_prompts"] >= 500


def test_ppo_on_the_learned_reward_model_ends_ten_points_above_sft_with_intervals_apart(line):
    metrics = metrics_of(line)
    assert [reward.model for reward in load_params(line.root / "params.yaml").ppo.rewards] == [True]
    assert metrics["ppo/accuracy"] >= metrics["sft/accuracy"] + 0.10
    assert metrics["ppo/accuracy_low"] > metrics["sft/accuracy_high"]


def test_best_of_n_is_measured_up_to_sixteen(line):
    metrics = metrics_of(line)
    rewards = [metrics[f"best_of_{n}/reward"] for n in (1, 2, 4, 8, 16)]
    assert rewards == sorted(rewards)
    assert metrics["best_of_2/accuracy_low"] > metrics["best_of_1/accuracy_high"]
    assert metrics["best_of_16/kl_bound"] == pytest.approx(1.8350887)


def test_grpo_ends_fifteen_points_above_sft_with_intervals_apart(line):
    metrics = metrics_of(line)
    assert metrics["grpo/accuracy"] >= metrics["sft/accuracy"] + 0.15
    assert metrics["grpo/accuracy_low"] > metrics["sft/accuracy_high"]


def test_a_second_run_gives_the_same_numbers(line, tmp_path):
    again = run(tmp_path / "line")
    for stage in STAGES:
        assert metrics_of(again, stage) == metrics_of(line, stage), stage
    for stage in ONLINE_STAGES:
        assert again.hash_of(f"reports/{stage}/rollouts") == line.hash_of(f"reports/{stage}/rollouts")
