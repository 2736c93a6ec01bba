"""Reward modelling against TRL: loss, gradients and metrics of a training step, float32, 1e-5."""

import pytest
from datasets import Dataset

import tuneline
from tests.models import tiny_reward_model
from tests.parity.sides import MARGINS, PAIRS, as_dialogue, assert_same, chat_tokenizer, train

trl = pytest.importorskip("trl", reason="parity is measured against TRL, which is not installed")

METRICS = {"loss", "grad_norm", "min_reward", "mean_reward", "max_reward", "accuracy", "margin", "num_tokens"}
WITH_MARGINS = [pair | {"margin": margin} for pair, margin in zip(PAIRS, MARGINS, strict=True)]


@pytest.mark.parametrize(
    ("rows", "options"),
    [
        (PAIRS, {}),
        (WITH_MARGINS, {}),
        (PAIRS, {"center_rewards_coefficient": 0.01}),
        (WITH_MARGINS, {"center_rewards_coefficient": 0.5}),
        (PAIRS, {"max_length": 40}),
        ([as_dialogue(pair) for pair in PAIRS], {"tokenizer": chat_tokenizer()}),
        (WITH_MARGINS, {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 3}),
    ],
    ids=["plain", "margin", "centred", "margin and centred", "long rows dropped", "dialogues", "micro-batches"],
)
def test_a_training_step_and_its_metrics(tmp_path, rows, options):
    model = tiny_reward_model(vocab_size=128)
    ours, our_line = train(tuneline, "Reward", model, tmp_path, Dataset.from_list(rows), **options)
    theirs, their_line = train(trl, "Reward", model, tmp_path, Dataset.from_list(rows), **options)
    assert_same(ours, theirs)
    compared = METRICS
    if "gradient_accumulation_steps" in options:
        # TRL averages the micro-batches' extremes; ours are those of the step
        compared = METRICS - {"min_reward", "max_reward"}
    assert {name: our_line[name] for name in compared} == pytest.approx(
        {name: their_line[name] for name in compared}, rel=1e-5, abs=1e-5
    )
