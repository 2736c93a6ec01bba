import json
from collections import Counter

import pytest
from datasets import Dataset, DatasetDict, IterableDataset

from tests.models import tiny_causal_lm
from tests.trainers.build import QUIET
from tests.trainers.rows import character_tokenizer
from tuneline import SFTConfig, SFTTrainer
from tuneline.data import DatasetConfig, DatasetMixtureConfig, ScriptArguments, get_dataset
from tuneline.errors import ConfigError, DataError


def written(folder, name, num_rows):
    path = folder / f"{name}.jsonl"
    path.write_text("".join(json.dumps({"text": f"{name}{i}", "id": i}) + "\n" for i in range(num_rows)))
    return str(path)


def sources_of(rows):
    return Counter(text[0] for text in rows["text"])


def test_sources_are_laid_end_to_end(tmp_path):
    paths = [written(tmp_path, name, 2) for name in "ab"]
    mixture = DatasetMixtureConfig([DatasetConfig(path, columns=["text"]) for path in paths])
    dataset = get_dataset(mixture)["train"]
    assert dataset.to_list() == [{"text": text} for text in ("a0", "a1", "b0", "b1")]


def test_shares_are_of_the_largest_mixture_that_repeats_no_row(tmp_path):
    """Half and half of 10 and 4 rows is 4 and 4; the first rows of each are taken."""
    few, many = written(tmp_path, "f", 4), written(tmp_path, "m", 10)
    mixture = DatasetMixtureConfig([{"path": many, "fraction": 0.3}, {"path": few, "fraction": 0.3}])
    assert get_dataset(mixture)["train"]["text"][:] == [f"m{i}" for i in range(4)] + [f"f{i}" for i in range(4)]
    mixture = DatasetMixtureConfig([{"path": many, "fraction": 1.0}, {"path": few, "fraction": 0.2}])
    assert sources_of(get_dataset(mixture)["train"]) == {"m": 10, "f": 2}


@pytest.mark.parametrize("fractions", [(0.5, 0.5), (0.9, 0.3), (1.0, 0.1)])
def test_shares_are_those_of_trl(tmp_path, fractions):
    trl = pytest.importorskip("trl")
    sizes = {"a": 13, "b": 6}
    for name, size in sizes.items():
        written(tmp_path, name, size)
    ours = [{"path": str(tmp_path / f"{n}.jsonl"), "fraction": f} for n, f in zip(sizes, fractions, strict=True)]
    theirs = [{"path": "json", "data_files": source["path"], "fraction": source["fraction"]} for source in ours]
    expected = trl.get_dataset(trl.DatasetMixtureConfig(datasets=theirs))["train"].to_list()
    assert get_dataset(DatasetMixtureConfig(ours))["train"].to_list() == expected


@pytest.mark.parametrize("streaming", [False, True])
def test_interleaving_draws_by_weight_and_repeats_with_the_seed(tmp_path, streaming):
    paths = {name: written(tmp_path, name, 300) for name in "ab"}
    datasets = [{"path": paths["a"], "weight": 3}, {"path": paths["b"], "weight": 1}]
    mixture = DatasetMixtureConfig(datasets, interleave=True, streaming=streaming)
    rows = list(get_dataset(mixture)["train"])
    drawn = Counter(row["text"][0] for row in rows)
    assert drawn["a"] == 300
    assert 70 < drawn["b"] < 130
    assert list(get_dataset(mixture)["train"]) == rows
    for name in "ab":  # the rows of a source keep their order
        ids = [row["id"] for row in rows if row["text"].startswith(name)]
        assert ids == list(range(len(ids)))


def test_interleaving_may_go_on_until_every_source_was_used_up(tmp_path):
    datasets = [{"path": written(tmp_path, "a", 20)}, {"path": written(tmp_path, "b", 5)}]
    rows = get_dataset(DatasetMixtureConfig(datasets, interleave=True, stopping_strategy="all_exhausted"))["train"]
    assert {row["text"] for row in rows} >= {f"a{i}" for i in range(20)}
    assert sources_of(rows)["b"] > 5


def test_rows_are_held_out_the_same_in_every_process(tmp_path):
    mixture = DatasetMixtureConfig([{"path": written(tmp_path, "a", 20)}], test_split_size=0.25)
    one, other = get_dataset(mixture), get_dataset(mixture)
    assert (len(one["train"]), len(one["test"])) == (15, 5)
    assert one["test"].to_list() == other["test"].to_list()
    assert not set(one["test"]["text"]) & set(one["train"]["text"])
    mixture = DatasetMixtureConfig(mixture.datasets, test_split_size=3)
    assert len(get_dataset(mixture)["test"]) == 3


def test_a_stream_is_read_row_by_row_and_can_be_split(tmp_path):
    path = written(tmp_path, "a", 20)
    with open(path, "a") as file:
        file.write("no row\n")
    mixture = DatasetMixtureConfig([{"path": path}], streaming=True, test_split_size=1)
    splits = get_dataset(mixture)
    assert isinstance(splits["train"], IterableDataset)
    assert [row["text"] for row in splits["test"]] == ["a0"]
    rows = iter(splits["train"])
    assert [next(rows)["text"] for _ in range(19)] == [f"a{i}" for i in range(1, 20)]
    with pytest.raises(DataError, match=r"a\.jsonl, row 21: is not JSON"):
        next(rows)


