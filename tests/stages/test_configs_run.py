"""The line on real human preferences, each setting that costs time made small."""

import json

import pytest

from stages.loading import load_config, write_params
from tests.data.shared_files import real_data
from tests.stages.conftest import ROOT, new_checkout

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
]


def test_the_line_runs_on_dialogues_of_hh_rlhf(tmp_path):
    line = new_checkout(tmp_path / "line")
    source = real_data("hh-harmless.jsonl.gz")
    config = load_config(
        ROOT / "configs" / "hh-harmless.yaml", [*SMALL, f"prepare.preferences.path={source}"], root=ROOT
    )
    write_params(config, line.root / "params.yaml")
    line.repro()
    metrics = json.loads((line.root / "reports" / "evaluate" / "metrics.json").read_text())
    assert metrics["num_prompts"] > 0
    assert 0 <= metrics["reward_model/pairwise_accuracy"] <= 1
    assert (line.root / "models" / "dpo" / "model.safetensors").is_file()
