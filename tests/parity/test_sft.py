"""Supervised fine-tuning against TRL: loss, gradients and metrics of a training step, float32, 1e-5."""

import pytest
from datasets import Dataset

import tuneline
from tests.models import tiny_causal_lm
from tests.parity.sides import PAIRS, as_dialogue, assert_same, chat_tokenizer, train

trl = pytest.importorskip("trl", reason="parity is measured against TRL, which is not installed")

COMPLETIONS = [{"prompt": pair["prompt"], "completion": pair["chosen"]} for pair in PAIRS]
TEXTS = [{"text": pair["prompt"] + pair["rejected"]} for pair in PAIRS]
DIALOGUES = [as_dialogue(row) for row in COMPLETIONS]
MESSAGES = [{"messages": row["prompt"] + row["completion"]} for row in DIALOGUES]
METRICS = {"loss", "grad_norm", "entropy", "num_tokens", "mean_token_accuracy"}


@pytest.mark.parametrize(
    ("rows", "options"),
    [
        (COMPLETIONS, {}),
        (COMPLETIONS, {"completion_only_loss": False}),
        (TEXTS, {}),
        (TEXTS, {"max_length": 24}),
        (COMPLETIONS, {"loss_type": "dft"}),
        (TEXTS, {"loss_type": "dft"}),
        (DIALOGUES, {}),
        (MESSAGES, {}),
        (MESSAGES, {"assistant_only_loss": True}),
        (COMPLETIONS, {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 3}),
    ],
    ids=[
        "completion only",
        "prompt too",
        "text",
        "cut text",
        "dft",
        "dft text",
        "dialogue",
        "messages",
        "assistant only",
        "micro-batches",
    ],
)
def test_a_training_step_and_its_metrics(tmp_path, rows, options):
    model, options = tiny_causal_lm(vocab_size=128), {"tokenizer": chat_tokenizer(), **options}
    ours, our_line = train(tuneline, "SFT", model, tmp_path, Dataset.from_list(rows), **options)
    theirs, their_line = train(trl, "SFT", model, tmp_path, Dataset.from_list(rows), **options)
    assert_same(ours, theirs)
    compared = METRICS
    if "gradient_accumulation_steps" in options:
        # TRL averages the micro-batches' means; ours are exact over the step's tokens
        compared = METRICS - {"entropy", "mean_token_accuracy"}
    assert {name: our_line[name] for name in compared} == pytest.approx(
        {name: their_line[name] for name in compared}, rel=1e-5, abs=1e-5
    )
