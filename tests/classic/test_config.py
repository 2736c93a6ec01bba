"""Names and defaults of the older configuration, and which generation is meant."""

from dataclasses import fields
from pathlib import Path

import pytest

from tests.classic.models import step_trainer, with_value_head
from tests.trainers.rows import character_tokenizer
from tuneline import PPOConfig, PPOTrainer
from tuneline.classic import dispatch
from tuneline.classic.config import ClassicPPOConfig
from tuneline.classic.trainer import StepPPOTrainer
from tuneline.errors import ConfigError

DEFAULTS = {
    "steps": 20000, "learning_rate": 1.41e-5, "batch_size": 128, "mini_batch_size": 128, "ppo_epochs": 4,
    "gradient_accumulation_steps": 1, "adap_kl_ctrl": True, "init_kl_coef": 0.2, "target": 6, "horizon": 10000,
    "kl_penalty": "kl", "gamma": 1, "lam": 0.95, "cliprange": 0.2, "cliprange_value": 0.2, "vf_coef": 0.1,
    "max_grad_norm": None, "early_stopping": False, "target_kl": 1, "compare_steps": 1, "ratio_threshold": 10.0,
    "use_score_scaling": False, "use_score_norm": False, "score_clip": None, "whiten_rewards": False,
    "optimize_device_cache": False, "log_with": None, "tracker_project_name": "trl", "seed": 0,
    "remove_unused_columns": True, "backward_batch_size": 128, "is_encoder_decoder": None, "world_size": None,
}  # fmt: skip


@pytest.fixture
def unsaid(monkeypatch):
    monkeypatch.setattr(dispatch, "_said", set())


def test_the_defaults_are_the_older_ones():
    config = ClassicPPOConfig()
    assert {name: getattr(config, name) for name in DEFAULTS} == DEFAULTS
    assert config.total_ppo_epochs == 157  # 20,000 queries in batches of 128
    assert config.exp_name


def test_older_names_of_older_names_are_taken():
    config = ClassicPPOConfig(batch_size=8, forward_batch_size=2, optimize_cuda_cache=True)
    assert config.mini_batch_size == config.backward_batch_size == 2
    assert config.optimize_device_cache


def test_a_configuration_as_a_flat_dictionary():
    flat = ClassicPPOConfig(tracker_kwargs={"entity": "me"}).to_dict()
    assert flat["tracker_kwargs/entity"] == "me"
    assert flat["ppo_epochs"] == 4


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch_size": 6, "mini_batch_size": 4}, r"batch_size=6 is no multiple of 4.*\[1, 2, 3, 6\]"),
        ({"batch_size": 0, "mini_batch_size": 1}, "batch_size=0 must be at least 1"),
        ({"kl_penalty": "k3"}, "kl_penalty='k3' is unknown; use one of kl, abs, mse, full"),
        ({"log_with": "paper"}, "log_with='paper' is unknown"),
        ({"use_score_norm": True}, "use_score_scaling"),
        ({"target": 0}, "target=0 must be above 0"),
        ({"lam": 1.5}, "lam=1.5 must be from 0 to 1"),
        ({"score_clip": -1}, "score_clip=-1 must be above 0, or None"),
    ],
)
def test_options_out_of_range_are_named(options, message):
    with pytest.raises(ConfigError, match=message):
        ClassicPPOConfig(**options)


def test_a_keyword_that_only_the_older_generation_has_asks_for_it(unsaid, caplog, tmp_path):
    older = PPOConfig(learning_rate=1e-5, batch_size=4, mini_batch_size=4, ppo_epochs=2)
    assert isinstance(older, ClassicPPOConfig)
    assert "ppo_epochs is num_ppo_epochs" in caplog.text
    assert "mini_batch_size is per_device_train_batch_size" in caplog.text
    assert caplog.text.count("\n") == 1
    PPOConfig(learning_rate=1e-5, batch_size=4, mini_batch_size=4)
    assert caplog.text.count("\n") == 1  # each is said once
    newer = PPOConfig(output_dir=str(tmp_path), num_ppo_epochs=2, report_to="none", use_cpu=True)
    assert not isinstance(newer, ClassicPPOConfig)


def test_keywords_of_both_generations_are_refused():
    with pytest.raises(ConfigError, match=r"ppo_epochs of the older .* beside num_mini_batches.*is num_ppo_epochs"):
        PPOConfig(ppo_epochs=4, num_mini_batches=2)


def test_an_older_configuration_makes_an_older_trainer(unsaid, caplog):
    config = PPOConfig(batch_size=4, mini_batch_size=4, accelerator_kwargs={"cpu": True})
    for arguments in ({"config": config}, {"args": config}):
        trainer = PPOTrainer(**arguments, model=with_value_head(), tokenizer=character_tokenizer())
        assert isinstance(trainer, StepPPOTrainer)
    assert isinstance(PPOTrainer(config, with_value_head(), processing_class=character_tokenizer()), StepPPOTrainer)
    assert "config is args" in caplog.text
    assert "tokenizer is processing_class" in caplog.text


def test_a_newer_configuration_under_the_older_name_is_told_apart(tmp_path):
    config = PPOConfig(output_dir=str(tmp_path), report_to="none", use_cpu=True)
    with pytest.raises(ConfigError, match="make it with PPOConfig"):
        PPOTrainer(config=config, model=with_value_head(), tokenizer=character_tokenizer())


def test_an_argument_that_no_generation_has_is_an_error():
    with pytest.raises(TypeError, match="teacher"):
        PPOTrainer(config=ClassicPPOConfig(), teacher=1)
    with pytest.raises(TypeError, match="ppo_epoch"):
        PPOConfig(ppo_epoch=4)


def test_every_option_is_explained_and_read():
    code = "\n".join(path.read_text() for path in Path(dispatch.__file__).parent.glob("*.py"))
    for option in fields(ClassicPPOConfig):
        assert option.metadata.get("help"), option.name
        filled_in = option.metadata["help"].startswith(("Set by", "Computed", "Name of"))
        read = any(f"{owner}.{option.name}" in code for owner in ("config", "self"))
        assert read or filled_in or f'"{option.name}"' in code, option.name
    assert step_trainer(batch_size=2, mini_batch_size=1).config.world_size == 1
