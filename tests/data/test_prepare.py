import json

import pyarrow.parquet as pq
import pytest
from transformers import AutoModelForCausalLM, AutoTokenizer

from stages.prepare import prepare
from stages.schema import PipelineConfig
from tests.data.shared_files import real_data
from tests.data.tiny_tokenizers import CHATML, character_tokenizer
from tuneline.errors import ConfigError, DataError

INIT = {
    "model_type": "qwen2",
    "tokenizer": "characters",
    "hidden_size": 8,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "intermediate_size": 16,
}
PAIRS = [{"prompt": f"{i} + 1", "chosen": f"{i + 1}", "rejected": f"{i + 2}"} for i in range(60)]


def config(path, model=None, **options):
    return PipelineConfig.model_validate(
        {
            "name": "test",
            "model": model or {"init": INIT},
            "prepare": {"preferences": {"path": str(path)}, "max_length": 8, **options},
        }
    )


def written(folder, rows, name="pairs.jsonl"):
    path = folder / name
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def run(config, folder):
    """The folders of one run: data, model and report."""
    folders = [folder / name for name in ("prepared", "base", "report")]
    prepare(config, *folders)
    return folders


def all_bytes(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def read(path):
    return pq.read_table(path).to_pylist()


def test_two_runs_give_identical_bytes(tmp_path):
    path = written(tmp_path, [*PAIRS, {"prompt": "a"}])
    for name in ("one", "two"):
        run(config(path, on_bad_rows="skip"), tmp_path / name)
    assert all_bytes(tmp_path / "one") == all_bytes(tmp_path / "two")
    assert set(all_bytes(tmp_path / "one")) >= {
        "prepared/sft/train.parquet",
        "prepared/sft/eval.parquet",
        "prepared/preference/train.parquet",
        "prepared/preference/eval.parquet",
        "prepared/test.parquet",
        "prepared/summary.json",
        "prepared/skipped.jsonl",
        "base/model.safetensors",
        "report/metrics.json",
        "report/lengths.svg",
    }


def test_the_model_to_start_from_loads_by_itself(tmp_path):
    _, base, _ = run(config(written(tmp_path, PAIRS)), tmp_path)
    model, tokenizer = AutoModelForCausalLM.from_pretrained(base), AutoTokenizer.from_pretrained(base)
    assert model.config.vocab_size >= len(tokenizer)
    assert tokenizer.chat_template


def test_a_model_by_name_is_referred_to_and_its_tokenizer_counts(tmp_path):
    character_tokenizer(chat_template=None).save_pretrained(tmp_path / "model")
    (tmp_path / "chatml.jinja").write_text(CHATML)
    model = {"name_or_path": str(tmp_path / "model"), "chat_template": str(tmp_path / "chatml.jinja")}
    rows = [
        {
            side: [{"role": "user", "content": p["prompt"]}, {"role": "assistant", "content": p[side]}]
            for side in ("chosen", "rejected")
        }
        for p in PAIRS
    ]
    prepared, base, _ = run(config(written(tmp_path, rows), model), tmp_path)
    assert AutoTokenizer.from_pretrained(base).chat_template == CHATML
    assert json.loads((base / "reference.json").read_text()) == {
        "name_or_path": model["name_or_path"],
        "revision": None,
    }
    summary = json.loads((prepared / "summary.json").read_text())
    turn = len("user\n0 + 1") + 3  # two marks and the end of the line
    assert summary["lengths"]["test"]["min"] == turn + len("assistant\n") + 1
    model["chat_template"] = str(tmp_path / "none.jinja")
    with pytest.raises(ConfigError, match=r"none\.jinja"):
        run(config(written(tmp_path, rows), model), tmp_path)


def test_the_summary_accounts_for_every_row(tmp_path):
    rows = [*PAIRS, PAIRS[0], {"prompt": "a", "chosen": "b", "rejected": "b"}, {"prompt": "a"}]
    prepared, _, report = run(config(written(tmp_path, rows), on_bad_rows="skip", eval_fraction=0.2), tmp_path)
    summary = json.loads((prepared / "summary.json").read_text())
    counts = summary["sources"]["preferences"]["counts"]
    assert {name: counts[name] for name in ("read", "skipped", "identical_sides", "duplicates", "overlapping")} == {
        "read": 63,
        "skipped": 1,
        "identical_sides": 1,
        "duplicates": 1,
        "overlapping": 0,
    }
    assert counts["train"] + counts["eval"] == 60
    assert counts["train"] == len(read(prepared / "preference/train.parquet"))
    assert summary["sources"]["test"]["from"] == "preferences"
    lengths = summary["lengths"]["preference/train"]
    assert sum(lengths["histogram"]["counts"]) == lengths["rows"] == counts["train"]
    metrics = json.loads((report / "metrics.json").read_text())
    assert metrics["preferences/skipped"] == 1
    assert metrics["sft/train/tokens"] == summary["lengths"]["sft/train"]["tokens"]
    assert all(isinstance(value, int | float) for value in metrics.values())


def test_skipped_rows_are_written_out_with_their_place_and_reason(tmp_path):
    path = written(tmp_path, [*PAIRS, {"prompt": "a", "chosen": ""}])
    path.write_text(path.read_text() + "{broken\n")
    prepared, *_ = run(config(path, on_bad_rows="skip"), tmp_path)
    missing, broken = map(json.loads, (prepared / "skipped.jsonl").read_text().splitlines())
    assert missing["file"] == str(path)
    assert (missing["row"], missing["field"]) == (61, "rejected")
    assert missing["values"] == {"prompt": "a", "chosen": ""}
    assert (broken["row"], broken["field"], broken["values"]) == (62, None, "{broken")


def test_bad_rows_are_an_error_unless_they_are_to_be_skipped(tmp_path):
    path = written(tmp_path, [*PAIRS, {"prompt": "a", "chosen": "b"}])
    with pytest.raises(DataError, match=r"pairs.jsonl, row 61, field 'rejected': is missing"):
        run(config(path), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_demonstrations_and_a_test_set_of_their_own(tmp_path):
    shown = [{"question": f"{i} + {i}", "answer": f"{2 * i}"} for i in range(40)]
    asked = [{"question": f"{i} + 1", "answer": i + 1} for i in range(3)]
    prepared, *_ = run(
        config(
            written(tmp_path, PAIRS),
            demonstrations={
                "path": str(written(tmp_path, shown, "shown.jsonl")),
                "columns": {"prompt": "question", "completion": "answer"},
            },
            test={
                "path": str(written(tmp_path, asked, "asked.jsonl")),
                "columns": {"prompt": "question", "solution": "answer"},
            },
            max_rows=30,
        ),
        tmp_path,
    )
    assert read(prepared / "test.parquet") == [{"prompt": f"{i} + 1", "solution": f"{i + 1}"} for i in range(3)]
    rows = read(prepared / "sft/train.parquet") + read(prepared / "sft/eval.parquet")
    # `1 + 1` is asked, so it is not shown.
    assert {row["prompt"] for row in rows} == {f"{i} + {i}" for i in range(30) if i != 1}
    pairs = read(prepared / "preference/train.parquet") + read(prepared / "preference/eval.parquet")
    assert len(pairs) == 27


def test_synthetic_problems_are_prepared_without_a_common_one(tmp_path):
    of = {
        role: {"synthetic": {"num_rows": n}} for role, n in (("demonstrations", 60), ("preferences", 50), ("test", 20))
    }
    options = {"name": "test", "model": {"init": INIT}, "prepare": {**of, "eval_fraction": 0.1}}
    prepared, *_ = run(PipelineConfig.model_validate(options), tmp_path)
    summary = json.loads((prepared / "summary.json").read_text())
    assert summary["sources"]["test"]["from"] == {"synthetic": {"num_rows": 20, "noise": 0.0, "slips": 0.0}}
    for source in summary["sources"].values():
        assert source["counts"]["overlapping"] == source["counts"]["duplicates"] == 0
    assert {"prompt", "solution", "task"} == set(read(prepared / "test.parquet")[0])
    assert {"prompt", "chosen", "rejected", "task"} == set(read(prepared / "preference/train.parquet")[0])
    assert {"prompt", "completion", "task"} == set(read(prepared / "sft/train.parquet")[0])


def test_real_preferences_are_prepared(tmp_path):
    path = real_data("hh-harmless.jsonl.gz")
    options = {"on_bad_rows": "skip", "max_rows": 200}
    prepared, *_ = run(config(path, {"init": INIT | {"tokenizer": "bpe", "vocab_size": 400}}, **options), tmp_path)
    row = read(prepared / "preference/train.parquet")[0]
    assert row["prompt"][-1]["role"] == "user"
    assert row["chosen"][0]["role"] == row["rejected"][0]["role"] == "assistant"
    assert len((prepared / "skipped.jsonl").read_text().splitlines()) == 1


def test_worked_answers_are_prepared_in_chat_form_without_preferences(tmp_path):
    shown = [{"question": f"{i} + {i}?", "answer": f"<<{i}+{i}={2 * i}>>{2 * i}\n#### {2 * i}"} for i in range(40)]
    worked = {
        "path": str(written(tmp_path, [*shown, {"question": "a?", "answer": "no idea"}])),
        "columns": {"prompt": "question", "completion": "answer"},
        "worked": {"ending": "\\boxed{{solution}}"},
        "chat": True,
        "system": "Work it out.",
    }
    options = {"demonstrations": worked, "preferences": None, "on_bad_rows": "skip", "eval_fraction": 0.2}
    prepared, _, report = run(config("unused", **options), tmp_path)
    (row,) = [row for row in read(prepared / "sft/train.parquet") if row["solution"] == "6"]
    assert row["prompt"][0] == {"role": "system", "content": "Work it out."}
    assert row["completion"] == [{"role": "assistant", "content": "6\n\\boxed{6}"}]
    assert {"prompt", "solution"} == set(read(prepared / "grpo/train.parquet")[0])
    assert read(prepared / "preference/train.parquet") == read(prepared / "preference/eval.parquet") == []
    (bad,) = map(json.loads, (prepared / "skipped.jsonl").read_text().splitlines())
    assert (bad["row"], bad["field"], bad["reason"]) == (41, "completion", "has no '####' with a solution behind it")
    summary = json.loads((prepared / "summary.json").read_text())
    assert set(summary["sources"]) == {"demonstrations", "prompts", "test"}
    assert summary["sources"]["prompts"]["from"] == summary["sources"]["test"]["from"] == "demonstrations"
    metrics = json.loads((report / "metrics.json").read_text())
    assert metrics["prompts/train"] == metrics["grpo/train/rows"] == metrics["demonstrations/train"]
    assert "preference/train/rows" not in metrics
