"""DPO against TRL on the same batch: loss and gradients of every loss type, weight and divergence, float32, 1e-5."""

from itertools import product

import pytest
from datasets import Dataset
from peft import LoraConfig, get_peft_model

import tuneline
from tests.models import tiny_causal_lm
from tests.parity.sides import (
    PAIRS,
    as_dialogue,
    assert_same,
    chat_tokenizer,
    evaluate_batch,
    make,
    nudged,
    settings,
    train,
)
from tuneline.losses.preference import F_DIVERGENCE_LOSS_TYPES, LABEL_SMOOTHING_LOSS_TYPES, LOSS_TYPES

trl = pytest.importorskip("trl", reason="parity is measured against TRL, which is not installed")

SMOOTHED_IN_TRL = [name for name in LABEL_SMOOTHING_LOSS_TYPES if name != "sigmoid"]  # TRL ignores it with sigmoid
UNSMOOTHED = [name for name in (*LOSS_TYPES, "sft") if name != "exo_pair"]


class Pair:
    """A trainer of each library that differs in nothing but the library."""

    def __init__(self, folder):
        model = tiny_causal_lm()
        reference = nudged(model)
        rows = Dataset.from_list(PAIRS)
        # TRL readies its head for the weights of WPO only where they are asked for at the start
        self.ours, self.theirs = (
            make(library, "DPO", model, folder, rows, ref_model=reference, use_weighting=True)
            for library in (tuneline, trl)
        )

    def compare(self, *, loss_type, loss_weights=None, use_weighting=False, discopop_tau=0.25, **options):
        """The curvature of discopop grows with (beta / tau)^2, and with it the effect of rounding: so tau is raised."""
        loss_types = [loss_type] if isinstance(loss_type, str) else loss_type
        options |= {"loss_weights": loss_weights or [1.0] * len(loss_types), "use_weighting": use_weighting}
        # TRL reads discopop_tau where it is used, and all else once, into attributes of the trainer
        with (
            settings(self.ours.args, loss_type=loss_types, discopop_tau=discopop_tau, **options),
            settings(self.theirs.args, discopop_tau=discopop_tau),
            settings(self.theirs, loss_types=loss_types, **options),
        ):
            assert_same(evaluate_batch(self.ours), evaluate_batch(self.theirs))


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    return Pair(tmp_path_factory.mktemp("dpo"))


@pytest.mark.parametrize("loss_type", UNSMOOTHED)
def test_loss_types(pair, loss_type):
    pair.compare(loss_type=loss_type)


@pytest.mark.parametrize(("loss_type", "label_smoothing"), list(product(SMOOTHED_IN_TRL, (1e-3, 0.1))))
def test_label_smoothing(pair, loss_type, label_smoothing):
    pair.compare(loss_type=loss_type, label_smoothing=label_smoothing)


def test_label_smoothing_with_sigmoid_is_read_here_and_ignored_by_trl(pair):
    with settings(pair.ours.args, loss_type=["sigmoid"], use_weighting=False):
        plain = evaluate_batch(pair.ours)
        with settings(pair.ours.args, label_smoothing=0.1):
            smoothed = evaluate_batch(pair.ours)
    with settings(pair.theirs, loss_types=["sigmoid"], use_weighting=False, label_smoothing=0.1):
        assert_same(plain, evaluate_batch(pair.theirs))
    assert abs(smoothed.loss - plain.loss) > 1e-4


@pytest.mark.parametrize("loss_type", UNSMOOTHED)
def test_another_beta(pair, loss_type):
    pair.compare(loss_type=loss_type, beta=0.5)


@pytest.mark.parametrize(
    ("loss_type", "f_divergence_type"),
    list(product((*F_DIVERGENCE_LOSS_TYPES, "sft"), ("forward_kl", "js_divergence", "alpha_divergence"))),
)
def test_f_divergences(pair, loss_type, f_divergence_type):
    pair.compare(
        loss_type=loss_type, f_divergence_type=f_divergence_type, label_smoothing=1e-3 * (loss_type != "sigmoid")
    )


@pytest.mark.parametrize("coefficient", [0.0, 0.9, 1.0, 1.5])
def test_coefficients_of_the_alpha_divergence(pair, coefficient):
    pair.compare(loss_type="sigmoid", f_divergence_type="alpha_divergence", f_alpha_divergence_coef=coefficient)


# aot does not go with weights; with hinge and sft TRL 1.16 multiplies in place and its backward pass raises
@pytest.mark.parametrize(
    "loss_type", [name for name in UNSMOOTHED if name not in ("aot", "aot_unpaired", "hinge", "sft")]
)
def test_wpo_weights(pair, loss_type):
    pair.compare(loss_type=loss_type, use_weighting=True)


