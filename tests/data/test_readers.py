import gzip
import json

import pyarrow.parquet as pq
import pytest
from datasets import Dataset, DatasetDict

from tests.data.shared_files import real_data
from tuneline.data.readers import BadRow, SourceRow, iter_source, read_source
from tuneline.errors import DataError

ROWS = [{"prompt": "1 + 1", "completion": "2"}, {"prompt": "Grüße\nund „mehr“", "completion": 'a, "b"'}]
LINES = "".join(json.dumps(row) + "\n" for row in ROWS)
CSV = 'prompt,completion\n1 + 1,2\n"Grüße\nund „mehr“","a, ""b"""\n'


def written(folder, name, content):
    path = folder / name
    content = content.encode() if isinstance(content, str) else content
    path.write_bytes(gzip.compress(content) if name.endswith(".gz") else content)
    return str(path)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("rows.jsonl", LINES),
        ("rows.ndjson", "\n" + LINES.replace("\n", "\r\n\r\n")),
        ("rows.jsonl.gz", LINES),
        ("rows.json", "\ufeff" + json.dumps(ROWS, indent=1)),
        ("rows.json", LINES),
        ("rows.json.gz", json.dumps(ROWS)),
        ("rows.csv", CSV),
        ("rows.csv.gz", CSV),
    ],
)
def test_text_files_are_read(tmp_path, name, content):
    assert read_source(written(tmp_path, name, content)).to_list() == ROWS


def test_parquet_is_read(tmp_path):
    path = str(tmp_path / "rows.parquet")
    pq.write_table(Dataset.from_list(ROWS).data.table, path)
    assert list(iter_source(path)) == [SourceRow(path, 1, ROWS[0]), SourceRow(path, 2, ROWS[1])]


def test_folders_saved_by_datasets_are_read(tmp_path):
    Dataset.from_list(ROWS).save_to_disk(str(tmp_path / "one"))
    assert read_source(str(tmp_path / "one")).to_list() == ROWS
    DatasetDict({"train": Dataset.from_list(ROWS), "test": Dataset.from_list(ROWS[:1])}).save_to_disk(
        str(tmp_path / "two")
    )
    assert read_source(str(tmp_path / "two"), split="test").to_list() == ROWS[:1]
    with pytest.raises(DataError, match="has no split 'validation'; it has 'train', 'test'"):
        read_source(str(tmp_path / "two"), split="validation")
    next((tmp_path / "one").glob("*.arrow")).write_bytes(b"damaged")
    with pytest.raises(DataError, match="was saved by datasets and cannot be read"):
        read_source(str(tmp_path / "one"))


def test_a_hub_name_is_read_by_its_splits(tmp_path, monkeypatch):
    """A folder `owner/name` in the working folder stands for the hub: `datasets` resolves both in the same way."""
    folder = tmp_path / "owner" / "name"
    folder.mkdir(parents=True)
    written(folder, "train.jsonl", LINES)
    written(folder, "test.jsonl", LINES.splitlines()[0])
    monkeypatch.chdir(tmp_path)
    assert read_source("owner/name").to_list() == ROWS
    row = next(iter_source("owner/name", split="test"))
    assert row == SourceRow("owner/name (test)", 1, ROWS[0])
    with pytest.raises(DataError, match="owner/name: neither a folder nor the hub gives its split 'validation'"):
        read_source("owner/name", split="validation")


def test_columns_are_renamed_and_rows_limited(tmp_path):
    path = written(tmp_path, "rows.jsonl", LINES)
    rows = read_source(path, columns={"text": "prompt"}, max_rows=1).to_list()
    assert rows == [{"text": "1 + 1", "completion": "2"}]
    swapped = next(iter_source(path, columns={"prompt": "completion", "completion": "prompt"}))
    assert swapped.values == {"prompt": "2", "completion": "1 + 1"}
    with pytest.raises(DataError, match="'question': is missing, and `columns` takes 'prompt' from it"):
        read_source(path, columns={"prompt": "question"})


def test_cells_of_csv_that_hold_messages_are_read_as_such(tmp_path):
    path = written(tmp_path, "rows.csv", 'messages,note\n"[{""role"": ""user"", ""content"": ""hi""}]",[{nothing\n')
    assert read_source(path).to_list() == [{"messages": [{"role": "user", "content": "hi"}], "note": "[{nothing"}]


def test_cells_of_csv_may_be_long(tmp_path):
    path = written(tmp_path, "rows.csv", "text\n" + "a" * 200_000 + "\n")
    assert len(read_source(path)[0]["text"]) == 200_000


def test_lines_that_are_no_rows_are_told_by_file_and_number(tmp_path):
    path = written(tmp_path, "rows.jsonl", '{"a": 1}\n\n{"a": \n[1]\n')
    good, broken, no_object = iter_source(path)
    assert good == SourceRow(path, 1, {"a": 1})
    assert isinstance(broken, BadRow)
    assert broken.describe().startswith(f"{path}, row 3: is not JSON: ")
    assert no_object == BadRow(path, 4, None, "is a JSON list and no object", [1])
    with pytest.raises(DataError, match="2 rows cannot be used") as error:
        read_source(path)
    assert "row 3" in str(error.value)
    assert "row 4" in str(error.value)


def test_records_of_csv_with_other_cells_than_the_header_are_bad_rows(tmp_path):
    path = written(tmp_path, "rows.csv", "a,b\n1,2\n1,2,3\n1\n")
    good, long, short = iter_source(path)
    assert good.values == {"a": "1", "b": "2"}
    assert (long.number, long.reason) == (2, "has more cells than the header has names")
    assert (short.number, short.field) == (3, "b")


def test_of_many_bad_rows_the_first_are_shown(tmp_path):
    path = written(tmp_path, "rows.jsonl", "{\n" * 25)
    with pytest.raises(DataError, match="25 rows cannot be used") as error:
        read_source(path)
    assert str(error.value).count("is not JSON") == 10
    assert "and 15 more" in str(error.value)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("rows.txt", "a", "a file that ends in '.txt' is not read; use .jsonl"),
        ("rows.jsonl", b"\xff\xfe{}", "is not UTF-8"),
        ("rows.parquet", b"no parquet", "is not Parquet, or is damaged"),
        ("rows.json", "[1,", "is not JSON"),
        ("rows.csv", 'a,b\n"1,2\n', "is not CSV"),
    ],
)
def test_files_that_cannot_be_read_are_told_by_name(tmp_path, name, content, message):
    with pytest.raises(DataError, match=message) as error:
        read_source(written(tmp_path, name, content))
    assert name in str(error.value)


def test_damaged_gzip_is_told(tmp_path):
    path = tmp_path / "rows.jsonl.gz"
    path.write_bytes(b"no gzip")
    with pytest.raises(DataError, match="cannot be read"):
        read_source(str(path))
    path.write_bytes(gzip.compress(LINES.encode())[:-9])
    with pytest.raises(DataError, match="cannot be read"):
        read_source(str(path))


def test_what_is_not_there_is_told(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DataError, match=r"data/rows.jsonl: no such file or folder"):
        read_source("data/rows.jsonl")


def test_a_column_of_several_types_is_told(tmp_path):
    path = written(tmp_path, "rows.jsonl", '{"a": "text"}\n{"a": [1]}\n')
    with pytest.raises(DataError, match="a column holds values of different types"):
        read_source(path)


def test_real_data_are_read():
    rows = read_source(real_data("gsm8k-test.jsonl.gz"), columns={"prompt": "question", "completion": "answer"})
    assert len(rows) == 660
    assert sorted(rows.column_names) == ["completion", "prompt"]
