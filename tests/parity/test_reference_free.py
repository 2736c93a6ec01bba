"""ORPO, CPO with SimPO and AlphaPO, and TPO against TRL on the same rows: loss, gradients and metrics, 1e-5."""

import importlib
import warnings

import pytest
from datasets import Dataset

import tuneline
from tests.models import tiny_causal_lm
from tests.parity.sides import PAIRS, as_dialogue, assert_same, chat_tokenizer, train

trl = pytest.importorskip("trl", reason="parity is measured against TRL, which is not installed")

REWARDS = {f"{kind}/{side}" for kind in ("rewards", "logps") for side in ("chosen", "rejected")}
# TRL's logits/* are means over prompts and padding too
METRICS = {
    "ORPO": REWARDS | {"loss", "grad_norm", "rewards/margins", "nll_loss", "log_odds_ratio", "log_odds_chosen"},
    "TPO": REWARDS
    | {"loss", "grad_norm", "rewards/margins", "rewards/accuracies", "entropy", "mean_token_accuracy", "num_tokens"}
    | {"logits/chosen", "logits/rejected"},
    "CPO": REWARDS | {"loss", "grad_norm", "rewards/margins", "rewards/accuracies"},
}


def experimental(method):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that it is experimental
        return importlib.import_module(f"trl.experimental.{method.lower()}")


def compare(method, folder, rows, model=None, **options):
    model, rows = model or tiny_causal_lm(), Dataset.from_list(rows)
    (ours, our_line), (theirs, their_line) = (
        train(library, method, model, folder, rows, **options) for library in (tuneline, experimental(method))
    )
    assert_same(ours, theirs)
    names = METRICS[method]
    if method == "CPO" and options.get("cpo_alpha", 1) and options.get("loss_type") != "alphapo":  # else TRL logs 0
        names = names | {"nll_loss"}
    assert {name: our_line[name] for name in names} == pytest.approx(
        {name: their_line[name] for name in names}, rel=1e-5, abs=1e-5
    )


@pytest.mark.parametrize("options", [{}, {"beta": 1.0}, {"max_length": 40}], ids=str)
def test_orpo(tmp_path, options):
    # of the rows of which TRL cuts a completion to nothing, here there are none
    rows = PAIRS[:1] + PAIRS[2:] if "max_length" in options else PAIRS
    compare("ORPO", tmp_path, rows, **options)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"label_smoothing": 0.1, "cpo_alpha": 0.3},
        pytest.param({"loss_type": "hinge"}, marks=pytest.mark.slow),
        {"loss_type": "ipo"},
        {"loss_type": "simpo", "beta": 2.0, "simpo_gamma": 1.0, "cpo_alpha": 0.0},
        pytest.param({"loss_type": "simpo", "label_smoothing": 0.1}, marks=pytest.mark.slow),
        pytest.param({"loss_type": "simpo", "alpha": 0.25}, marks=pytest.mark.slow),
        {"loss_type": "alphapo", "alpha": -0.1, "beta": 2.0},
    ],
    ids=str,
)
def test_cpo(tmp_path, options):
    compare("CPO", tmp_path, PAIRS, **options)


TRIPLES = [pair | {"reference": f" so it is {i}"} for i, pair in enumerate(PAIRS)]


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"label_smoothing": 0.1, "tpo_alpha": 0.3, "beta": 0.1},
        pytest.param({"loss_type": "hinge"}, marks=pytest.mark.slow),
        pytest.param({"loss_type": "ipo", "beta": 0.5}, marks=pytest.mark.slow),
        {"loss_type": "tpo-l", "beta": 2.0, "tpo_l_gamma": 1.0},
        {"tpo_alpha": 0.0},
    ],
    ids=str,
)
def test_tpo(tmp_path, options):
    compare("TPO", tmp_path, TRIPLES, **options)


def test_tpo_on_dialogues(tmp_path):
    rows = [
        as_dialogue({k: v for k, v in row.items() if k != "reference"})
        | {"reference": [{"role": "assistant", "content": row["reference"]}]}
        for row in TRIPLES
    ]
    compare("TPO", tmp_path, rows, model=tiny_causal_lm(vocab_size=128), tokenizer=chat_tokenizer())
