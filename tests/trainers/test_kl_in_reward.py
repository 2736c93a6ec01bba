"""GRPO with the divergence from the reference in the reward: what the advantages are made of, and what is left out."""

import pytest
import torch
from torch.testing import assert_close

from tests.models import tiny_causal_lm
from tests.trainers.build import weights, with_plain_descent
from tests.trainers.online import build_online, num_letters
from tuneline import GRPOConfig
from tuneline.errors import ConfigError

BETA = 0.25
OPTIONS = {"beta": BETA, "kl_in_reward": True, "scale_rewards": "none"}


def moved_away(trainer):
    """A policy that is not its reference any more."""
    with torch.no_grad():
        trainer.model.lm_head.weight.mul_(1.3)
    return trainer


def log_ratio(policy, reference, prompt_ids, completion_ids):
    """log(policy / reference) of a completion, from plain forward passes."""
    ids = torch.tensor([[*prompt_ids, *completion_ids]])
    both = [model(input_ids=ids).logits[0, len(prompt_ids) - 1 : -1].log_softmax(-1) for model in (policy, reference)]
    index = torch.tensor(completion_ids)[:, None]
    return (both[0].gather(1, index) - both[1].gather(1, index)).sum().item()


@torch.no_grad()
def test_the_divergence_of_the_whole_completion_is_taken_off_its_reward(tmp_path):
    trainer = moved_away(build_online("grpo", tmp_path, **OPTIONS, num_iterations=2))
    policy, reference = tiny_causal_lm(), tiny_causal_lm()
    policy.lm_head.weight = torch.nn.Parameter(trainer.model.lm_head.weight.detach().clone())
    policy.model.embed_tokens.weight = policy.lm_head.weight  # tied
    reference.tie_weights()
    rows = list(trainer.train_dataset.select([0] * 4 + [1] * 4))
    scored = trainer.collect(rows, 4, ("by hand",))
    totals, ratios = [], []
    for one in scored:
        ratios.append(log_ratio(policy, reference, one.rollout.prompt_ids, one.rollout.completion_ids))
        totals.append(num_letters([one.rollout.completion_ids])[0] - BETA * ratios[-1])
    assert max(map(abs, ratios)) > 0.5
    groups = torch.tensor(totals).view(2, 4)
    expected = (groups - groups.mean(1, keepdim=True)).flatten()
    assert_close(torch.tensor([one.advantage for one in scored]), expected, atol=1e-4, rtol=1e-4)
    for one in scored:  # two passes over them: the second needs to know who drew, and neither the reference
        assert "ref_logprobs" not in one.by_target
        assert "old_logprobs" in one.by_target
    num_tokens = sum(len(one.rollout.completion_ids) for one in scored)
    assert trainer.flush_metrics("train")["kl"] == pytest.approx(sum(ratios) / num_tokens, abs=1e-4)


def test_one_pass_is_trained_without_old_policy_and_reference(tmp_path):
    trainer = moved_away(build_online("grpo", tmp_path, **OPTIONS))
    scored = trainer.collect(list(trainer.train_dataset.select([0] * 4)), 4, ("by hand",))
    assert set(scored[0].by_target) == {"sampler_logprobs"}


def test_completions_without_a_reward_have_none_for_their_divergence_either(tmp_path):
    trainer = moved_away(
        build_online("grpo", tmp_path, **OPTIONS, reward_funcs=lambda completion_ids, **_: [None] * len(completion_ids))
    )
    before = weights(with_plain_descent(trainer))
    trainer.train()
    assert all(torch.equal(weight, before[name]) for name, weight in weights(trainer).items())


@pytest.mark.parametrize(
    ("options", "message"),
    [({"beta": 0.0}, "beta is 0"), ({"multi_objective_aggregation": "normalize_then_sum"}, "beta meant nothing")],
)
def test_options_that_contradict_it_are_refused(options, message, tmp_path):
    with pytest.raises(ConfigError, match=message):
        GRPOConfig(output_dir=str(tmp_path), use_cpu=True, **{"beta": BETA, "kl_in_reward": True, **options})
