"""Rollout tables: appended by generation, trimmed on resume, one file at the end."""

import math

import pyarrow.parquet as pq
import pytest
from transformers import TrainerControl, TrainerState, TrainingArguments

from stages.rollouts import RolloutTables, join_tables
from tuneline.errors import StageError


def generation(text, reward=1.0):
    return {
        "prompt": ["p", "p"],
        "completion": [f"{text} 1", f"{text} 2"],
        "exact_match": [reward, 0.0],
        "unsure": [math.nan, None],
        "reward": [reward, 0.0],
        "advantage": [0.7, -0.7],
        "num_tokens": [3, 4],
        "is_finished": [True, False],
    }


NAMES = ["exact_match", "unsure"]


def begin(tables, tmp_path, step):
    args = TrainingArguments(output_dir=str(tmp_path), report_to="none", use_cpu=True)
    tables.on_train_begin(args, TrainerState(global_step=step, is_world_process_zero=True), TrainerControl())


def test_generations_become_one_table_in_their_order(tmp_path):
    tables = RolloutTables(tmp_path / "rollouts")
    begin(tables, tmp_path, 0)
    for num_done, text in ((0, "a"), (1, "b"), (1, "c")):
        tables.keep(num_done, generation(text), NAMES)
    tables.keep(9, generation("d") | {"answer": ["1", None]}, NAMES)
    assert join_tables(tables.folder, tmp_path / "final" / "rollouts.parquet") == 8
    table = pq.read_table(tmp_path / "final" / "rollouts.parquet")
    assert table["step"].to_pylist() == [1, 1, 2, 2, 2, 2, 10, 10]
    assert table["completion"].to_pylist()[::2] == ["a 1", "b 1", "c 1", "d 1"]
    assert table["rewards/exact_match"].to_pylist()[:2] == [1.0, 0.0]
    assert table["rewards/unsure"].null_count == 8
    assert table["logged/answer"].to_pylist()[5:] == [None, "1", None]
    assert pq.ParquetFile(tmp_path / "final" / "rollouts.parquet").num_row_groups == 4


def test_a_resumed_run_drops_what_lies_past_its_checkpoint(tmp_path):
    first = RolloutTables(tmp_path / "rollouts")
    begin(first, tmp_path, 0)
    for step in (1, 2, 3):
        first.keep(step - 1, generation(f"old {step}"), NAMES)
    (first.folder / "step-00000004-0000.new").touch()  # cut off while it was written
    second = RolloutTables(tmp_path / "rollouts")
    begin(second, tmp_path, 2)
    second.keep(2, generation("new 3"), NAMES)
    join_tables(second.folder, tmp_path / "rollouts.parquet")
    assert pq.read_table(tmp_path / "rollouts.parquet")["completion"].to_pylist()[::2] == [
        "old 1 1",
        "old 2 1",
        "new 3 1",
    ]


def test_a_run_without_rollouts_is_told(tmp_path):
    with pytest.raises(StageError, match="has no rollouts"):
        join_tables(tmp_path, tmp_path / "rollouts.parquet")
