"""Rows from wherever they lie: JSON lines, JSON and CSV (also gzipped), Parquet, folders made by `datasets`, hub names.

A row keeps the file and the number it came with, from 1, so that what is wrong with it can be told to a user.
"""

from __future__ import annotations

import csv
import gzip
import io
import json
import re
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from datasets import Dataset, DatasetDict, IterableDataset, load_dataset, load_from_disk
from datasets.exceptions import DatasetGenerationError

from tuneline.errors import DataError

SUFFIXES = (".jsonl", ".json", ".ndjson", ".parquet", ".csv")
_HUB_NAME = re.compile(r"[\w.-]+(/[\w.-]+)?")
_EXTRA_CELLS = "_extra_cells"
_LONGEST_CELL = 2**31 - 1  # the csv module's own limit is 131,072 characters, less than a long dialogue
NUM_SHOWN = 10


@dataclass(frozen=True)
class SourceRow:
    """A row as it was read. JSON lines and CSV count lines and records; everything else counts rows."""

    file: str
    number: int
    values: dict[str, Any]


@dataclass(frozen=True)
class BadRow:
    """A row that cannot be used, the field it fails by (None: the row as a whole), and why."""

    file: str
    number: int
    field: str | None
    reason: str
    values: Any

    def describe(self) -> str:
        where = f"{self.file}, row {self.number}"
        return f"{where}: {self.reason}" if self.field is None else f"{where}, field {self.field!r}: {self.reason}"


def bad_rows_error(bad: list[BadRow], remedy: str) -> DataError:
    """One error for all bad rows, of which the first are shown."""
    shown = "\n".join(f"  {row.describe()}" for row in bad[:NUM_SHOWN])
    more = f"\n  and {len(bad) - NUM_SHOWN:,} more" if len(bad) > NUM_SHOWN else ""
    return DataError(f"{len(bad):,} row{'s' * (len(bad) > 1)} cannot be used:\n{shown}{more}\n{remedy}")


def read_source(
    path: str,
    *,
    split: str = "train",
    revision: str | None = None,
    subset: str | None = None,
    columns: dict[str, str] | None = None,
    max_rows: int | None = None,
) -> Dataset:
    """The rows of a source as a dataset. Arguments and errors are those of `iter_source`; bad rows are an error too."""
    rows = list(iter_source(path, split=split, revision=revision, subset=subset, columns=columns, max_rows=max_rows))
    bad = [row for row in rows if isinstance(row, BadRow)]
    if bad:
        raise bad_rows_error(bad, "Mend or remove them.")
    good = [row.values for row in rows if isinstance(row, SourceRow)]
    names = {name: None for values in good for name in values}
    try:
        return Dataset.from_dict({name: [values.get(name) for values in good] for name in names})
    except (pa.ArrowInvalid, pa.ArrowTypeError) as error:
        raise DataError(f"{path}: a column holds values of different types: {error}") from None


def iter_source(
    path: str,
    *,
    split: str = "train",
    revision: str | None = None,
    subset: str | None = None,
    columns: dict[str, str] | None = None,
    max_rows: int | None = None,
) -> Iterator[SourceRow | BadRow]:
    """The rows of a source, in its order; a line that is none comes as a bad row.

    Args:
        path: a file, a folder saved by `datasets` or holding data files, or the name of a data set on the hub.
        split: of a folder or hub name; files have none.
        revision: commit, tag or branch on the hub.
        subset: the configuration of a hub name that has several.
        columns: what the caller calls a column, and what the source calls it; the other columns keep their names.
        max_rows: no more than the first so many.

    Raises:
        DataError: nothing is there, it cannot be read, or it lacks a column.
    """
    place = Path(path)
    if place.is_file():
        rows = _iter_file(place)
    elif place.is_dir() or (_HUB_NAME.fullmatch(path) and not path.endswith((*SUFFIXES, ".gz"))):
        rows = _iter_datasets(path, split, revision, subset)
    else:
        raise DataError(
            f"{path}: no such file or folder; give a path from the working folder {Path.cwd()}, or a hub name."
        )
    for row in islice(rows, max_rows):
        yield _renamed(row, columns) if columns and isinstance(row, SourceRow) else row


def _iter_file(path: Path) -> Iterator[SourceRow | BadRow]:
    suffix = Path(path.stem).suffix if path.suffix == ".gz" else path.suffix
    if suffix == ".parquet":
        yield from _iter_parquet(path)
        return
    if suffix not in SUFFIXES:
        known = ", ".join(SUFFIXES)
        raise DataError(f"{path}: a file that ends in {path.suffix!r} is not read; use {known}, or .gz after one.")
    try:
        with _opened(path) as lines:
            if suffix == ".csv":
                yield from _iter_csv(path, lines)
            elif suffix == ".json" and _starts_with_bracket(lines):
                yield from _iter_json_array(path, lines)
            else:
                yield from _iter_json_lines(path, lines)
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{path}: cannot be read ({error}).") from None
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: is not UTF-8 ({error}); convert it.") from None


