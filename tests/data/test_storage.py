import numpy as np
import pyarrow.parquet as pq
import pytest
from datasets import Dataset, load_dataset

from tests.data.tiny_tokenizers import character_tokenizer
from tuneline.data.lengths import demonstration_lengths, preference_lengths
from tuneline.data.storage import content_hash, write_parquet
from tuneline.errors import DataError

ROWS = [
    {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}], "task": "sums"},
    {"messages": [{"role": "user", "content": "c", "name": "Kim"}, {"role": "assistant", "content": "d"}]},
]


def test_the_same_rows_give_the_same_bytes_and_another_row_another_hash(tmp_path):
    hashes = []
    for name, rows in (("a", ROWS), ("b", ROWS), ("c", ROWS[::-1])):
        folder = tmp_path / name
        write_parquet({folder / "train.parquet": rows, folder / "eval.parquet": rows[:1]})
        hashes.append(content_hash(folder, folder.iterdir()))
    assert (tmp_path / "a/train.parquet").read_bytes() == (tmp_path / "b/train.parquet").read_bytes()
    assert hashes[0] == hashes[1] != hashes[2]


def test_files_of_one_kind_share_their_columns(tmp_path):
    write_parquet({tmp_path / "train.parquet": ROWS[1:], tmp_path / "eval.parquet": ROWS[:1]})
    assert pq.read_schema(tmp_path / "train.parquet") == pq.read_schema(tmp_path / "eval.parquet")
    rows = load_dataset("parquet", data_files=str(tmp_path / "train.parquet"), split="train", cache_dir=str(tmp_path))
    assert rows[0]["messages"][0] == {"role": "user", "content": "c", "name": "Kim"}
    assert rows[0]["task"] is None


def test_many_rows_are_written_in_groups(tmp_path):
    rows = [{"prompt": str(i), "margin": None if i < 15_000 else 1.5} for i in range(25_000)]
    write_parquet({tmp_path / "train.parquet": rows})
    assert pq.read_table(tmp_path / "train.parquet").to_pylist() == rows


def test_a_column_of_several_types_is_told(tmp_path):
    with pytest.raises(DataError, match=r"train.parquet: the values of 'prompt' have different types"):
        write_parquet({tmp_path / "train.parquet": [{"prompt": "a"}, {"prompt": [1]}]})


def test_lengths_are_counted_in_the_tokens_of_the_line():
    rows = Dataset.from_list([{"prompt": "ab", "completion": "c" * n} for n in (1, 2, 7)])
    lengths = demonstration_lengths(rows, character_tokenizer(), max_length=5)
    np.testing.assert_array_equal(lengths.lengths, [4, 5, 10])  # two of the prompt, the completion, and EOS
    assert (lengths.cut, lengths.dropped) == (1, 0)
    assert demonstration_lengths(rows, character_tokenizer(), max_length=2).dropped == 3
    summary = lengths.as_dict()
    assert (summary["rows"], summary["tokens"], summary["min"], summary["max"]) == (3, 19, 4, 10)
    assert summary["histogram"] == {"edges": list(range(12)), "counts": [0, 0, 0, 0, 1, 1, 0, 0, 0, 0, 1]}


def test_the_length_of_a_pair_is_that_of_its_longer_side():
    rows = [{"prompt": "ab", "chosen": "c", "rejected": "def"}, {"prompt": "abcde", "chosen": "f", "rejected": "g"}]
    lengths = preference_lengths(Dataset.from_list(rows), character_tokenizer(), max_length=5)
    np.testing.assert_array_equal(lengths.lengths, [6, 7])
    assert (lengths.cut, lengths.dropped) == (1, 1)
