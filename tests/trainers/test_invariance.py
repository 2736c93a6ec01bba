"""Losses, gradients and metrics do not depend on how a batch was cut."""

import pytest
from torch.testing import assert_close

from tests.trainers.build import build, weights, with_plain_descent

LOSSES = [
    ("sft", {}),
    ("sft", {"loss_type": "dft"}),
    ("reward", {"center_rewards_coefficient": 0.01}),
    *(
        ("dpo", {"loss_type": loss})
        for loss in ("sigmoid", "hinge", "ipo", "nca_pair", "bco_pair", "sppo_hard", "apo_zero", "apo_down", "discopop")
    ),
    ("dpo", {"loss_type": "sigmoid_norm"}),
    ("dpo", {"loss_type": "exo_pair", "label_smoothing": 1e-3}),
    ("dpo", {"loss_type": "robust", "label_smoothing": 0.1}),
    ("dpo", {"loss_type": ["sigmoid", "sft"], "loss_weights": [0.8, 1.0]}),
    ("dpo", {"use_weighting": True, "ld_alpha": 0.5}),
    ("kto", {}),
    ("kto", {"desirable_weight": 1.5, "precompute_ref_log_probs": True}),
    ("kto", {"loss_type": "apo_zero_unpaired"}),
    ("bco", {}),
    ("prm", {}),
    ("orpo", {}),
    ("tpo", {"beta": 0.1}),
    ("cpo", {}),
    ("cpo", {"loss_type": "simpo", "alpha": 0.1}),
]


def one_step(method, folder, options, per_device, accumulation):
    options = {
        "max_steps": 1,
        "per_device_train_batch_size": per_device,
        "gradient_accumulation_steps": accumulation,
        "max_grad_norm": 0,
        **options,
    }
    trainer = with_plain_descent(build(method, folder, options=options))
    start = weights(trainer)
    trainer.train()
    gradients = {name: start[name] - end for name, end in weights(trainer).items()}
    return gradients, trainer.state.log_history[0]


@pytest.mark.parametrize(("method", "options"), LOSSES, ids=lambda value: str(value))
def test_any_split_into_micro_batches_gives_the_same_step(method, options, tmp_path):
    whole, whole_log = one_step(method, tmp_path, options, per_device=8, accumulation=1)
    for per_device, accumulation in ((4, 2), (1, 8)):
        split, split_log = one_step(method, tmp_path, options, per_device, accumulation)
        largest = max(1.0, *(gradient.abs().max().item() for gradient in whole.values()))
        for name in whole:
            assert_close(split[name], whole[name], atol=1e-5 * largest, rtol=1e-5, msg=lambda m, n=name: f"{n}: {m}")
        assert split_log.keys() == whole_log.keys()
        for key in whole_log:
            assert split_log[key] == pytest.approx(whole_log[key], rel=1e-4, abs=1e-5), key


@pytest.mark.parametrize("method", ["sft", "reward", "dpo"])
def test_gradient_checkpointing_changes_nothing(method, tmp_path):
    with_it, _ = one_step(method, tmp_path, {"gradient_checkpointing": True}, 8, 1)
    without, _ = one_step(method, tmp_path, {"gradient_checkpointing": False}, 8, 1)
    for name in with_it:
        assert_close(with_it[name], without[name], atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("strategy", ["bfd", "bfd_split", "wrapped"])
def test_packing_keeps_the_loss_of_a_whole_epoch_in_one_step(strategy, tmp_path):
    # all texts fit a packed row, so what is trained on is the same; only the rows differ
    options = {"packing": True, "packing_strategy": strategy, "max_length": 400}
    rows_apart, apart = one_step("sft", tmp_path, {"max_length": 400}, 16, 1)
    rows_packed, packed = one_step("sft", tmp_path, options, 16, 1)
    if strategy == "wrapped":  # one stream: a text's end predicts the next text's start
        assert packed["num_tokens"] == apart["num_tokens"]
        return
    assert packed["loss"] == pytest.approx(apart["loss"], rel=1e-5)
    for name in rows_apart:
        assert_close(rows_packed[name], rows_apart[name], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("method", ["sft", "reward", "dpo"])
def test_evaluation_is_exact_whatever_the_batch_size(method, tmp_path):
    def evaluated(batch_size):
        trainer = build(method, tmp_path, options={"per_device_eval_batch_size": batch_size})
        return {
            name: value
            for name, value in trainer.evaluate(eval_dataset=trainer.train_dataset).items()
            if not name.endswith(("runtime", "per_second", "preparation_time"))
        }

    whole, uneven = evaluated(16), evaluated(3)
    assert whole.keys() == uneven.keys()
    for name in whole:
        assert uneven[name] == pytest.approx(whole[name], rel=1e-5, abs=1e-6), name
