import math

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch.testing import assert_close

from tests.models import tiny_causal_lm
from tests.trainers.build import build, weights
from tests.trainers.rows import preferences
from tuneline.errors import ConfigError

LORA = LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM", init_lora_weights=False)


def first_log(trainer):
    trainer.train()
    return trainer.state.log_history[0]


def test_the_first_loss_is_log_two(tmp_path):
    log = first_log(build("dpo", tmp_path, options={"max_steps": 1}))
    assert log["loss"] == pytest.approx(math.log(2), abs=1e-6)
    assert log["rewards/margins"] == 0


def test_metrics_have_the_names_of_trl(tmp_path):
    log = first_log(build("dpo", tmp_path, options={"max_steps": 1}))
    assert set(log) == {
        "loss", "grad_norm", "learning_rate", "epoch", "step", "num_tokens", "entropy", "mean_token_accuracy",
        "logits/chosen", "logits/rejected", "logps/chosen", "logps/rejected",
        "rewards/chosen", "rewards/rejected", "rewards/accuracies", "rewards/margins",
    }  # fmt: skip


def test_with_a_new_adapter_the_reference_is_the_model_without_it(tmp_path):
    trainer = build(
        "dpo", tmp_path, options={"max_steps": 2}, peft_config=LORA
    )  # random adapter: policy is not reference
    before = weights(trainer)
    plain = build("dpo", tmp_path, options={"max_steps": 2}, model=tiny_causal_lm())
    batch = next(iter(trainer.get_eval_dataloader(trainer.train_dataset)))
    assert_close(trainer.reference.logprobs(batch), plain.reference.logprobs(batch))
    trainer.train()
    after = weights(trainer)
    assert all(torch.equal(before[n], after[n]) for n in before if "lora" not in n)
    assert any(not torch.equal(before[n], after[n]) for n in before if "lora" in n)


def test_going_on_with_an_adapter_the_reference_is_the_adapter_as_it_came(tmp_path):
    model = get_peft_model(tiny_causal_lm(), LORA)
    trainer = build("dpo", tmp_path, options={"max_steps": 3, "learning_rate": 1e-2}, model=model)
    batch = next(iter(trainer.get_eval_dataloader(trainer.train_dataset)))
    as_it_came = trainer.reference.logprobs(batch)
    log = first_log(trainer)
    assert log["loss"] == pytest.approx(math.log(2), abs=1e-6)
    assert_close(trainer.reference.logprobs(batch), as_it_came, atol=0, rtol=0)
    assert trainer.state.log_history[2]["rewards/margins"] != 0


def test_precomputed_reference_equals_the_one_asked_on_the_way(tmp_path):
    asked, precomputed = (
        build("dpo", tmp_path, options={"precompute_ref_log_probs": p, "max_steps": 2}, eval_dataset=preferences(5))
        for p in (False, True)
    )
    assert not hasattr(precomputed, "reference")
    batch = next(iter(precomputed.get_eval_dataloader()))
    assert_close(
        precomputed.ref_logps(batch), asked.ref_logps(next(iter(asked.get_eval_dataloader()))), atol=1e-4, rtol=1e-5
    )
    assert precomputed.train().training_loss == pytest.approx(asked.train().training_loss, abs=1e-5)


def test_a_synced_reference_moves_by_its_share(tmp_path):
    options = {"max_steps": 1, "sync_ref_model": True, "ref_model_sync_steps": 1, "ref_model_mixup_alpha": 0.25}
    trainer = build("dpo", tmp_path, options={**options, "learning_rate": 1e-2})
    start = weights(trainer)
    trainer.train()
    end = weights(trainer)
    for name, parameter in trainer.reference.model.named_parameters():
        assert_close(parameter.data, 0.75 * start[name] + 0.25 * end[name])


def test_it_learns_which_completions_are_preferred(tmp_path):
    options = {"max_steps": 30, "learning_rate": 1e-3, "per_device_train_batch_size": 16, "beta": 0.5}
    trainer = build("dpo", tmp_path, options=options)
    trainer.train()
    losses = [line["loss"] for line in trainer.state.log_history if "loss" in line]
    assert losses[-1] < 0.3


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"loss_type": "sigmod"}, "sigmod"),
        ({"loss_type": "exo_pair"}, "label_smoothing"),
        ({"loss_type": "nca_pair", "f_divergence_type": "js_divergence"}, "f_divergence_type"),
        ({"loss_type": ["sigmoid", "sft"], "loss_weights": [1.0]}, "loss_weights"),
        ({"sync_ref_model": True, "precompute_ref_log_probs": True}, "sync_ref_model"),
    ],
    ids=str,
)
def test_settings_that_contradict_each_other_are_refused(options, said, tmp_path):
    with pytest.raises(ConfigError, match=said):
        build("dpo", tmp_path, options=options)


def test_the_policy_cannot_be_its_own_reference(tmp_path):
    model = tiny_causal_lm()
    with pytest.raises(ConfigError, match="same object"):
        build("dpo", tmp_path, model=model, ref_model=model)
