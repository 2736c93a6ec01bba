"""Options of PPO: what follows from them, and what is refused."""

import dataclasses
import json

import pytest

from tests.trainers.ppo import config
from tuneline import PPOConfig
from tuneline.errors import ConfigError


def test_defaults_are_those_of_trl(tmp_path):
    made = PPOConfig(output_dir=str(tmp_path), use_cpu=True)
    expected = {
        "learning_rate": 3e-6, "num_ppo_epochs": 4, "num_mini_batches": 1, "local_rollout_forward_batch_size": 64,
        "response_length": 53, "temperature": 0.7, "kl_coef": 0.05, "kl_estimator": "k1", "cliprange": 0.2,
        "vf_coef": 0.1, "cliprange_value": 0.2, "gamma": 1.0, "lam": 0.95, "whiten_rewards": False,
        "missing_eos_penalty": None, "stop_token": None, "stop_token_id": None, "total_episodes": None,
    }  # fmt: skip
    assert {name: getattr(made, name) for name in expected} == expected


def test_a_generation_holds_all_mini_batches(tmp_path):
    made = config(tmp_path, num_mini_batches=3, gradient_accumulation_steps=2, num_ppo_epochs=5)
    assert made.generation_batch_size == 8 * 2 * 3
    assert (made.num_iterations, made.max_completion_length, made.beta) == (5, 8, 0.05)


def test_episodes_set_the_number_of_steps(tmp_path):
    made = config(tmp_path, max_steps=-1, total_episodes=100, num_mini_batches=2, num_ppo_epochs=3)
    assert made.max_steps == 7 * 2 * 3  # 16 completions a generation
    with pytest.raises(ConfigError, match="max_steps=5 and total_episodes=100, which is 42 optimizer steps"):
        config(tmp_path, max_steps=5, total_episodes=100, num_mini_batches=2, num_ppo_epochs=3)


def test_a_configuration_is_made_again_from_what_it_wrote(tmp_path):
    made = config(tmp_path, max_steps=-1, total_episodes=100, kl_coef=0.2, cliprange=0.1, num_mini_batches=2)
    again = PPOConfig(**{f.name: getattr(made, f.name) for f in dataclasses.fields(made) if f.init})
    assert again.to_dict() == made.to_dict()
    json.dumps(made.to_dict())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"beta": 0.1}, "beta=0.1: this trainer has kl_coef in its place"),
        ({"num_iterations": 2}, "has num_ppo_epochs"),
        ({"max_completion_length": 7}, "has response_length"),
        ({"steps_per_generation": 3}, "num_mini_batches"),
        ({"kl_estimator": "k2"}, "use one of k1, k3"),
        ({"stop_token": "pad"}, "use one of None, eos"),
        ({"stop_token": "eos", "stop_token_id": 3}, "give one of them"),
        ({"value_function": "tail"}, "None, head, model, adapter"),
        ({"num_ppo_epochs": 0}, "at least 1"),
        ({"num_mini_batches": 0}, "at least 1"),
        ({"num_generations": 0}, "num_generations=0 must be at least 1."),
        ({"kl_coef": -0.1}, "at least 0"),
        ({"cliprange": 1.5}, r"cliprange=1.5 must lie in \[0, 1\]"),
        ({"cliprange_value": 0.0}, "above 0"),
        ({"delta": 0.5}, "delta=0.5"),
        ({"lam": 1.1}, r"\[0, 1\]"),
        ({"value_lam": -1}, r"\[0, 1\]"),
        ({"length_adaptive_lam": 0.0}, "above 0"),
        ({"adap_kl_ctrl": True, "kl_coef": 0.0}, "kl_coef=0 stays 0"),
        ({"adap_kl_ctrl": True, "horizon": 0}, "horizon=0"),
        ({"use_score_norm": True}, "use_score_scaling"),
        ({"router_aux_loss_coef": 0.1}, "mixtures of experts"),
    ],
    ids=str,
)
def test_options_that_cannot_be_are_refused(options, message, tmp_path):
    with pytest.raises(ConfigError, match=message):
        config(tmp_path, **options)
