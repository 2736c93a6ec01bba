import os
import shutil
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import datasets
import pytest
from datasets import Dataset, concatenate_datasets

import tuneline.data.token_cache as token_cache
from tests.data.tiny_tokenizers import CHATML_WITH_MARKS, character_tokenizer
from tests.models import tiny_causal_lm
from tests.trainers.build import QUIET
from tuneline import SFTConfig, SFTTrainer
from tuneline.data.steps import tokenize_for_steps
from tuneline.data.tokenize import tokenize_for_preference, tokenize_for_reward, tokenize_for_sft
from tuneline.errors import ConfigError, DataError

ROOT = Path(__file__).parents[2]
ROWS = [{"text": "abc"}, {"text": "de"}, {"text": "fgh"}]


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv("TUNELINE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(token_cache, "_marks", [])
    yield tmp_path / "cache" / "tokenized"
    for mark in token_cache._marks:
        mark.close()


def entries(folder):
    return {path for path in folder.glob("*") if path.is_dir()}


def tokenized(rows=ROWS, tokenizer=None, **options):
    dataset = rows if isinstance(rows, Dataset) else Dataset.from_list(rows)
    return tokenize_for_sft(dataset, tokenizer or character_tokenizer(), **{"max_length": 8, **options})


def times_of(folder):
    return {path: path.stat().st_mtime_ns for path in folder.glob("*/rows*.arrow")}


def test_the_same_rows_are_tokenised_once(folder):
    first = tokenized()
    before = times_of(folder)
    tokenizer = character_tokenizer()
    tokenizer(["a", "bc"], truncation=True, max_length=1, padding=True)  # leaves its settings in the tokenizer
    again = tokenized(tokenizer=tokenizer)
    assert times_of(folder) == before
    assert len(before) == 1
    assert again.report == first.report
    assert again.dataset.to_list() == first.dataset.to_list()


def test_rows_are_known_by_content_however_they_are_cut(folder):
    first = tokenized()
    whole = Dataset.from_list([{"text": "zz"}, *ROWS, {"text": "z"}])
    parts = concatenate_datasets([Dataset.from_list(ROWS[:1]), Dataset.from_list(ROWS[1:])])
    shuffled = Dataset.from_list([ROWS[2], ROWS[0], ROWS[1]]).select([1, 2, 0])
    for rows in (whole.select(range(1, 4)), parts, shuffled):
        assert tokenized(rows).dataset.to_list() == first.dataset.to_list()
    assert len(entries(folder)) == 1


def test_another_row_option_tokenizer_or_template_is_another_entry(folder):
    messages = [{"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}]
    lowered = character_tokenizer()
    lowered.eos_token = "<|im_end|>"
    tokenized()
    tokenized(ROWS[:2])
    tokenized(max_length=7)
    tokenized(tokenizer=lowered)
    tokenized(messages)
    tokenized(messages, character_tokenizer(CHATML_WITH_MARKS))
    pair = Dataset.from_list([{"prompt": "a", "chosen": "b", "rejected": "c"}])
    tokenize_for_preference(pair, character_tokenizer(), max_length=8)
    assert len(entries(folder)) == 7


def test_other_code_makes_other_entries(tmp_path, monkeypatch):
    code = tmp_path / "data"
    shutil.copytree(Path(token_cache.__file__).parent, code)
    monkeypatch.setattr(token_cache, "__file__", str(code / "token_cache.py"))
    rows = Dataset.from_list(ROWS)
    keys = [token_cache.cache_key(rows, tokenize_for_sft, {})]
    keys.append(token_cache.cache_key(rows, tokenize_for_sft, {}))
    with (code / "rendering.py").open("a") as file:
        file.write("# changed\n")
    keys.append(token_cache.cache_key(rows, tokenize_for_sft, {}))
    assert keys[0] == keys[1] != keys[2]


@pytest.mark.parametrize("tokenize", [tokenize_for_preference, tokenize_for_reward, tokenize_for_steps])
def test_what_every_trainer_reads_is_kept(folder, tokenize):
    rows = [{"prompt": "a", "chosen": "b", "rejected": "c", "completions": ["d"], "labels": [True]}]
    first, again = (tokenize(Dataset.from_list(rows), character_tokenizer(), max_length=8).dataset for _ in range(2))
    assert len(entries(folder)) == 1
    assert first.to_list() == again.to_list()


def test_a_template_that_reads_the_date_is_kept_for_the_day(folder, monkeypatch):
    messages = [{"messages": [{"role": "user", "content": "a"}]}]
    dated = character_tokenizer("{{ strftime_now('%d') }}{% for m in messages %}{{ m.content }}{% endfor %}")
    tokenized(messages, dated)
    tokenized(messages, dated)
    assert len(entries(folder)) == 1

    class Tomorrow(token_cache.date):
        @classmethod
        def today(cls):
            return cls(2100, 1, 1)

    monkeypatch.setattr(token_cache, "date", Tomorrow)
    tokenized(messages, dated)
    assert len(entries(folder)) == 2


def test_another_process_finds_the_rows(folder):
    tokenized()
    before = times_of(folder)
    script = (
        "from datasets import Dataset; from tests.data.tiny_tokenizers import character_tokenizer; "
        "from tuneline.data.tokenize import tokenize_for_sft; "
        f"print(len(tokenize_for_sft(Dataset.from_list({ROWS}), character_tokenizer(), max_length=8).dataset))"
    )
    ran = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, cwd=ROOT)
    assert ran.stdout.split() == ["3"]
    assert times_of(folder) == before


def test_what_cannot_be_told_by_content_is_not_kept(folder, monkeypatch):
    tokenized(formatting_func=lambda row: row["text"])
    assert not entries(folder)
    datasets.disable_caching()
    try:
        tokenized()
    finally:
        datasets.enable_caching()
    monkeypatch.setenv("TUNELINE_CACHE_GB", "0")
    tokenized()
    assert not entries(folder)
    for value in ("much", "-1"):
        monkeypatch.setenv("TUNELINE_CACHE_GB", value)
        with pytest.raises(ConfigError, match=f"TUNELINE_CACHE_GB='{value}'"):
            tokenized()


def test_the_longest_unused_goes_first_and_what_is_read_stays(folder, monkeypatch):
    for i in range(4):
        tokenized(max_length=8 + i)
    sizes = {entry: sum(file.stat().st_size for file in entry.glob("*")) for entry in entries(folder)}
    oldest_first = sorted(entries(folder), key=lambda entry: entry.with_suffix(".use").stat().st_mtime_ns)
    for age, entry in enumerate(oldest_first):
        os.utime(entry.with_suffix(".use"), (age, age))
    token_cache.remove_oldest(folder, limit=0)
    assert entries(folder) == set(sizes)  # this process reads them all
    token_cache._marks[1].close()
    token_cache.remove_oldest(folder, limit=0)
    assert entries(folder) == set(sizes) - {oldest_first[1]}
    for mark in token_cache._marks:
        mark.close()
    token_cache.remove_oldest(folder, limit=sizes[oldest_first[3]])
    assert entries(folder) == {oldest_first[3]}


def test_an_error_leaves_nothing_behind_that_is_found(folder):
    for _ in range(2):
        with pytest.raises(DataError, match="Row 1 of the dataset"):
            tokenized([{"text": "a"}, {"text": None}])
    assert all(path.suffix == ".part" for path in entries(folder))
    assert tokenized().report.num_kept == 3


def test_several_processes_may_tokenise_one_dataset(folder):
    assert tokenized(num_proc=2).dataset.to_list() == tokenized().dataset.to_list()
    assert len(entries(folder)) == 1
    assert len(times_of(folder)) == 2


def test_a_folder_that_cannot_be_written_is_no_hindrance(folder, caplog):
    folder.parent.parent.mkdir(exist_ok=True)
    folder.parent.write_text("a file where the folder should be")
    assert tokenized().report.num_kept == 3
    assert "tokenised rows are not kept" in caplog.text


def test_a_trainer_made_again_tokenises_and_packs_nothing(folder, tmp_path):
    def trainer():
        args = SFTConfig(output_dir=str(tmp_path), max_length=8, packing=True, shuffle_dataset=True, **QUIET)
        rows = {name: Dataset.from_list(ROWS[:number]) for name, number in (("train_dataset", 3), ("eval_dataset", 2))}
        return SFTTrainer(tiny_causal_lm(), args, processing_class=character_tokenizer(), **rows)

    first = trainer()
    before = {path: path.stat().st_mtime_ns for path in folder.glob("*/*.arrow")}
    assert len(entries(folder)) == 2
    again = trainer()
    assert {path: path.stat().st_mtime_ns for path in folder.glob("*/*.arrow")} == before
    assert again.train_dataset.to_list() == first.train_dataset.to_list()
    assert again.tokenization_reports == first.tokenization_reports


def test_of_several_that_need_the_same_rows_one_tokenises_and_the_others_wait(folder, monkeypatch):
    """Threads stand for processes: the kernel's lock is on the open file, and each opens its own."""
    started, original = [], Dataset.map

    def slow_map(self, function, **options):
        started.append(function)
        time.sleep(0.3)
        return original(self, function, **options)

    monkeypatch.setattr(Dataset, "map", slow_map)
    with ThreadPoolExecutor(3) as pool:
        results = list(pool.map(lambda _: tokenized().dataset.to_list(), range(3)))
    assert len(started) == 1
    assert results[0] == results[1] == results[2]
