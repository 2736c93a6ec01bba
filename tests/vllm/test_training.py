"""GRPO with completions from a real vLLM server, which has the policy's weights at every step."""

import pytest
from datasets import Dataset
from peft import LoraConfig

from tests.vllm.environment import SMALL, require_vllm
from tests.vllm.policies import tiny_policy
from tuneline import GRPOConfig, GRPOTrainer

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]


def share_of_digits(completions, **columns):
    return [sum(c.isdigit() for c in text) / max(len(text), 1) for text in completions]


@pytest.mark.parametrize(
    ("options", "peft_config"),
    [
        ({"learning_rate": 3e-3, "max_steps": 12}, None),
        (
            {"learning_rate": 1e-2, "max_steps": 3, "top_k": 20, "beta": 0.02},
            LoraConfig(r=4, target_modules="all-linear"),
        ),
    ],
    ids=["whole", "lora, top_k"],
)
def test_grpo_with_a_server_that_it_starts(options, peft_config, tmp_path, monkeypatch):
    for name, value in SMALL.items():
        monkeypatch.setenv(name, value)
    model, tokenizer = tiny_policy()
    args = GRPOConfig(
        output_dir=str(tmp_path),
        use_vllm=True,
        vllm_mode="server",
        vllm_server_start=True,
        vllm_server_python=require_vllm(),
        per_device_train_batch_size=32,
        num_generations=8,
        max_completion_length=16,
        logging_steps=1,
        use_cpu=True,
        report_to="none",
        save_strategy="no",
        disable_tqdm=True,
        **options,
    )
    rows = Dataset.from_list([{"prompt": f"{i} and {i + 1}"} for i in range(16)])
    trainer = GRPOTrainer(model, share_of_digits, args, rows, processing_class=tokenizer, peft_config=peft_config)
    try:
        trainer.train()
    finally:
        trainer.collector.close()
    logs = [line for line in trainer.state.log_history if "reward" in line]
    # the server's weights are those of the step: else the log-probabilities of a trained policy would part
    assert max(line["sampling/sampling_logp_difference/max"] for line in logs) < 1e-3
    assert all(abs(line["sampling/importance_sampling_ratio/mean"] - 1) < 1e-2 for line in logs)
    if peft_config is None:
        assert logs[-1]["reward"] > logs[0]["reward"] + 0.05
