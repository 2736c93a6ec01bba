"""The work that both sides of a benchmark are given: read, counted, and trained on by one script."""

import gzip
import json
from pathlib import Path
from types import SimpleNamespace

import pytest

from benchmarks.workload import KINDS, count_work, read_pairs
from tuneline.errors import DataError

CONFIG = SimpleNamespace(
    hidden_size=4,
    num_attention_heads=2,
    num_key_value_heads=1,
    num_hidden_layers=3,
    intermediate_size=8,
    vocab_size=16,
)


def test_work_of_one_pair():
    # prompt 2, chosen 3 tokens more, rejected 1 more
    work = count_work("dpo", [(2, 5, 3)], batch_size=1, config=CONFIG)
    assert (work.rows, work.real_tokens, work.tree_tokens, work.padded_tokens, work.targets) == (1, 8, 6, 10, 4)
    # a layer and token: 2 FLOPs a weight of q and o (16 each), k and v (8 each), and the three of the MLP (32 each)
    layers = 3 * 6 * 2 * (2 * 16 + 2 * 8 + 3 * 32)
    # keys seen: 1 + 2 by the prompt, 3 + 4 + 5 by chosen, 3 by rejected; scores and values, 2 FLOPs a hidden unit each
    attention = 3 * (3 + 12 + 3) * 4 * 4
    head = 4 * 2 * 4 * 16
    assert work.flops == 4 * (layers + attention + head)  # policy forward, backward (twice), reference forward


def test_batches_are_padded_to_their_own_longest():
    work = count_work("sft", [(1, 2), (1, 4), (1, 3), (1, 3)], batch_size=2, config=CONFIG)
    assert (work.real_tokens, work.tree_tokens, work.padded_tokens, work.targets) == (12, 12, 2 * 4 + 2 * 3, 8)


def test_a_reward_model_reads_one_position_a_sequence():
    work = count_work("reward", [(2, 5, 3)], batch_size=1, config=CONFIG)
    assert work.targets == 2
    assert work.flops == 3 * (3 * 6 * 2 * 144 + 3 * 18 * 16)


def test_dialogues_are_split_before_their_last_answer(tmp_path):
    asked = "\n\nHuman: a\n\nAssistant: b\n\nHuman: c\n\nAssistant:"
    rows = [
        {"chosen": asked + " yes", "rejected": asked + " no"},
        {"chosen": asked + " yes", "rejected": "\n\nHuman: other\n\nAssistant: no"},  # shares no prompt
        {"prompt": "p", "chosen": "x", "rejected": "y"},
    ]
    path = tmp_path / "pairs.jsonl.gz"
    path.write_bytes(gzip.compress("".join(json.dumps(row) + "\n" for row in rows).encode()))
    assert read_pairs(path) == [
        {"prompt": asked, "chosen": " yes", "rejected": " no"},
        {"prompt": "p", "chosen": "x", "rejected": "y"},
    ]


def test_an_absent_file_and_a_bad_row_are_named(tmp_path):
    with pytest.raises(DataError, match=r"nowhere.jsonl is absent; name another with --data"):
        read_pairs(tmp_path / "nowhere.jsonl")
    path = tmp_path / "pairs.jsonl"
    path.write_text('{"chosen": "a", "rejected": "b", "prompt": "p"}\n{"chosen": "a"}\n')
    with pytest.raises(DataError, match=r"pairs.jsonl, row 2: not an object with chosen and rejected"):
        read_pairs(path)


@pytest.mark.parametrize("kind", KINDS)
def test_scripts_name_the_library_in_one_import_only(kind):
    text = (Path(__file__).parents[2] / "benchmarks" / "scripts" / f"{kind}.py").read_text(encoding="utf-8")
    code = text.split('"""')[2]
    assert code.count("trl") == 1
    assert "\nfrom trl import " in code
