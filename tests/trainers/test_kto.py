import logging

import pytest
import torch
from datasets import Dataset
from peft import LoraConfig
from torch.testing import assert_close

from tests.models import tiny_causal_lm
from tests.parity.sides import nudged
from tests.trainers.build import build, weights
from tests.trainers.rows import judged, preferences
from tuneline.errors import ConfigError, DataError

LORA = LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM", init_lora_weights=False)


def first_log(trainer):
    trainer.train()
    return trainer.state.log_history[0]


def test_the_first_loss_is_a_half_and_the_divergence_zero(tmp_path):
    log = first_log(build("kto", tmp_path, options={"max_steps": 1}))
    assert log["loss"] == pytest.approx(0.5, abs=1e-6)
    assert log["kl"] == 0
    assert log["rewards/margins"] == 0


def test_metrics_have_the_names_of_trl(tmp_path):
    log = first_log(build("kto", tmp_path, options={"max_steps": 1}))
    assert set(log) == {
        "loss", "grad_norm", "learning_rate", "epoch", "step", "num_tokens", "entropy", "kl",
        "logits/chosen", "logits/rejected", "logps/chosen", "logps/rejected",
        "rewards/chosen", "rewards/rejected", "rewards/margins",
    }  # fmt: skip


def test_each_row_gets_the_completion_of_the_row_before_within_its_step(tmp_path):
    options = {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 2}
    rows = build("kto", tmp_path, options=options).train_dataset
    own, others = rows["completion_ids"][:8], rows["KL_completion_ids"][:8]
    assert others == [own[3], *own[:3], own[7], *own[4:7]]


def test_divergence_loss_and_gradient_are_those_of_the_step_and_no_micro_batch(tmp_path):
    def logged(per_device, accumulation):
        options = {"per_device_train_batch_size": per_device, "gradient_accumulation_steps": accumulation}
        model = tiny_causal_lm()
        trainer = build("kto", tmp_path, options={"max_steps": 1, **options}, model=model, ref_model=nudged(model))
        return first_log(trainer)

    whole, split = logged(8, 1), logged(1, 8)
    assert whole["kl"] > 0
    for name in ("kl", "loss", "grad_norm", "rewards/margins"):
        assert split[name] == pytest.approx(whole[name], rel=1e-5), name


def test_without_estimate_no_other_completions_are_made(tmp_path):
    options = {"loss_type": "apo_zero_unpaired", "train_sampling_strategy": "random", "max_steps": 1}
    trainer = build("kto", tmp_path, options=options)
    assert "KL_completion_ids" not in trainer.train_dataset.column_names
    assert first_log(trainer)["kl"] == 0


def test_pairs_become_rows_with_labels(tmp_path):
    trainer = build("kto", tmp_path, train_dataset=preferences(5))
    assert trainer.train_dataset["label"][:] == [True] * 5 + [False] * 5
    assert trainer.tokenization_reports["train_dataset"].num_rows == 10


def test_precomputed_reference_equals_the_one_asked_on_the_way(tmp_path):
    asked, precomputed = (
        build("kto", tmp_path, options={"precompute_ref_log_probs": p, "max_steps": 3}, eval_dataset=judged(5))
        for p in (False, True)
    )
    assert not hasattr(precomputed, "reference")
    assert precomputed.train().training_loss == pytest.approx(asked.train().training_loss, abs=1e-5)
    assert precomputed.evaluate()["eval_kl"] == pytest.approx(asked.evaluate()["eval_kl"], abs=1e-5)


def test_with_a_new_adapter_only_the_adapter_trains(tmp_path):
    trainer = build("kto", tmp_path, options={"max_steps": 2, "learning_rate": 1e-3}, peft_config=LORA)
    before = weights(trainer)
    trainer.train()
    after = weights(trainer)
    assert all(torch.equal(before[n], after[n]) for n in before if "lora" not in n)
    assert any(not torch.equal(before[n], after[n]) for n in before if "lora" in n)


def test_dropout_does_not_reach_the_estimate(tmp_path):
    model = tiny_causal_lm()
    for layer in model.model.layers:
        layer.self_attn.attention_dropout = 0.5
    trainer = build("kto", tmp_path, options={"disable_dropout": False}, model=model)
    trainer.model.train()
    batch = next(iter(trainer.get_train_dataloader()))
    trainer.count_step([batch])
    assert_close(trainer.kl, torch.tensor(0.0))
    assert trainer.model.training


def test_it_learns_which_completions_are_desired(tmp_path):
    options = {"max_steps": 12, "learning_rate": 3e-3, "per_device_train_batch_size": 16, "beta": 0.5}
    trainer = build("kto", tmp_path, options=options)
    trainer.train()
    assert trainer.state.log_history[-2]["loss"] < 0.2
    assert trainer.state.log_history[-2]["rewards/margins"] > 2


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"loss_type": "kto_pair"}, "kto_pair"),
        ({"train_sampling_strategy": "random"}, "apo_zero_unpaired"),
        ({"per_device_train_batch_size": 1}, "gradient_accumulation_steps"),
        ({"desirable_weight": -1.0}, "desirable_weight"),
        ({"sync_ref_model": True, "precompute_ref_log_probs": True}, "sync_ref_model"),
        ({"beta": 0.0}, "beta"),
    ],
    ids=str,
)
def test_settings_that_cannot_work_are_refused(options, said, tmp_path):
    with pytest.raises(ConfigError, match=said):
        build("kto", tmp_path, options=options)


def test_rows_without_labels_are_refused(tmp_path):
    with pytest.raises(DataError, match="label"):
        build("kto", tmp_path, train_dataset=judged().remove_columns("label"))


def test_an_imbalance_of_labels_is_told(tmp_path, caplog):
    with caplog.at_level(logging.WARNING):
        build("kto", tmp_path)
    assert "6 desirable and 10 undesirable" in caplog.text
    assert "desirable_weight between 1.67 and 2.22" in caplog.text


def test_a_row_left_alone_in_the_last_step_is_told(tmp_path, caplog):
    with caplog.at_level(logging.WARNING):
        build("kto", tmp_path, train_dataset=judged(9), options={"per_device_train_batch_size": 4})
    assert "leave one alone" in caplog.text


def test_rows_from_a_stream(tmp_path):
    rows = Dataset.to_iterable_dataset(judged())
    log = first_log(build("kto", tmp_path, train_dataset=rows, options={"max_steps": 2}))
    assert log["loss"] == pytest.approx(0.5, abs=1e-6)
