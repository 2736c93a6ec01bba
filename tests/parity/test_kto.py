"""KTO against TRL on the same rows: loss, gradients and metrics of a training step, float32, 1e-5."""

import pytest
from datasets import Dataset
from peft import LoraConfig, get_peft_model

import tuneline
from tests.models import tiny_causal_lm
from tests.parity.sides import PAIRS, as_dialogue, assert_same, chat_tokenizer, nudged, train

trl = pytest.importorskip("trl", reason="parity is measured against TRL, which is not installed")

# of these rows the estimated divergence is above 0
ROWS = [
    {"prompt": pair["prompt"], "completion": pair["chosen" if label else "rejected"], "label": label}
    for pair, label in zip(PAIRS, [True, True, False, False, True, True], strict=True)
]
METRICS = {
    "loss",
    "grad_norm",
    "kl",
    "entropy",
    "num_tokens",
    "logits/chosen",
    "logits/rejected",
    "logps/chosen",
    "logps/rejected",
    "rewards/chosen",
    "rewards/rejected",
    "rewards/margins",
}


def both(folder, rows, model=None, reference=True, **options):
    """The outcome and the log line of either library."""
    model = model or tiny_causal_lm()
    ref_model = nudged(model) if reference else None
    return tuple(
        train(library, "KTO", model, folder, Dataset.from_list(rows), ref_model=ref_model, **options)
        for library in (tuneline, trl)
    )


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"loss_type": "apo_zero_unpaired"},
        {"beta": 0.5, "desirable_weight": 1.5, "undesirable_weight": 0.7},
        {"precompute_ref_log_probs": True},
        pytest.param({"loss_type": "apo_zero_unpaired", "precompute_ref_log_probs": True}, marks=pytest.mark.slow),
    ],
    ids=str,
)
def test_a_training_step_and_its_metrics(tmp_path, options):
    (ours, our_line), (theirs, their_line) = both(tmp_path, ROWS, **options)
    assert_same(ours, theirs)
    assert {name: our_line[name] for name in METRICS} == pytest.approx(
        {name: their_line[name] for name in METRICS}, rel=1e-5, abs=1e-5
    )
    assert options.get("loss_type") or our_line["kl"] > 0


def test_pairs_are_taken_apart(tmp_path):
    (ours, our_line), (theirs, their_line) = both(tmp_path, PAIRS, per_device_train_batch_size=2 * len(PAIRS))
    assert_same(ours, theirs)
    assert our_line["kl"] == pytest.approx(their_line["kl"], rel=1e-5, abs=1e-5)


def test_dialogues_under_a_chat_template(tmp_path):
    rows = [as_dialogue({k: row[k] for k in ("prompt", "completion")}) | {"label": row["label"]} for row in ROWS]
    (ours, our_line), (theirs, their_line) = both(
        tmp_path, rows, model=tiny_causal_lm(vocab_size=128), tokenizer=chat_tokenizer()
    )
    assert our_line["num_tokens"] == their_line["num_tokens"]
    assert_same(ours, theirs)


def test_an_adapter_against_its_own_beginning(tmp_path):
    lora = LoraConfig(r=4, lora_alpha=8, target_modules=["q_proj"], init_lora_weights=False, task_type="CAUSAL_LM")
    model = get_peft_model(tiny_causal_lm(), lora)
    options = {"max_steps": 2, "learning_rate": 0.1}
    (ours, our_line), (theirs, their_line) = both(tmp_path, ROWS, model=model, reference=False, **options)
    assert our_line["rewards/margins"] == pytest.approx(their_line["rewards/margins"], rel=1e-4)
    assert_same(ours, theirs)


def test_prompts_that_leave_no_room_are_dropped_alike(tmp_path):
    # the second prompt alone fills 20 tokens; the mismatched completions are those of the rows that are left
    (ours, our_line), (theirs, their_line) = both(tmp_path, ROWS, max_length=40)
    assert our_line["num_tokens"] == their_line["num_tokens"]
    assert our_line["kl"] == pytest.approx(their_line["kl"], rel=1e-5, abs=1e-5)
    assert_same(ours, theirs)
