"""Quick starts as TRL's users write them, newest interface and older ones: they train with their imports changed."""

import logging
import math

import pytest
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

from tests.compat.examples import (
    chat_model,
    chats_preferred,
    conversations,
    data_set,
    encoder_of_two_labels,
    gpt2,
    problems,
    prompts,
    run_here,
    texts,
    texts_preferred,
)

# programs that say nothing of a device ask for pinned memory, and torch says on a CPU that there is none
pytestmark = pytest.mark.filterwarnings("ignore:'pin_memory' argument is set as true")


@pytest.fixture(autouse=True)
def no_services(monkeypatch):
    """Nothing else of the machine: on the processor, no trackers."""
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    monkeypatch.setenv("DISABLE_MLFLOW_INTEGRATION", "TRUE")
    monkeypatch.setenv("WANDB_DISABLED", "true")


def has_trained(trainer):
    (summary,) = [log for log in trainer.state.log_history if "train_loss" in log]
    assert math.isfinite(summary["train_loss"])
    assert trainer.state.global_step == trainer.state.max_steps > 0
    return True


def test_sft_quickstart(tmp_path, monkeypatch):
    stand_ins = {
        "Qwen/Qwen2.5-0.5B": chat_model(tmp_path / "qwen"),
        "trl-lib/Capybara": data_set(tmp_path / "capybara", conversations()),
    }
    assert has_trained(run_here("sft_quickstart.py", stand_ins, tmp_path, monkeypatch)["trainer"])


def test_sft_with_the_older_names(tmp_path, monkeypatch, caplog):
    stand_ins = {
        "gpt2": gpt2(tmp_path / "gpt2"),
        "imdb": data_set(tmp_path / "imdb", texts()),
        "path/to/save/model": tmp_path / "saved",
    }
    with caplog.at_level(logging.WARNING, "tuneline"):
        trainer = run_here("sft_gpt2_imdb.py", stand_ins, tmp_path, monkeypatch)["trainer"]
    assert has_trained(trainer)
    assert trainer.args.max_length == 512
    assert trainer.args.dataset_text_field == "text"
    said = [record.message for record in caplog.records if record.name.endswith("older_names")]
    assert said == [
        "SFTConfig: max_seq_length is max_length today",
        "SFTTrainer: tokenizer is processing_class today",
        "SFTTrainer: dataset_text_field is an option of SFTConfig",
    ]
    AutoModelForCausalLM.from_pretrained(tmp_path / "saved")


def test_dpo_quickstart(tmp_path, monkeypatch):
    stand_ins = {
        "Qwen/Qwen2.5-0.5B-Instruct": chat_model(tmp_path / "qwen"),
        "trl-lib/ultrafeedback_binarized": data_set(tmp_path / "feedback", chats_preferred()),
    }
    assert has_trained(run_here("dpo_quickstart.py", stand_ins, tmp_path, monkeypatch)["trainer"])


def test_reward_quickstart(tmp_path, monkeypatch):
    stand_ins = {
        "Qwen/Qwen2.5-0.5B-Instruct": chat_model(tmp_path / "qwen"),
        "trl-lib/ultrafeedback_binarized": data_set(tmp_path / "feedback", chats_preferred()),
    }
    assert has_trained(run_here("reward_quickstart.py", stand_ins, tmp_path, monkeypatch)["trainer"])


def test_a_reward_model_from_an_encoder_of_two_labels(tmp_path, monkeypatch, caplog):
    stand_ins = {
        "bert-base-uncased": encoder_of_two_labels(tmp_path / "bert"),
        "your_preference_dataset": data_set(tmp_path / "preferences", texts_preferred()),
        "path/to/reward_model": tmp_path / "saved",
    }
    with caplog.at_level(logging.WARNING, "tuneline"):
        assert has_trained(run_here("reward_bert.py", stand_ins, tmp_path, monkeypatch)["trainer"])
    assert "the logit of the second less that of the first" in caplog.text
    saved = AutoModelForSequenceClassification.from_pretrained(tmp_path / "saved")
    assert saved.config.num_labels == 1
    assert saved.classifier.weight.shape == (1, 32)


@pytest.mark.slow
def test_grpo_quickstart(tmp_path, monkeypatch):
    stand_ins = {
        "Qwen/Qwen2-0.5B-Instruct": chat_model(tmp_path / "qwen"),
        "trl-lib/tldr": data_set(tmp_path / "tldr", prompts()),
    }
    assert has_trained(run_here("grpo_quickstart.py", stand_ins, tmp_path, monkeypatch)["trainer"])


@pytest.mark.slow
def test_grpo_with_a_reward_for_the_right_answer(tmp_path, monkeypatch):
    pytest.importorskip("math_verify")
    stand_ins = {
        "Qwen/Qwen2.5-0.5B-Instruct": chat_model(tmp_path / "qwen"),
        "trl-lib/DeepMath-103K": data_set(tmp_path / "problems", problems()),
    }
    trainer = run_here("grpo_accuracy_reward.py", stand_ins, tmp_path, monkeypatch)["trainer"]
    assert has_trained(trainer)
