"""XPO: who draws what, the bonus by hand, resumed, with an adapter for the policy and its base for the reference."""

import math

import pytest

from tests.trainers.online import EOS
from tests.trainers.paired import assert_resumes_to_the_bit, build_paired, train_adapter
from tests.trainers.test_online_dpo import assert_same_steps, last_log, stepped
from tuneline.errors import ConfigError
from tuneline.rollout.scripted import ScriptedEngine


def always(ids):
    return ScriptedEngine(lambda prompt, seed: [*ids, EOS])


def test_one_completion_is_the_policys_and_the_other_the_references(tmp_path):
    trainer = build_paired("XPO", tmp_path, rollout_engine=always([5, 6]))
    seen = []
    trainer.add_rollout_listener(lambda step, table: seen.extend(table["completion"]))
    trainer.train()
    assert len(seen) == 8
    assert len(set(seen[::2])) == 1
    assert not set(seen[::2]) & set(seen[1::2])


def test_the_bonus_pushes_the_references_completion_down(tmp_path):
    def step(alpha):
        return stepped(build_paired("XPO", tmp_path, rollout_engine=always([5, 6]), alpha=alpha))

    (plain, log_plain), (little, log), (more, _) = (step(alpha) for alpha in ([0.0], [0.01], [0.02]))
    assert log_plain["loss"] == pytest.approx(math.log(2), rel=1e-5)
    assert log["loss"] == pytest.approx(math.log(2) + log["loss/xpo"], rel=1e-4)
    assert log["loss/xpo"] < 0  # alpha times a log-probability
    assert log["alpha"] == pytest.approx(0.01)
    # the gradient is linear in alpha: twice the weight moves by twice the difference
    one = {name: little[name] - plain[name] for name in plain}
    two = {name: more[name] - plain[name] for name in plain}
    assert_same_steps({name: 2 * moved for name, moved in one.items()}, two)


@pytest.mark.slow
def test_a_resumed_run_ends_bit_identical(tmp_path):
    assert_resumes_to_the_bit("XPO", tmp_path, alpha=[0.1, 0.2])


def test_an_adapters_base_is_the_reference_that_draws(tmp_path):
    trainer = train_adapter("XPO", tmp_path)
    assert last_log(trainer)["rewards/margins"] != 0
    assert trainer.model.training  # drawing from the base left it so
    assert all(p.requires_grad for name, p in trainer.model.named_parameters() if "lora" in name)


def test_a_weight_below_0_is_told(tmp_path):
    with pytest.raises(ConfigError, match="alpha=-1"):
        build_paired("XPO", tmp_path, alpha=-1)
