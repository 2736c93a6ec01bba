"""Tokenised rows packed to a common length. Strategies and their results are those of TRL 1.16.

Differences: best fit decreasing looks at 10,000 rows at a time, where TRL looks at 1,000, and so leaves less room
unused; and with `wrapped` too `seq_lengths` tells the sequences of a row apart, so that none attends to another.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections import deque
from collections.abc import Callable
from typing import Any, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from datasets import Dataset, DatasetDict, IterableDataset

from tuneline.errors import ConfigError, DataError

DatasetT = TypeVar("DatasetT", Dataset, DatasetDict, IterableDataset)
Pieces = tuple[np.ndarray, np.ndarray]  # (pieces,) where each starts in the flat column, and (pieces,) its length

STRATEGIES = ("bfd", "bfd_split", "wrapped")
_ROWS_AT_ONCE = 10_000


def pack_dataset(
    dataset: DatasetT, seq_length: int, strategy: str = "bfd", map_kwargs: dict[str, Any] | None = None
) -> DatasetT:
    """Rows of at most `seq_length` tokens, with `seq_lengths`: the lengths of the sequences in each.

    Every column has to hold lists, one entry a token; they stay aligned. Empty rows go.

    Args:
        strategy: `bfd`, best fit decreasing (Ding et al. 2024, arXiv:2404.10830), cuts what is longer than a row and
            drops the rest; `bfd_split` packs the rest as sequences of their own; `wrapped` lays all rows end to end
            and cuts.
        map_kwargs: further arguments of `datasets`' map, such as `num_proc`.

    Raises:
        ConfigError: an unknown strategy, or a length below one.
        DataError: a column that holds no lists, or lists of another length than the first column's.
    """
    if strategy not in STRATEGIES:
        raise ConfigError(f"packing_strategy={strategy!r} is unknown; use one of {', '.join(STRATEGIES)}.")
    if seq_length is None or seq_length < 1:
        raise ConfigError(f"Packing needs rows of at least one token; max_length={seq_length} does not say how many.")
    options: dict[str, Any] = {"batch_size": _ROWS_AT_ONCE}
    if not isinstance(dataset, IterableDataset):
        options["desc"] = "Packing"
    arguments = {"seq_length": seq_length, "strategy": strategy}
    return _map_tables(dataset, pack_table, arguments, options | (map_kwargs or {}))


def truncate_dataset(dataset: DatasetT, max_length: int, map_kwargs: dict[str, Any] | None = None) -> DatasetT:
    """Every list of every column cut to its first `max_length` entries; columns that hold no lists stay.

    Raises:
        ConfigError: a length below one.
    """
    if max_length < 1:
        raise ConfigError(f"max_length={max_length} leaves nothing of any row; give one of at least 1.")
    return _map_tables(dataset, truncate_table, {"max_length": max_length}, map_kwargs or {})


def truncate_table(rows: pa.Table, max_length: int) -> pa.Table:
    """One table cut as `truncate_dataset` says."""
    columns = [pc.list_slice(column, 0, max_length) if _is_list(column) else column for column in rows.columns]
    return pa.table(columns, names=rows.column_names)


def _map_tables(
    dataset: DatasetT, function: Callable[..., pa.Table], arguments: dict[str, Any], options: dict[str, Any]
) -> DatasetT:
    """A dataset mapped table by table; it keeps its format, and a stream has none afterwards."""
    if isinstance(dataset, DatasetDict):
        return DatasetDict({name: _map_tables(part, function, arguments, options) for name, part in dataset.items()})
    given = dataset.format if isinstance(dataset, Dataset) else {"type": None, "format_kwargs": {}}
    mapped = dataset.with_format("arrow").map(function, batched=True, fn_kwargs=arguments, **options)
    return mapped.with_format(given["type"], **given["format_kwargs"])


def _is_list(column: pa.Array | pa.ChunkedArray) -> bool:
    return pa.types.is_list(column.type) or pa.types.is_large_list(column.type)


def pack_table(rows: pa.Table, seq_length: int, strategy: str) -> pa.Table:
    """One table packed as `pack_dataset` says."""
    columns = [column.combine_chunks() for column in rows.columns]
    lengths = _common_lengths(rows.column_names, columns)
    starts = np.cumsum(lengths) - lengths
    not_empty = lengths > 0
    pieces = starts[not_empty], lengths[not_empty]
    match strategy:
        case "bfd":
            starts, lengths = pieces[0], np.minimum(pieces[1], seq_length)
            order, pieces_per_row = _best_fit_decreasing(lengths, seq_length)
        case "bfd_split":
            starts, lengths = _cut(pieces, np.zeros_like(pieces[0]), seq_length)
            order, pieces_per_row = _best_fit_decreasing(lengths, seq_length)
        case _:
            begun = np.cumsum(pieces[1]) - pieces[1]
            starts, lengths = _cut(pieces, begun % seq_length, seq_length)
            order = np.arange(len(lengths))
            row_of = (np.cumsum(lengths) - lengths) // seq_length
            pieces_per_row = np.bincount(row_of) if len(row_of) else row_of
    starts, lengths = starts[order], lengths[order]
    ends = np.cumsum(lengths)
    positions = pa.array(np.arange(lengths.sum()) + np.repeat(starts - (ends - lengths), lengths))
    boundaries = np.concatenate([[0], np.cumsum(pieces_per_row)])
    offsets = np.concatenate([[0], ends])[boundaries]
    packed = [_as_lists(column.type, offsets, column.flatten().take(positions)) for column in columns]
    seq_lengths = _as_lists(pa.list_(pa.int64()), boundaries, pa.array(lengths, pa.int64()))
    return pa.table([*packed, seq_lengths], names=[*rows.column_names, "seq_lengths"])


def _common_lengths(names: list[str], columns: list[pa.Array]) -> np.ndarray:
    """(rows,): the number of entries of each row, the same in all columns."""
    first = None
    for name, column in zip(names, columns, strict=True):
        if not _is_list(column):
            raise DataError(f"Packing needs lists in every column; {name!r} holds {column.type}. Remove it.")
        lengths = pc.fill_null(pc.list_value_length(column), 0).to_numpy(zero_copy_only=False).astype(np.int64)
        if first is None:
            first = lengths
        elif not np.array_equal(first, lengths):
            row = int(np.flatnonzero(first != lengths)[0])
            raise DataError(
                f"Packing needs columns of equal length; in row {row} {names[0]!r} has {first[row]} entries and "
                f"{name!r} has {lengths[row]}."
            )
    if first is None:
        raise DataError("Packing needs a column of lists; the dataset has none.")
    return first


def _cut(pieces: Pieces, room_used: np.ndarray, seq_length: int) -> Pieces:
    """Each piece cut where a row is full, if `room_used` (pieces,) tokens of the row it begins in are taken already."""
    starts, lengths = pieces
    counts = -(-(room_used + lengths) // seq_length)
    which = np.repeat(np.arange(len(starts)), counts)
    nth = np.arange(len(which)) - np.repeat(np.cumsum(counts) - counts, counts)
    begin = np.maximum(nth * seq_length - room_used[which], 0)
    end = np.minimum((nth + 1) * seq_length - room_used[which], lengths[which])
    return starts[which] + begin, end - begin


def _best_fit_decreasing(lengths: np.ndarray, seq_length: int) -> tuple[np.ndarray, np.ndarray]:
    """Pieces, longest first, each put in the fullest row that has room for it; of equally full ones the oldest.

    Returns:
        (pieces,) the pieces in the order of their rows, and (rows,) how many pieces each row has.
    """
    rows: list[list[int]] = []
    rows_with: dict[int, deque[list[int]]] = {}
    spaces: list[int] = []  # sorted, without those of which no row is left
    for piece in np.argsort(-lengths, kind="stable").tolist():
        length = int(lengths[piece])
        found = bisect_left(spaces, length)
        if found == len(spaces):
            space = seq_length
            row: list[int] = []
            rows.append(row)
        else:
            space = spaces[found]
            row = rows_with[space].popleft()
            if not rows_with[space]:
                del rows_with[space], spaces[found]
        row.append(piece)
        if left := space - length:
            if left not in rows_with:
                rows_with[left] = deque()
                insort(spaces, left)
            rows_with[left].append(row)
    order = np.array([piece for row in rows for piece in row], dtype=np.int64)
    return order, np.array([len(row) for row in rows], dtype=np.int64)


def _as_lists(kind: pa.DataType, offsets: np.ndarray, values: pa.Array) -> pa.Array:
    if pa.types.is_large_list(kind):
        return pa.LargeListArray.from_arrays(pa.array(offsets, pa.int64()), values)
    return pa.ListArray.from_arrays(pa.array(offsets, pa.int32()), values)
