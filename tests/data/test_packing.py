import random
from itertools import chain

import numpy as np
import pyarrow as pa
import pytest
from datasets import Dataset, DatasetDict

from tuneline.data.packing import pack_dataset, pack_table, truncate_dataset
from tuneline.errors import ConfigError, DataError

SHORT = [[1, 2, 3], [4, 5, 6, 7], [8]]
LONG = [[1, 2, 3, 4, 5], [6, 7], [8, 9, 10, 11], [12]]


def packed(rows, seq_length, strategy):
    dataset = pack_dataset(Dataset.from_dict({"input_ids": rows}), seq_length, strategy)
    return dataset["input_ids"][:], dataset["seq_lengths"][:]


def test_best_fit_decreasing_fills_rows_with_the_longest_first():
    assert packed(SHORT, 4, "bfd") == ([[4, 5, 6, 7], [1, 2, 3, 8]], [[4], [3, 1]])


def test_best_fit_decreasing_cuts_what_is_longer_than_a_row():
    assert packed(LONG, 4, "bfd") == ([[1, 2, 3, 4], [8, 9, 10, 11], [6, 7, 12]], [[4], [4], [2, 1]])


def test_splitting_keeps_what_is_longer_than_a_row_as_a_sequence_of_its_own():
    assert packed(LONG, 4, "bfd_split") == ([[1, 2, 3, 4], [8, 9, 10, 11], [6, 7, 5, 12]], [[4], [4], [2, 1, 1]])


def test_wrapping_lays_rows_end_to_end_and_tells_the_sequences_apart():
    assert packed(SHORT, 3, "wrapped") == ([[1, 2, 3], [4, 5, 6], [7, 8]], [[3], [3], [1, 1]])


def test_a_sequence_that_wraps_over_several_rows_begins_in_each():
    assert packed([[1, 2], [3, 4, 5, 6, 7, 8, 9]], 3, "wrapped") == (
        [[1, 2, 3], [4, 5, 6], [7, 8, 9]],
        [[2, 1], [3], [3]],
    )


@pytest.mark.parametrize("strategy", ["bfd", "bfd_split", "wrapped"])
def test_empty_rows_go(strategy):
    rows = [[], [1, 2], [], [3]]
    assert packed(rows, 3, strategy) == ([[1, 2, 3]], [[2, 1]])


@pytest.mark.parametrize("strategy", ["bfd", "bfd_split", "wrapped"])
def test_a_slice_of_a_table_packs_like_a_fresh_one(strategy):
    rows = [[9, 9], *LONG, [9]]
    sliced = pack_table(pa.table({"input_ids": rows}).slice(1, len(LONG)), 4, strategy)
    assert sliced == pack_table(pa.table({"input_ids": LONG}), 4, strategy)


@pytest.mark.parametrize("strategy", ["bfd", "bfd_split", "wrapped"])
@pytest.mark.parametrize("kind", [pa.list_, pa.large_list])
def test_columns_stay_aligned(strategy, kind):
    draw = random.Random(5)
    rows = [[draw.randrange(1, 99) for _ in range(draw.randrange(0, 30))] for _ in range(200)]
    table = pa.table(
        {
            "input_ids": pa.array(rows, kind(pa.int64())),
            "is_target": pa.array([[token % 2 for token in row] for row in rows], kind(pa.int8())),
        }
    )
    result = pack_table(table, 16, strategy).to_pydict()
    for ids, targets, lengths in zip(*result.values(), strict=True):
        assert [token % 2 for token in ids] == targets
        assert sum(lengths) == len(ids) <= 16
        assert all(lengths)
    if strategy != "bfd":
        assert sorted(chain(*result["input_ids"])) == sorted(chain(*rows))


def test_best_fit_decreasing_leaves_little_room_unused():
    draw = random.Random(5)
    rows = [[0] * draw.randrange(1, 100) for _ in range(1000)]
    result, _ = packed(rows, 128, "bfd")
    assert sum(map(len, rows)) / (128 * len(result)) > 0.98


def test_dictionaries_and_streams_are_packed_too():
    dataset = Dataset.from_dict({"input_ids": SHORT})
    expected = pack_dataset(dataset, 4)[:]
    assert pack_dataset(DatasetDict({"train": dataset}), 4)["train"][:] == expected
    assert [row["seq_lengths"] for row in pack_dataset(dataset.to_iterable_dataset(), 4)] == expected["seq_lengths"]


def test_a_dataset_keeps_its_format():
    dataset = Dataset.from_dict({"input_ids": SHORT}).with_format("numpy")
    for changed in (pack_dataset(dataset, 4), truncate_dataset(DatasetDict({"train": dataset}), 2)["train"]):
        assert changed.format["type"] == "numpy"
        assert isinstance(changed[0]["input_ids"], np.ndarray)
    assert "seq_lengths" in pack_dataset(dataset, 4)[0]


def test_nothing_packs_to_nothing():
    table = pa.table({"input_ids": pa.array([[]], pa.list_(pa.int64()))})
    assert all(pack_table(table, 4, strategy).num_rows == 0 for strategy in ("bfd", "bfd_split", "wrapped"))


def test_what_cannot_be_packed_is_refused():
    dataset = Dataset.from_dict({"input_ids": SHORT})
    with pytest.raises(ConfigError, match="'best' is unknown; use one of bfd, bfd_split, wrapped"):
        pack_dataset(dataset, 4, "best")
    with pytest.raises(ConfigError, match="max_length=None"):
        pack_dataset(dataset, None)
    with pytest.raises(DataError, match="'id' holds int64"):
        pack_table(pa.table({"input_ids": SHORT, "id": [1, 2, 3]}), 4, "bfd")
    with pytest.raises(DataError, match="in row 1 'input_ids' has 4 entries and 'is_target' has 1"):
        pack_table(pa.table({"input_ids": SHORT, "is_target": [[1, 1, 1], [1], [1]]}), 4, "bfd")


def test_truncating_cuts_the_lists_and_leaves_the_rest():
    dataset = Dataset.from_dict({"input_ids": SHORT, "mask": [[1, 0, 1], [1, 1, 0, 0], [1]], "id": [1, 2, 3]})
    expected = {"input_ids": [[1, 2], [4, 5], [8]], "mask": [[1, 0], [1, 1], [1]], "id": [1, 2, 3]}
    assert truncate_dataset(dataset, 2)[:] == expected
    assert truncate_dataset(DatasetDict({"train": dataset}), 2, map_kwargs={"batch_size": 1})["train"][:] == expected
    assert list(truncate_dataset(dataset.to_iterable_dataset(), 2)) == dataset.from_dict(expected).to_list()
    with pytest.raises(ConfigError, match="max_length=0 leaves nothing"):
        truncate_dataset(dataset, 0)


@pytest.mark.parametrize("strategy", ["bfd", "bfd_split", "wrapped"])
def test_rows_are_packed_as_by_trl(strategy):
    trl = pytest.importorskip("trl")
    draw = random.Random(7)
    rows = [[draw.randrange(99) for _ in range(draw.randrange(30))] for _ in range(300)]
    theirs = trl.pack_dataset(Dataset.from_dict({"input_ids": rows}), 16, strategy, {"num_proc": None})
    ids, lengths = packed(rows, 16, strategy)
    assert ids == theirs["input_ids"][:]
    if strategy != "wrapped":  # there TRL does not tell the sequences of a row apart
        assert lengths == theirs["seq_lengths"][:]
