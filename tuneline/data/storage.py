"""Rows as Parquet files, the same bytes for the same rows."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from tuneline.errors import DataError

_ROWS_AT_ONCE = 10_000


def write_parquet(files: dict[Path, Sequence[dict[str, Any]]]) -> None:
    """Write rows to files that share their columns; a column that a row lacks is null there.

    Folders are made where they are missing.

    Raises:
        DataError: the values of a column have different types.
    """
    schema = _schema([row for rows in files.values() for row in rows], ", ".join(map(str, files)))
    for path, rows in files.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        with pq.ParquetWriter(path, schema, compression="zstd") as writer:
            for batch in _batches(rows):
                arrays = [pa.array([row.get(f.name) for row in batch], f.type) for f in schema]
                writer.write_table(pa.table(arrays, schema=schema))


def content_hash(folder: Path, files: Iterable[Path]) -> str:
    """One SHA-256 over the names and the bytes of files."""
    digest = hashlib.sha256()
    for path in sorted(files):
        digest.update(f"{path.relative_to(folder).as_posix()}\n{path.stat().st_size}\n".encode())
        with path.open("rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()


def _schema(rows: Sequence[dict[str, Any]], where: str) -> pa.Schema:
    """The types that fit all rows; a field of a message that some rows lack is null in these. No rows, no columns."""
    if not rows:
        return pa.schema([])
    names = list({name: None for row in rows for name in row})
    schemas = []
    for batch in _batches(rows):
        fields = []
        for name in names:
            try:
                fields.append(pa.field(name, pa.array([row.get(name) for row in batch]).type))
            except (pa.ArrowInvalid, pa.ArrowTypeError) as error:
                raise DataError(f"{where}: the values of {name!r} have different types: {error}") from None
        schemas.append(pa.schema(fields))
    return pa.unify_schemas(schemas, promote_options="permissive")


def _batches(rows: Sequence[dict[str, Any]]) -> Iterable[Sequence[dict[str, Any]]]:
    return (rows[start : start + _ROWS_AT_ONCE] for start in range(0, len(rows), _ROWS_AT_ONCE))
