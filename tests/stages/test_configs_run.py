"""The line on real human preferences, each setting that costs time made small."""

import json

import pyarrow.parquet as pq
import pytest

from stages.loading import load_config, write_params
from tests.data.shared_files import real_data
from tests.stages.checkouts import ROOT, new_checkout

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

SMALL = [
    "model.init.hidden_size=32",
    "model.init.intermediate_size=64",
    "model.init.num_hidden_layers=1",
    "model.init.num_attention_heads=2",
    "model.init.num_key_value_heads=1",
    "model.init.vocab_size=400",
    "prepare.max_rows=60",
    *(f"{stage}.training.max_steps=2" for stage in ("sft", "reward", "dpo")),
    "evaluate.num_samples=4",
    "evaluate.num_side_by_side=2",
    "evaluate.max_new_tokens=4",
    "gates.reward_accuracy=null",  # two steps teach nothing
    "gates.ended_answers=null",
]


SMALL_GSM8K = [
    *(override for override in SMALL if override.startswith(("model.", "prepare.", "gates."))),
    *(f"{stage}.training.max_steps=2" for stage in ("sft", "grpo")),
    "grpo.training.per_device_train_batch_size=8",
    "grpo.training.num_generations=4",
    "grpo.training.max_completion_length=12",
    "evaluate.num_samples=4",
    "evaluate.num_side_by_side=2",
    "evaluate.max_new_tokens=12",
    "evaluate.num_completions=3",
    "evaluate.pass_at=[1, 2]",
]


@pytest.mark.parametrize("method", ["grpo", "rloo"])
def test_the_line_runs_on_problems_of_gsm8k(tmp_path, method):
    line = new_checkout(tmp_path / "line")
    source, test = real_data("gsm8k-train.jsonl.gz"), real_data("gsm8k-test.jsonl.gz")
    paths = [f"prepare.demonstrations.path={source}", f"prepare.test.path={test}", f"grpo.method={method}"]
    config = load_config(ROOT / "configs" / "gsm8k.yaml", [*SMALL_GSM8K, *paths], root=ROOT)
    write_params(config, line.root / "params.yaml")
    line.repro()
    metrics = json.loads((line.root / "reports" / "evaluate" / "metrics.json").read_text())
    assert metrics["num_prompts"] == 4
    for policy in ("sft", "grpo"):
        for measure in ("accuracy", "pass_at_1", "pass_at_2"):
            assert 0 <= metrics[f"{policy}/{measure}_low"] <= metrics[f"{policy}/{measure}_high"] <= 1
    assert not (line.root / "models" / "dpo" / "model.safetensors").exists()
    rollouts = pq.read_table(line.root / "reports" / "grpo" / "rollouts" / "rollouts.parquet")
    assert set(rollouts["step"].to_pylist()) == {1, 2}
    assert len(rollouts) == 16
    assert {"rewards/accuracy_reward", "reward", "advantage", "completion"} <= set(rollouts.column_names)
    row = pq.read_table(line.root / "data" / "prepared" / "grpo" / "train.parquet").to_pylist()[0]
    assert [turn["role"] for turn in row["prompt"]] == ["system", "user"]
    assert float(row["solution"]) is not None


def test_the_line_runs_on_dialogues_of_hh_rlhf(tmp_path):
    line = new_checkout(tmp_path / "line")
    source = real_data("hh-harmless.jsonl.gz")
    options = {"max_steps": 4, "per_device_train_batch_size": 4, "response_length": 8, "warmup_steps": 0}
    small = [*SMALL, *(f"ppo.training.{name}={value}" for name, value in options.items())]
    config = load_config(
        ROOT / "configs" / "hh-harmless.yaml", [*small, f"prepare.preferences.path={source}"], root=ROOT
    )
    write_params(config, line.root / "params.yaml")
    line.repro()
    metrics = json.loads((line.root / "reports" / "evaluate" / "metrics.json").read_text())
    assert metrics["num_prompts"] > 0
    assert 0 <= metrics["reward_model/pairwise_accuracy"] <= 1
    for policy in ("dpo", "ppo"):
        assert (line.root / "models" / policy / "model.safetensors").is_file()
    columns = pq.read_table(line.root / "reports" / "ppo" / "rollouts" / "rollouts.parquet").column_names
    assert "rewards/reward" in columns
    assert "rewards/verifier" not in columns  # there is nothing to verify