def test_folders_saved_by_datasets_and_data_files_are_read(tmp_path):
    dataset = Dataset.from_dict({"text": ["x"]})
    DatasetDict({"test": dataset}).save_to_disk(tmp_path / "saved")
    files = {"path": "json", "data_files": written(tmp_path, "a", 1), "columns": ["text"]}
    for streaming in (False, True):
        mixture = DatasetMixtureConfig([{"path": str(tmp_path / "saved"), "split": "test"}, files], streaming=streaming)
        assert [row["text"] for row in get_dataset(mixture)["train"]] == ["x", "a0"]
    with pytest.raises(DataError, match="has no split 'train'; it has 'test'"):
        get_dataset(DatasetMixtureConfig([{"path": str(tmp_path / "saved")}]))


@pytest.mark.parametrize(
    ("datasets", "options", "message"),
    [
        ([{"path": "a", "fraction": 0}], {}, r"'a' has fraction=0; a share is in \(0, 1\]"),
        ([{"path": "a", "fraction": 1.5}], {}, "fraction=1.5"),
        ([{"path": "a", "weight": -1}], {}, "weight=-1; a weight is a number above 0"),
        ([{"path": "a", "fraction": 0.5}, {"path": "b"}], {}, "1 of 2 have a fraction; give it to all or none"),
        ([{"path": "a", "weight": 1}, {"path": "b"}], {"interleave": True}, "1 of 2 have a weight"),
        ([{"path": "a", "fraction": 0.5}], {"streaming": True}, "a stream has none; use weights"),
        ([{"path": "a", "weight": 0.5}], {}, "weights are for interleave=True"),
        ([{"path": "a"}], {"streaming": True, "test_split_size": 0.1}, "give the number of rows to hold out"),
        ([{"path": "a"}], {"stopping_strategy": "never"}, "'never' is unknown"),
        ([{"path": "a", "frction": 0.5}], {}, "'frction' is unknown; use path, name"),
        ([{"name": "a"}], {}, "has no path"),
    ],
)
def test_what_contradicts_itself_is_refused_before_anything_is_read(datasets, options, message):
    with pytest.raises(ConfigError, match=message):
        DatasetMixtureConfig(datasets, **options)


def test_what_is_missing_is_told_by_source(tmp_path):
    path = written(tmp_path, "a", 2)
    with pytest.raises(ConfigError, match="has no data sets"):
        get_dataset(DatasetMixtureConfig())
    with pytest.raises(DataError, match=r"a.jsonl: has no column 'prompt'; it has text, id"):
        get_dataset(DatasetMixtureConfig([{"path": path, "columns": ["prompt"]}]))
    with pytest.raises(DataError, match="nowhere/at-all"):
        get_dataset(DatasetMixtureConfig([{"path": "nowhere/at-all"}]))
    with pytest.raises(ConfigError, match="test_split_size=7 does not split 2 rows in two"):
        get_dataset(DatasetMixtureConfig([{"path": path}], test_split_size=7))
    other = tmp_path / "b.jsonl"
    other.write_text('{"text": ["no", "string"]}\n')
    with pytest.raises(DataError, match="have different columns"):
        get_dataset(DatasetMixtureConfig([{"path": path}, {"path": str(other)}]))


def test_fields_and_defaults_are_those_of_trl():
    trl = pytest.importorskip("trl")
    from dataclasses import MISSING, fields

    from trl.scripts.utils import DatasetConfig as TheirDatasetConfig

    pairs = [
        (DatasetConfig, TheirDatasetConfig),
        (DatasetMixtureConfig, trl.DatasetMixtureConfig),
        (ScriptArguments, trl.ScriptArguments),
    ]
    for ours, theirs in pairs:
        known = {f.name: f.default for f in fields(ours)}
        for f in fields(theirs):
            assert f.name in known, f"{ours.__name__} has no {f.name}"
            assert known[f.name] == f.default or MISSING in (known[f.name], f.default)


def test_a_trainer_reads_a_stream_that_is_mixed_by_weight(tmp_path):
    paths = {name: written(tmp_path, name, 40) for name in "ab"}
    datasets = [{"path": paths["a"], "weight": 3}, {"path": paths["b"], "weight": 1}]
    rows = get_dataset(DatasetMixtureConfig(datasets, interleave=True, streaming=True))["train"]
    expected = [row["text"] for row, _ in zip(rows, range(8), strict=False)]
    args = SFTConfig(output_dir=str(tmp_path), max_steps=2, per_device_train_batch_size=4, **QUIET)
    trainer = SFTTrainer(tiny_causal_lm(), args, train_dataset=rows, processing_class=character_tokenizer())
    tokenizer = character_tokenizer()
    first, second, *_ = (batch for batch, _ in zip(trainer.get_train_dataloader(), range(2), strict=False))
    read = [
        tokenizer.decode(ids, skip_special_tokens=True).replace(" ", "")
        for batch in (first, second)
        for ids in batch.input_ids[0].split(batch.sequence_lengths.tolist())
    ]
    assert read == expected
    trainer.train()
    assert trainer.state.global_step == 2
