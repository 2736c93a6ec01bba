"""A run that was stopped and resumed ends with the very bits of one that was not."""

import pytest
import torch

from tests.models import tiny_causal_lm, tiny_reward_model, tiny_step_classifier
from tests.trainers.build import build, weights

SCHEDULE = {
    "max_steps": 7,
    "per_device_train_batch_size": 2,
    "gradient_accumulation_steps": 2,
    "save_strategy": "steps",
    "save_steps": 3,  # not a multiple of logging_steps
    "logging_steps": 2,
    "learning_rate": 1e-3,
    "lr_scheduler_type": "constant",  # a step too many would show
}


def with_dropout(model):
    """Dropout draws from the generators, so a resume that does not restore them shows."""
    model.config.attention_dropout = 0.1
    for module in model.modules():
        if hasattr(module, "attention_dropout"):
            module.attention_dropout = 0.1
    return model


@pytest.mark.parametrize(
    ("method", "options"),
    [
        ("sft", {}),
        ("reward", {"disable_dropout": False}),
        ("dpo", {"disable_dropout": False}),
        ("dpo", {"precompute_ref_log_probs": True}),
        ("dpo", {"sync_ref_model": True, "ref_model_sync_steps": 2}),
        ("kto", {"disable_dropout": False}),
        ("bco", {"disable_dropout": False}),
        ("prm", {}),
        pytest.param("orpo", {"disable_dropout": False}, marks=pytest.mark.slow),
        pytest.param("cpo", {}, marks=pytest.mark.slow),
        pytest.param("tpo", {}, marks=pytest.mark.slow),
    ],
    ids=str,
)
def test_a_resumed_run_ends_bit_identical(method, options, tmp_path):
    def trainer(folder):
        make = {"reward": tiny_reward_model, "prm": tiny_step_classifier}.get(method, tiny_causal_lm)
        model = with_dropout(make())
        return build(method, folder, options={**SCHEDULE, **options}, model=model)

    whole = trainer(tmp_path / "whole")
    whole.train()

    resumed = trainer(tmp_path / "whole")
    resumed.train(resume_from_checkpoint=str(tmp_path / "whole" / "checkpoint-3"))

    at_the_end = trainer(tmp_path / "whole")
    at_the_end.train(resume_from_checkpoint=str(tmp_path / "whole" / "checkpoint-7"))
    assert at_the_end.state.global_step == 7
    assert at_the_end.state.num_input_tokens_seen == whole.state.num_input_tokens_seen
    ended = weights(at_the_end)
    assert all(torch.equal(ended[name], end) for name, end in weights(whole).items())

    expected, found = weights(whole), weights(resumed)
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    drop = {"epoch", "train_runtime", "train_samples_per_second", "train_steps_per_second", "total_flos", "train_loss"}
    logs = [
        [{k: v for k, v in line.items() if k not in drop} for line in t.state.log_history] for t in (whole, resumed)
    ]
    assert logs[0] == logs[1]
