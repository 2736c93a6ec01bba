"""Rollout tables: what a policy wrote in training, what it was rewarded with, and what was made of that.

While the stage runs, each generation is a Parquet file in the work folder; at its end they are one file, with a row
group a generation. Columns: `step` (the optimizer step that the rollouts are first used in, from 1), `prompt` and
`completion` (text), `rewards/NAME` (null where a function gave none), `reward` (their weighted sum), `advantage`,
`num_tokens` and `is_finished` of the completion, and `logged/NAME`, what reward functions logged, as text.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from tuneline.errors import StageError

_FILE = re.compile(r"step-(\d+)-(\d+)\.parquet")
_TYPES = {
    "prompt": pa.string(),
    "completion": pa.string(),
    "reward": pa.float64(),
    "advantage": pa.float64(),
    "num_tokens": pa.int64(),
    "is_finished": pa.bool_(),
}


class RolloutTables(TrainerCallback):
    """Keeps every generation of a run; a resumed run first drops those for steps past its checkpoint."""

    def __init__(self, folder: Path):
        self.folder = folder
        self._last_step = 0
        self._num_of_step = 0

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if not state.is_world_process_zero:
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        for path in self.folder.iterdir():
            place = _FILE.fullmatch(path.name)
            if place is None or int(place[1]) > state.global_step:
                path.unlink()

    def keep(self, num_steps_done: int, table: dict[str, list], reward_names: list[str]) -> None:
        """Write the rollouts of one generation; the main process alone calls it."""
        step = num_steps_done + 1
        self._num_of_step = self._num_of_step + 1 if step == self._last_step else 0
        self._last_step = step
        path = self.folder / f"step-{step:08d}-{self._num_of_step:04d}.parquet"
        aside = path.with_suffix(".new")
        pq.write_table(as_table(step, table, reward_names), aside, compression="zstd")
        os.replace(aside, path)


def as_table(step: int, table: dict[str, list], reward_names: list[str]) -> pa.Table:
    """The columns of one generation, in types that do not depend on the values."""
    columns = {"step": pa.array([step] * len(table["prompt"]), pa.int64())}
    columns |= {name: pa.array(table[name], _TYPES[name]) for name in ("prompt", "completion")}
    for name in reward_names:
        columns[f"rewards/{name}"] = pa.array(table[name], pa.float64(), from_pandas=True)  # nan becomes null
    for name in ("reward", "advantage", "num_tokens", "is_finished"):
        columns[name] = pa.array(table[name], _TYPES[name], from_pandas=True)
    for name in sorted(set(table) - set(_TYPES) - set(reward_names)):
        columns[f"logged/{name}"] = pa.array([None if v is None else str(v) for v in table[name]], pa.string())
    return pa.table(columns)


def join_tables(folder: Path, target: Path) -> int:
    """Write all generations to one file, in their order, and return the number of rollouts.

    Raises:
        StageError: there is none.
    """
    paths = sorted(path for path in folder.glob("*.parquet") if _FILE.fullmatch(path.name))
    if not paths:
        raise StageError(f"{folder} has no rollouts: the trainer generated none.")
    target.parent.mkdir(parents=True, exist_ok=True)
    schema = pa.unify_schemas([pq.read_schema(path) for path in paths])  # not every generation has all that is logged
    num_rows = 0
    with pq.ParquetWriter(target, schema, compression="zstd") as writer:
        for path in paths:
            table = pa.concat_tables([schema.empty_table(), pq.read_table(path)], promote_options="default")
            writer.write_table(table)  # a row group a generation
            num_rows += len(table)
    return num_rows
