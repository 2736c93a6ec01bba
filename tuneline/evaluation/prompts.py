"""The test set: prompts, with a solution and a task where these are known."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from tuneline.errors import DataError


@dataclass(frozen=True)
class Prompts:
    """Rows of the test set by column; every list is (prompts,)."""

    columns: dict[str, list]

    def __len__(self) -> int:
        return len(self.values)

    @property
    def values(self) -> list[Any]:
        """Strings or dialogues."""
        return self.columns["prompt"]

    @property
    def solutions(self) -> list[str | None]:
        return self.columns.get("solution", [None] * len(self))

    @property
    def tasks(self) -> list[str | None]:
        return self.columns.get("task", [None] * len(self))

    def select(self, numbers: Sequence[int]) -> Prompts:
        return Prompts({name: [column[i] for i in numbers] for name, column in self.columns.items()})


def read_prompts(path: Path, num_rows: int | None = None) -> Prompts:
    """The first rows of a Parquet file; None takes all.

    Raises:
        DataError: it has no prompt.
    """
    table = pq.read_table(path)
    if "prompt" not in table.column_names or not len(table):
        raise DataError(f"{path} has no row with a 'prompt'; give prepare a test set, or a larger eval_fraction.")
    return Prompts(table.slice(0, num_rows).to_pydict())
