"""`tuneline convert` and `tuneline merge`: from files to files."""

import json

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torch.testing import assert_close
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

from tests.models import tiny_causal_lm, tiny_reward_model
from tests.trainers.rows import character_tokenizer
from tests.vision.models import tiny_processor, tiny_vlm
from tuneline.cli.main import main
from tuneline.cli.parser import DATA_TYPES
from tuneline.data.readers import read_source
from tuneline.models.loading import load_processor


@pytest.fixture
def pairs(tmp_path):
    rows = [{"prompt": f"{i}?", "chosen": " yes é", "rejected": " no"} for i in range(3)]
    path = tmp_path / "pairs.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.mark.parametrize("suffix", [".jsonl", ".parquet", ".csv"])
def test_pairs_become_single_judged_answers(suffix, pairs, tmp_path, capsys):
    target = tmp_path / f"judged{suffix}"
    assert main(["convert", str(pairs), str(target), "--to", "unpaired-preference"]) == 0
    assert "6 rows of prompt, completion, label, from 3 of type preference" in capsys.readouterr().out
    rows = read_source(target)
    assert sorted(rows["completion"]) == [" no"] * 3 + [" yes é"] * 3


@pytest.mark.parametrize("to", DATA_TYPES)
def test_every_type_that_the_command_names_is_known(to, pairs, tmp_path):
    assert main(["convert", str(pairs), str(tmp_path / "out.jsonl"), "--to", to]) == 0


def test_a_target_is_not_written_over_unasked(pairs, capsys):
    before = pairs.read_text()
    words = ["convert", str(pairs), str(pairs), "--to", "prompt-only"]
    assert main(words) == 2
    assert "exists; name another file, or pass --force" in capsys.readouterr().err
    assert pairs.read_text() == before
    assert main(["convert", str(pairs), "x.txt", "--to", "prompt-only"]) == 2
    assert "ends in one of .jsonl, .parquet, .csv" in capsys.readouterr().err


def adapted(model, folder, task):
    model.save_pretrained(folder / "base")
    character_tokenizer().save_pretrained(folder / "base")
    torch.manual_seed(0)
    config = LoraConfig(r=4, target_modules="all-linear", task_type=task, init_lora_weights=False)
    model.config.name_or_path = model.name_or_path = str(folder / "base")
    adapter: PeftModel = get_peft_model(model, config).eval()
    adapter.save_pretrained(folder / "adapter")
    return adapter


@pytest.mark.parametrize("kind", ["policy", "reward model"])
def test_a_merged_model_answers_as_the_adapted_one(kind, tmp_path, capsys):
    if kind == "policy":
        model, task, auto = tiny_causal_lm(), "CAUSAL_LM", AutoModelForCausalLM
    else:
        model, task, auto = tiny_reward_model(), "SEQ_CLS", AutoModelForSequenceClassification
    adapter = adapted(model, tmp_path, task)
    assert main(["merge", str(tmp_path / "adapter"), str(tmp_path / "merged")]) == 0
    assert "parameters of torch.float32" in capsys.readouterr().out
    ids = torch.tensor([[5, 6, 7]])
    merged = auto.from_pretrained(tmp_path / "merged").eval()
    with torch.no_grad():
        assert_close(merged(input_ids=ids).logits, adapter(input_ids=ids).logits, rtol=1e-4, atol=1e-4)
    assert (tmp_path / "merged" / "tokenizer.json").is_file()


def test_a_vision_language_model_is_merged_with_its_processor(tmp_path):
    adapted(tiny_vlm("idefics"), tmp_path, "CAUSAL_LM")
    tiny_processor("idefics").save_pretrained(tmp_path / "base")
    tiny_processor("idefics").save_pretrained(tmp_path / "adapter")  # as the trainers save it
    assert main(["merge", str(tmp_path / "adapter"), str(tmp_path / "merged")]) == 0
    assert type(load_processor(str(tmp_path / "merged"))) is type(tiny_processor("idefics"))


def test_a_merge_that_fails_leaves_nothing_behind(tmp_path, capsys):
    adapted(tiny_causal_lm(), tmp_path, "CAUSAL_LM")
    words = ["merge", str(tmp_path / "adapter"), str(tmp_path / "merged")]
    tiny_causal_lm(hidden_size=64).save_pretrained(tmp_path / "other")
    character_tokenizer().save_pretrained(tmp_path / "other")
    assert main([*words, "--base", str(tmp_path / "other")]) == 2
    assert "does not fit" in capsys.readouterr().err
    (tmp_path / "base" / "tokenizer.json").write_text("{")
    assert main(words) == 2
    assert "cannot load a tokenizer" in capsys.readouterr().err
    assert not (tmp_path / "merged").exists()


def test_what_cannot_be_merged_is_told(tmp_path, capsys):
    assert main(["merge", str(tmp_path), str(tmp_path / "out")]) == 2
    assert "holds no adapter" in capsys.readouterr().err
    assert main(["merge", str(tmp_path), str(tmp_path)]) == 2
    assert "exists; name another folder" in capsys.readouterr().err
