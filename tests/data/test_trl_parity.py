"""Tokens and targets equal those that TRL's trainers prepare, on real dialogues with a tokenizer that merges them."""

from types import SimpleNamespace

import pytest
from datasets import Dataset

from tests.data.shared_files import real_data
from tuneline.data.readers import BadRow, iter_source
from tuneline.data.tokenize import tokenize_for_preference, tokenize_for_reward, tokenize_for_sft
from tuneline.data.validation import Validator, preference
from tuneline.models.tiny import make_tokenizer

trl = pytest.importorskip("trl")

MAX_LENGTH = 128


@pytest.fixture(scope="module")
def sources():
    return list(iter_source(real_data("hh-harmless.jsonl.gz"), max_rows=120))


@pytest.fixture(scope="module")
def pairs(sources):
    check = Validator(preference)
    checked = [check(row) for row in sources]
    return [row for row in checked if not isinstance(row, BadRow)]


@pytest.fixture(scope="module")
def tokenizer(sources):
    return make_tokenizer("bpe", 600, [row.values["chosen"] for row in sources])


def prepared_by_trl(trainer, rows, tokenizer, **settings):
    """What TRL's trainer makes of rows before the first step."""
    args = SimpleNamespace(
        dataset_num_proc=None,
        dataset_text_field="text",
        max_length=MAX_LENGTH,
        truncation_mode="keep_start",
        shuffle_dataset=False,
        assistant_only_loss=settings.pop("assistant_only_loss", False),
    )
    itself = SimpleNamespace(_tokenizer=tokenizer, chat_template=None, **settings)
    further = (False, None) if trainer is trl.SFTTrainer else ()
    return trainer._prepare_dataset(itself, Dataset.from_list(rows), tokenizer, args, *further, "train")


@pytest.mark.parametrize(
    ("kind", "assistant_only_loss"),
    [
        ("text", False),
        ("pieces", False),
        ("messages", False),
        ("messages", True),
        ("dialogues", False),
        ("dialogues", True),
    ],
)
def test_fine_tuning_reads_the_same_tokens_and_targets(sources, pairs, tokenizer, kind, assistant_only_loss):
    texts = [row.values["chosen"] for row in sources]
    rows = {
        "text": [{"text": text} for text in texts],
        "pieces": [{"prompt": text[:40], "completion": text[40:200]} for text in texts],
        "messages": [{"messages": pair["prompt"] + pair["chosen"]} for pair in pairs],
        "dialogues": [{"prompt": pair["prompt"], "completion": pair["chosen"]} for pair in pairs],
    }[kind]
    theirs = prepared_by_trl(
        trl.SFTTrainer,
        rows,
        tokenizer,
        completion_only_loss="prompt" in rows[0],
        assistant_only_loss=assistant_only_loss,
    )
    ours = tokenize_for_sft(
        Dataset.from_list(rows), tokenizer, max_length=MAX_LENGTH, assistant_only_loss=assistant_only_loss
    ).dataset
    assert ours["input_ids"][:] == theirs["input_ids"][:]
    assert ours["is_target"][:] == [[0] + [int(i != -100) for i in labels[1:]] for labels in theirs["labels"]]


@pytest.mark.parametrize("kind", ["text", "dialogues"])
def test_pairs_have_the_same_tokens(sources, pairs, tokenizer, kind):
    rows = pairs if kind == "dialogues" else [row.values for row in sources]
    theirs = prepared_by_trl(trl.DPOTrainer, rows, tokenizer)
    ours = tokenize_for_preference(Dataset.from_list(rows), tokenizer, max_length=MAX_LENGTH).dataset
    assert ours["prompt_ids"][:] == theirs["prompt_ids"][:]
    for side in ("chosen_ids", "rejected_ids"):
        # TRL's collator cuts them, at the same place.
        cut = [ids[: MAX_LENGTH - len(prompt)] for ids, prompt in zip(theirs[side], theirs["prompt_ids"], strict=True)]
        assert ours[side][:] == cut
    theirs = prepared_by_trl(trl.RewardTrainer, rows, tokenizer)
    ours = tokenize_for_reward(Dataset.from_list(rows), tokenizer, max_length=MAX_LENGTH).dataset
    assert ours["chosen_ids"][:] == theirs["chosen_ids"][:]
    assert ours["rejected_ids"][:] == theirs["rejected_ids"][:]