@pytest.mark.parametrize(("loss_type", "ld_alpha"), [*product(UNSMOOTHED, [0.5]), ("sigmoid", 0.0), ("sigmoid", 1.0)])
def test_length_desensitization(pair, loss_type, ld_alpha):
    pair.compare(loss_type=loss_type, ld_alpha=ld_alpha)


def test_temperature_of_discopop(pair):
    pair.compare(loss_type="discopop", discopop_tau=0.05)


@pytest.mark.parametrize(
    ("loss_type", "loss_weights"),
    [(["sigmoid", "bco_pair", "sft"], [0.8, 0.2, 1.0]), (["sigmoid", "sft"], [1.0, 1.0]), (["ipo", "aot"], [0.1, 2.0])],
    ids=["mpo", "rpo", "ipo and aot"],
)
def test_sums_of_losses(pair, loss_type, loss_weights):
    pair.compare(loss_type=loss_type, loss_weights=loss_weights)


def test_sums_of_losses_under_wpo_weights(pair):
    pair.compare(loss_type=["sigmoid", "bco_pair"], loss_weights=[0.8, 0.2], use_weighting=True)


METRICS = {
    "loss",
    "grad_norm",
    "entropy",
    "num_tokens",
    "mean_token_accuracy",
    "logits/chosen",
    "logits/rejected",
    "logps/chosen",
    "logps/rejected",
    "rewards/chosen",
    "rewards/rejected",
    "rewards/accuracies",
    "rewards/margins",
}


@pytest.mark.parametrize("options", [{}, {"precompute_ref_log_probs": True}], ids=["reference", "precomputed"])
def test_a_training_step_and_its_metrics(tmp_path, options):
    model, rows = tiny_causal_lm(), Dataset.from_list(PAIRS)
    reference = nudged(model)
    ours, our_line = train(tuneline, "DPO", model, tmp_path, rows, ref_model=reference, **options)
    theirs, their_line = train(trl, "DPO", model, tmp_path, rows, ref_model=reference, **options)
    assert_same(ours, theirs)
    assert {name: our_line[name] for name in METRICS} == pytest.approx(
        {name: their_line[name] for name in METRICS}, rel=1e-5, abs=1e-5
    )


def test_dialogues_under_a_chat_template(tmp_path):
    model, tokenizer = tiny_causal_lm(vocab_size=128), chat_tokenizer()
    rows = Dataset.from_list([as_dialogue(pair) for pair in PAIRS])
    ours, our_line = train(tuneline, "DPO", model, tmp_path, rows, ref_model=nudged(model), tokenizer=tokenizer)
    theirs, their_line = train(trl, "DPO", model, tmp_path, rows, ref_model=nudged(model), tokenizer=tokenizer)
    assert our_line["num_tokens"] == their_line["num_tokens"]
    assert_same(ours, theirs)


def test_an_adapter_against_its_own_beginning(tmp_path):
    # the second step reads a policy that has left the reference, which is a copy of the adapter
    lora = LoraConfig(
        r=4, lora_alpha=8, target_modules=["q_proj", "v_proj"], init_lora_weights=False, task_type="CAUSAL_LM"
    )
    model, rows = get_peft_model(tiny_causal_lm(), lora), Dataset.from_list(PAIRS)
    ours, our_line = train(tuneline, "DPO", model, tmp_path, rows, max_steps=2, learning_rate=0.1)
    theirs, their_line = train(trl, "DPO", model, tmp_path, rows, max_steps=2, learning_rate=0.1)
    assert their_line["rewards/margins"] > 0
    assert our_line["rewards/margins"] == pytest.approx(their_line["rewards/margins"], rel=1e-4)
    assert_same(ours, theirs)


def test_a_training_step_over_micro_batches(tmp_path):
    model, rows = tiny_causal_lm(), Dataset.from_list(PAIRS)
    cut = {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 3}
    ours, _ = train(tuneline, "DPO", model, tmp_path, rows, ref_model=nudged(model), **cut)
    theirs, _ = train(trl, "DPO", model, tmp_path, rows, ref_model=nudged(model), **cut)
    assert_same(ours, theirs)


def test_sequences_cut_at_max_length(tmp_path):
    # the second prompt alone fills 20 tokens: that row goes; completions are cut
    model, rows = tiny_causal_lm(), Dataset.from_list(PAIRS)
    ours, our_line = train(tuneline, "DPO", model, tmp_path, rows, ref_model=nudged(model), max_length=20)
    theirs, their_line = train(trl, "DPO", model, tmp_path, rows, ref_model=nudged(model), max_length=20)
    assert our_line["num_tokens"] == their_line["num_tokens"]
    assert_same(ours, theirs)
