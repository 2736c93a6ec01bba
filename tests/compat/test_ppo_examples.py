"""PPO as it was written against older TRL: the programs run with their imports and their models' names changed."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from transformers import AutoModelForCausalLM

from tests.models import tiny_causal_lm, tiny_reward_model
from tests.trainers.rows import character_tokenizer
from tuneline import AutoModelForCausalLMWithValueHead

ROOT = Path(__file__).parents[2]
EXAMPLES = ROOT.parent / "shared" / "compat"


def run(name, stand_ins, folder):
    """What an example prints, to both streams.

    Args:
        stand_ins: what takes the place of each name of a model.
    """
    source = EXAMPLES / name
    if not source.is_file():
        pytest.skip(f"{name} is not in {EXAMPLES}")
    code = re.sub(r"^(from|import) trl\b", r"\1 tuneline", source.read_text(), flags=re.MULTILINE)
    for model, stand_in in stand_ins.items():
        assert f'"{model}"' in code
        code = code.replace(f'"{model}"', repr(str(stand_in)))
    program = folder / name
    program.write_text(code)
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(
        [sys.executable, program], cwd=folder, env=environment, capture_output=True, text=True, timeout=240
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout, done.stderr


def saved(model, folder):
    model.save_pretrained(folder)
    character_tokenizer().save_pretrained(folder)
    return folder


def test_the_loop_with_a_reward_model(tmp_path):
    policy = saved(tiny_causal_lm("qwen2", max_position_embeddings=256), tmp_path / "sft")
    reward_model = saved(tiny_reward_model("qwen2", max_position_embeddings=256), tmp_path / "reward")
    printed, said = run(
        "ppo_reward_model_loop.py",
        {"path/to/sft_model": policy, "path/to/reward_model": reward_model, "path/to/rlhf_model": tmp_path / "rlhf"},
        tmp_path,
    )
    assert "Epoch 3 completed" in printed
    assert "ppo_epochs is num_ppo_epochs" in said
    assert "tokenizer is processing_class" in said
    learned = AutoModelForCausalLMWithValueHead.from_pretrained(tmp_path / "rlhf")
    assert learned.v_head.summary.weight.abs().max() > 0
    before = AutoModelForCausalLM.from_pretrained(policy).state_dict()
    assert any((value != before[name]).any() for name, value in learned.pretrained_model.state_dict().items())


def test_the_step_with_a_value_head(tmp_path):
    printed, said = run("ppo_value_head_step.py", {"gpt2": saved(tiny_causal_lm("gpt2"), tmp_path / "gpt2")}, tmp_path)
    assert printed.startswith("Response: ")
    assert "step got 1 queries; batch_size=2" in said
    assert "model_name is the model argument of PPOTrainer" in said