def _opened(path: Path) -> io.TextIOBase:
    if path.suffix == ".gz":
        return io.TextIOWrapper(gzip.open(path), encoding="utf-8-sig", newline="")
    return path.open(encoding="utf-8-sig", newline="")


def _starts_with_bracket(lines: io.TextIOBase) -> bool:
    first = lines.read(1)
    while first and first.isspace():
        first = lines.read(1)
    lines.seek(0)
    return first == "["


def _iter_json_lines(path: Path, lines: io.TextIOBase) -> Iterator[SourceRow | BadRow]:
    for number, line in enumerate(lines, 1):
        if line.strip():
            try:
                value = json.loads(line)
            except json.JSONDecodeError as error:
                yield BadRow(str(path), number, None, f"is not JSON: {error}", line.rstrip("\r\n"))
            else:
                yield _object(path, number, value)


def _iter_json_array(path: Path, lines: io.TextIOBase) -> Iterator[SourceRow | BadRow]:
    try:
        values = json.load(lines)
    except json.JSONDecodeError as error:
        raise DataError(f"{path}: is not JSON: {error}") from None
    for number, value in enumerate(values, 1):
        yield _object(path, number, value)


def _object(path: Path, number: int, value: Any) -> SourceRow | BadRow:
    if isinstance(value, dict):
        return SourceRow(str(path), number, value)
    return BadRow(str(path), number, None, f"is a JSON {type(value).__name__} and no object", value)


def _iter_csv(path: Path, lines: io.TextIOBase) -> Iterator[SourceRow | BadRow]:
    """Cells are text; one that holds a JSON list of objects, as messages do, is read as such."""
    csv.field_size_limit(_LONGEST_CELL)
    reader = csv.DictReader(lines, restkey=_EXTRA_CELLS, strict=True)
    try:
        for number, cells in enumerate(reader, 1):
            missing = [name for name, cell in cells.items() if cell is None]
            if _EXTRA_CELLS in cells:
                yield BadRow(str(path), number, None, "has more cells than the header has names", cells)
            elif missing:
                yield BadRow(str(path), number, missing[0], "is missing: the record has too few cells", cells)
            else:
                yield SourceRow(str(path), number, {name: _cell(cell) for name, cell in cells.items()})
    except csv.Error as error:
        raise DataError(f"{path}, line {reader.line_num}: is not CSV ({error}).") from None


def _cell(cell: str) -> Any:
    if cell.startswith("[{"):
        try:
            return json.loads(cell)
        except json.JSONDecodeError:
            return cell
    return cell


def _iter_parquet(path: Path) -> Iterator[SourceRow]:
    try:
        number = 0
        with pq.ParquetFile(path) as file:
            for batch in file.iter_batches():
                for values in batch.to_pylist():
                    number += 1
                    yield SourceRow(str(path), number, values)
    except (pa.ArrowException, OSError) as error:
        raise DataError(f"{path}: is not Parquet, or is damaged ({error}).") from None


def saved_dataset(path: str, split: str) -> Dataset | None:
    """The rows of a folder that `datasets` saved; None for any other place.

    Raises:
        DataError: it cannot be read, or has no such split.
    """
    if not any(Path(path, name).is_file() for name in ("dataset_dict.json", "state.json")):
        return None
    try:
        dataset = load_from_disk(path)
    except (ValueError, OSError, pa.ArrowException) as error:
        raise DataError(f"{path}: was saved by datasets and cannot be read ({error}).") from error
    if not isinstance(dataset, DatasetDict):
        return dataset
    if split not in dataset:
        raise DataError(f"{path}: has no split {split!r}; it has {', '.join(map(repr, dataset))}.")
    return dataset[split]


def _iter_datasets(path: str, split: str, revision: str | None, subset: str | None) -> Iterator[SourceRow]:
    dataset: Any = saved_dataset(path, split)
    if dataset is None:
        try:
            dataset = load_dataset(path, name=subset, split=split, revision=revision)
        except (ValueError, OSError, DatasetGenerationError) as error:
            cause = error.__cause__ or error
            raise DataError(f"{path}: neither a folder nor the hub gives its split {split!r}: {cause}") from error
    assert isinstance(dataset, Dataset | IterableDataset)
    for number, values in enumerate(dataset, 1):
        yield SourceRow(f"{path} ({split})", number, values)


def _renamed(row: SourceRow, columns: dict[str, str]) -> SourceRow | BadRow:
    for name, source_name in columns.items():
        if source_name not in row.values:
            found = ", ".join(map(repr, row.values))
            reason = f"is missing, and `columns` takes {name!r} from it; the row has {found}"
            return BadRow(row.file, row.number, source_name, reason, row.values)
    named = {name: row.values[source_name] for name, source_name in columns.items()}
    rest = {name: value for name, value in row.values.items() if name not in {*columns, *columns.values()}}
    return SourceRow(row.file, row.number, named | rest)
