"""The page on adapters and its example run as they stand."""

import importlib
import re
import subprocess
import sys
from pathlib import Path

import pytest
from datasets import Dataset

from tests.models import tiny_causal_lm
from tests.trainers.rows import character_tokenizer, preferences

PAGE = Path(__file__).parents[2] / "docs" / "multi-adapter.md"


@pytest.mark.filterwarnings("ignore:'pin_memory' argument")  # as a user without a GPU sees it
def test_the_examples_of_the_page_run_in_order(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    tiny_causal_lm().save_pretrained("runs/sft")
    character_tokenizer().save_pretrained("runs/sft")
    names = {
        "preferences": preferences(),
        "prompts": Dataset.from_list([{"prompt": f"what is {i}?"} for i in range(8)]),
    }
    blocks = re.findall(r"^```python\n(.*?)^```", PAGE.read_text(), re.DOTALL | re.MULTILINE)
    assert len(blocks) == 3
    for block in blocks[:2]:  # the third needs bitsandbytes, and a GPU
        exec(compile(block, str(PAGE), "exec"), names)
    compile(blocks[2], str(PAGE), "exec")
    assert (tmp_path / "runs" / "policy" / "adapter_model.safetensors").is_file()
    assert not [path for path in (tmp_path / "runs" / "policy").iterdir() if path.is_dir()]


@pytest.mark.slow
def test_the_memory_of_four_roles_is_measured():
    command = [sys.executable, "-m", "benchmarks.roles", "--hidden-size", "128", "--layers", "4", "--steps", "1"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    weights = {line[:14].strip(): float(line.split()[-2]) for line in done.stdout.splitlines()[-2:]}
    assert weights["four models"] > 3.5 * weights["one base model"]


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_the_policy_of_the_example_writes_what_was_preferred(tmp_path):
    before, after = importlib.import_module("examples.multi_adapter").main(str(tmp_path))
    assert after.low > before.high + 0.2
