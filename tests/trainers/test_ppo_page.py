"""What the page on PPO shows runs as it stands, and what it names is there."""

import re
from dataclasses import fields
from pathlib import Path

import pytest
from datasets import Dataset
from transformers import AutoModelForCausalLM

from tests.data import tiny_tokenizers
from tests.models import tiny_causal_lm, tiny_reward_model
from tuneline import PPOConfig

PAGE = Path(__file__).parents[2] / "docs" / "ppo.md"


@pytest.mark.filterwarnings("ignore:'pin_memory' argument")  # as a user without a GPU sees it
def test_the_example_of_the_page_runs_and_its_metrics_are_logged(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name, model in (("sft", tiny_causal_lm(vocab_size=128)), ("reward", tiny_reward_model(vocab_size=128))):
        model.save_pretrained(f"runs/{name}")
        tiny_tokenizers.character_tokenizer().save_pretrained(f"runs/{name}")
    names = {"prompts": Dataset.from_list([{"prompt": f"what is {i}?"} for i in range(8)])}
    text = PAGE.read_text()
    (block,) = re.findall(r"^```python\n(.*?)^```", text, re.DOTALL | re.MULTILINE)
    exec(compile(block, str(PAGE), "exec"), names)
    trainer = names["trainer"]
    assert trainer.module.form == "model"
    AutoModelForCausalLM.from_pretrained("runs/policy")
    (line,) = [line for line in trainer.state.log_history if "loss" in line]
    table = text[text.index("## What the log says") :]
    named = {name for row in re.findall(r"^\| (`.*?) \|", table, re.MULTILINE) for name in re.findall(r"`(.*?)`", row)}
    assert "objective/kl" in named
    assert named <= line.keys()


def test_the_options_of_the_page_are_there():
    known = {field.name for field in fields(PPOConfig)}
    section = PAGE.read_text().split("## The value function")[0].split("## A generation")[1]
    named = set(re.findall(r"`([a-z_]+)`", section))
    assert "num_ppo_epochs" in named
    assert named <= known
