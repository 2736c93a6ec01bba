"""PPO as it was written against older TRL: the programs run with their imports and their models' names changed."""

import logging

from transformers import AutoModelForCausalLM

from tests.compat.examples import gpt2, run_here
from tests.models import tiny_causal_lm, tiny_reward_model
from tests.trainers.rows import character_tokenizer
from tuneline import AutoModelForCausalLMWithValueHead


def saved(model, folder):
    model.save_pretrained(folder)
    character_tokenizer().save_pretrained(folder)
    return folder


def run(name, stand_ins, folder, monkeypatch, capsys, caplog):
    """What an example prints, and what the log says."""
    monkeypatch.setattr("tuneline.classic.dispatch._said", set())
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    with caplog.at_level(logging.WARNING, "tuneline"):
        run_here(name, stand_ins, folder, monkeypatch)
    return capsys.readouterr().out, caplog.text


def test_the_loop_with_a_reward_model(tmp_path, monkeypatch, capsys, caplog):
    policy = saved(tiny_causal_lm("qwen2", max_position_embeddings=256), tmp_path / "sft")
    reward_model = saved(tiny_reward_model("qwen2", max_position_embeddings=256), tmp_path / "reward")
    stand_ins = {
        "path/to/sft_model": policy,
        "path/to/reward_model": reward_model,
        "path/to/rlhf_model": tmp_path / "rlhf",
    }
    printed, said = run("ppo_reward_model_loop.py", stand_ins, tmp_path, monkeypatch, capsys, caplog)
    assert "Epoch 3 completed" in printed
    assert "ppo_epochs is num_ppo_epochs" in said
    assert "tokenizer is processing_class" in said
    learned = AutoModelForCausalLMWithValueHead.from_pretrained(tmp_path / "rlhf")
    assert learned.v_head.summary.weight.abs().max() > 0
    before = AutoModelForCausalLM.from_pretrained(policy).state_dict()
    assert any((value != before[name]).any() for name, value in learned.pretrained_model.state_dict().items())


def test_the_step_with_a_value_head(tmp_path, monkeypatch, capsys, caplog):
    stand_ins = {"gpt2": gpt2(tmp_path / "gpt2")}
    printed, said = run("ppo_value_head_step.py", stand_ins, tmp_path, monkeypatch, capsys, caplog)
    assert printed.startswith("Response: ")
    assert "step got 1 queries; batch_size=2" in said
    assert "model_name is the model argument of PPOTrainer" in said
