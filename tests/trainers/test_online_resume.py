"""A run that was stopped and resumed, wherever it stood, ends with the very bits of one that was not."""

from copy import deepcopy

import pytest
import torch

from tests.models import tiny_causal_lm
from tests.trainers.build import weights
from tests.trainers.online import build_online, questions
from tests.trainers.test_resume import with_dropout
from tuneline.errors import ConfigError
from tuneline.trainers.experience import load_experiences, save_experiences

SCHEDULE = {
    "max_steps": 10,
    "per_device_train_batch_size": 4,
    "gradient_accumulation_steps": 2,
    "train_dataset": questions(5),
    "save_strategy": "steps",
    "save_steps": 3,
    "logging_steps": 2,
    "learning_rate": 1e-3,
    "lr_scheduler_type": "constant",
}
# two passes over four micro-batches, two of them a step: a generation lasts four steps, and an epoch is one of them
IN_THE_MIDDLE = {"steps_per_generation": 4, "num_iterations": 2, "beta": 0.1}
# a generation a step, two prompts each, and an epoch two of them
EACH_STEP = {
    "dynamic_sampling": True,
    "use_adaptive_entropy": True,
    "entropy_target": 9.0,
    "entropy_coef_delta": 0.05,
}
DROP = {
    "step_time",
    "epoch",
    "train_runtime",
    "train_samples_per_second",
    "train_steps_per_second",
    "total_flos",
    "train_loss",
}


def few_rewards(completion_ids, **columns):
    """Often alike over a whole group."""
    return [float(sum(token < 7 for token in ids) > 1) for ids in completion_ids]


def trainer(method, folder, options):
    model = with_dropout(tiny_causal_lm())
    return build_online(method, folder, model=model, reward_funcs=few_rewards, **{**SCHEDULE, **options})


def outcome(trained):
    logs = [{k: v for k, v in line.items() if k not in DROP} for line in trained.state.log_history]
    return weights(trained), logs


def assert_same_bits(found, expected):
    assert all(torch.equal(found[0][name], end) for name, end in expected[0].items())
    assert found[1] == expected[1]


@pytest.mark.parametrize(
    ("method", "options"),
    [
        ("grpo", {**IN_THE_MIDDLE, "sync_ref_model": True, "ref_model_sync_steps": 2}),
        ("grpo", EACH_STEP),
        pytest.param("rloo", IN_THE_MIDDLE, marks=pytest.mark.slow),
        pytest.param("grpo", {"steps_per_generation": 1, "top_k": 5, "beta": 0.1}, marks=pytest.mark.slow),
        pytest.param("grpo", {**IN_THE_MIDDLE, "top_entropy_quantile": 0.5}, marks=pytest.mark.slow),
    ],
    ids=str,
)
def test_a_resumed_run_ends_bit_identical(method, options, tmp_path):
    whole = trainer(method, tmp_path, options)
    whole.train()
    expected = outcome(whole)
    if "dynamic_sampling" in options:
        assert any(line.get("dynamic_sampling/num_replaced") for line in expected[1])
    for step in (3, 9):  # in the first epoch, and in a later one
        resumed = trainer(method, tmp_path, options)
        resumed.train(resume_from_checkpoint=str(tmp_path / f"checkpoint-{step}"))
        assert_same_bits(outcome(resumed), expected)


def test_the_same_run_twice_gives_the_same_bits(tmp_path):
    outcomes = []
    for name in ("first", "second"):
        trained = trainer("grpo", tmp_path / name, {**EACH_STEP, "max_steps": 4, "save_strategy": "no"})
        trained.train()
        outcomes.append(deepcopy(outcome(trained)))
    assert_same_bits(*outcomes)


def test_an_evaluation_between_leaves_the_training_as_it_was(tmp_path):
    outcomes = []
    for options in ({}, {"eval_strategy": "steps", "eval_steps": 1, "eval_dataset": questions(3)}):
        settings = {"max_steps": 2, "save_strategy": "no", "per_device_eval_batch_size": 4, "beta": 0.1}
        trained = trainer("grpo", tmp_path, {**settings, **options})
        trained.train()
        ends, logs = outcome(trained)
        outcomes.append((ends, [line for line in logs if "loss" in line]))
    assert_same_bits(*outcomes)


def test_a_checkpoint_without_its_rollouts_is_not_resumed(tmp_path):
    whole = trainer("grpo", tmp_path, {**IN_THE_MIDDLE, "max_steps": 3})
    whole.train()
    (tmp_path / "checkpoint-3" / "online" / "state-0.json").unlink()
    with pytest.raises(ConfigError, match=r"state-0\.json is missing.*as many processes"):
        trainer("grpo", tmp_path, IN_THE_MIDDLE).train(resume_from_checkpoint=str(tmp_path / "checkpoint-3"))


def test_waiting_experience_comes_back_from_its_file(tmp_path):
    made = trainer("grpo", tmp_path, {**IN_THE_MIDDLE, "top_k": 3, "max_steps": 1, "save_strategy": "no"})
    made.train()
    waiting = list(made.queue)
    assert len(waiting) == 6  # of eight, two are learned from; some wait twice
    save_experiences(waiting, tmp_path / "waiting.safetensors")
    for found, expected in zip(load_experiences(tmp_path / "waiting.safetensors"), waiting, strict=True):
        assert found.support is not None
        ours, theirs = found.state_dict(), expected.state_dict()
        assert ours.keys() == theirs.keys()
        assert all(torch.equal(ours[name], tensor) for name, tensor in theirs.items())


def test_each_epoch_asks_in_an_order_of_its_own(tmp_path):
    asked = []
    made = trainer("grpo", tmp_path, {"max_steps": 6, "save_strategy": "no"})
    made.add_rollout_listener(lambda step, table: asked.append(tuple(dict.fromkeys(table["prompt"]))))
    made.train()
    epochs = [asked[i] + asked[i + 1] for i in (0, 2, 4)]
    assert all(len(set(epoch)) == 4 for epoch in epochs)  # of five rows, two at a time
    assert len(set(epochs)) == 3
