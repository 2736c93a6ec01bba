"""Options of TRL's online trainers: those with nothing to act on are taken and explained, the others work."""

import logging

import pytest
import torch

from tests.models import tiny_causal_lm, tiny_reward_model
from tests.trainers.online import build_online, questions
from tests.trainers.rows import character_tokenizer
from tuneline import (
    DistillationConfig,
    GKDConfig,
    GRPOConfig,
    NashMDConfig,
    OnlineDPOConfig,
    RLOOConfig,
    XPOConfig,
)
from tuneline.rewards import RewardModel
from tuneline.rewards.running import OwnsModel
from tuneline.trainers import without_effect

CONFIGS = [GRPOConfig, RLOOConfig, DistillationConfig, GKDConfig, OnlineDPOConfig, XPOConfig, NashMDConfig]


@pytest.mark.parametrize("config", [GRPOConfig, RLOOConfig])
def test_an_option_without_effect_is_said_once_with_the_reason(config, tmp_path, caplog, monkeypatch):
    monkeypatch.setattr(without_effect, "_said", set())
    options = {"cache_implementation": "static", "vllm_group_port": 5000, "use_transformers_paged": True}
    with caplog.at_level(logging.WARNING):
        for _ in range(2):
            config(output_dir=str(tmp_path), use_cpu=True, **options)
    said = [line.getMessage() for line in caplog.records if "has no effect" in line.getMessage()]
    assert len(said) == len(options)
    assert any("cache_implementation='static' has no effect here: the engine that draws has" in one for one in said)


def test_defaults_are_not_remarked_on(tmp_path, caplog, monkeypatch):
    monkeypatch.setattr(without_effect, "_said", set())
    with caplog.at_level(logging.WARNING):
        for config in CONFIGS:
            config(output_dir=str(tmp_path), use_cpu=True)
    assert "no effect" not in caplog.text


def test_every_option_without_effect_is_one_of_a_configuration():
    names = {name for config in CONFIGS for name in config.__dataclass_fields__}
    assert set(without_effect.WITHOUT_EFFECT) <= names


@pytest.mark.parametrize("config", CONFIGS)
def test_older_names_of_options_are_taken(config, tmp_path):
    args = config(output_dir=str(tmp_path), use_cpu=True, evaluation_strategy="no", max_seq_length=99)
    assert args.max_length == 99


def test_the_older_cap_on_the_correction_counts(tmp_path):
    args = GRPOConfig(output_dir=str(tmp_path), use_cpu=True, vllm_importance_sampling_cap=1.5)
    assert args.vllm_importance_sampling_clip_max == 1.5


@pytest.mark.parametrize("method", ["grpo", "rloo"])
def test_the_seconds_of_a_step_are_logged(method, tmp_path):
    trainer = build_online(method, tmp_path, max_steps=2)
    trainer.train()
    seconds = [line["step_time"] for line in trainer.state.log_history if "step_time" in line]
    assert len(seconds) == 2
    assert sum(seconds) <= trainer.state.log_history[-1]["train_runtime"]
    assert sum(trainer.collector.seconds.values()) <= sum(seconds)


def test_a_reward_model_is_brought_to_the_trainers_device():
    reward = RewardModel(tiny_reward_model(), character_tokenizer())
    assert isinstance(reward, OwnsModel)
    reward.move_to(torch.device("meta"))  # a device that every machine has
    assert {one.device.type for one in reward.model.parameters()} == {"meta"}
    reward.move_to(torch.device("cpu"))
    assert next(reward.model.parameters()).device.type == "meta"  # it lies on one, and stays


def test_the_trainer_moves_its_reward_models(tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr(RewardModel, "move_to", lambda self, device: asked.append(device))
    reward = tiny_reward_model()
    trainer = build_online("grpo", tmp_path, reward_funcs=RewardModel(reward, character_tokenizer()))
    assert asked == [trainer.args.device]


def test_a_template_and_an_end_token_reach_the_tokenizer(tmp_path):
    (tmp_path / "chat.jinja").write_text("{% for m in messages %}{{ m.content }}.{% endfor %}")
    trainer = build_online(
        "grpo",
        tmp_path,
        chat_template_path=str(tmp_path / "chat.jinja"),
        eos_token="?",
        train_dataset=questions(2),
        model=tiny_causal_lm(),
    )
    assert trainer.processing_class.eos_token == "?"
    assert trainer.processing_class.chat_template.startswith("{% for m")
