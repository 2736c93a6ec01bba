"""A step of PPO does not depend on how its batch was cut, and a resumed run ends with the bits of a whole one."""

import pytest
import torch
from peft import LoraConfig
from torch.testing import assert_close

from tests.models import tiny_reward_model
from tests.trainers.build import weights, with_plain_descent
from tests.trainers.online import by_position, questions
from tests.trainers.ppo import build_ppo
from tests.trainers.test_online_invariance import assert_same_steps
from tuneline.errors import ConfigError

slow = pytest.mark.slow
LORA = LoraConfig(r=4, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM", init_lora_weights=False)
DROP = {
    "step_time",
    "eps",
    "train_runtime",
    "train_samples_per_second",
    "train_steps_per_second",
    "total_flos",
    "train_loss",
}
ALL_THAT_ADAPTS = {
    "use_score_scaling": True,
    "use_score_norm": True,
    "adap_kl_ctrl": True,
    "target": 0.01,
    "horizon": 50,
    "target_kl": 0.02,
    "missing_eos_penalty": 1.0,
    "whiten_rewards": True,
}


def steps(folder, per_device, accumulation, *, passes=2, **options):
    trainer = build_ppo(
        folder,
        per_device_train_batch_size=per_device,
        gradient_accumulation_steps=accumulation,
        num_mini_batches=2,
        num_ppo_epochs=passes,
        max_steps=2 * passes,
        train_dataset=questions(8),
        rollout_engine=by_position(8),
        num_generations=2,
        **options,
    )
    start = weights(with_plain_descent(trainer, 0.02))
    trainer.train()
    logs = [{k: v for k, v in line.items() if k not in DROP} for line in trainer.state.log_history[:-1]]
    return {name: start[name] - end for name, end in weights(trainer).items()}, logs


@pytest.mark.parametrize(
    "options",
    [
        {"missing_eos_penalty": 1.0, "entropy_coef": 0.01, "length_adaptive_lam": 0.5},
        pytest.param({"value_model": 0, "whiten_rewards": True, "kl_estimator": "k3"}, id="model"),
        pytest.param({"peft_config": LORA}, marks=slow, id="adapter"),
        pytest.param({"delta": 1.2, "value_lam": 1.0, "gamma": 0.9}, marks=slow, id="delta"),
        pytest.param({"mask_truncated_completions": True}, marks=slow, id="masked"),
    ],
    ids=str,
)
def test_any_split_into_micro_batches_gives_the_same_steps(options, tmp_path):
    def run(per_device, accumulation):
        given = {**options, "value_model": tiny_reward_model(seed=2)} if "value_model" in options else options
        return steps(tmp_path, per_device, accumulation, **given)

    whole = run(4, 1)
    assert_same_steps(run(1, 4), whole)


def test_a_padded_layout_gives_the_same_steps(tmp_path, monkeypatch):
    with_trees = steps(tmp_path, 4, 1)
    monkeypatch.setattr("tuneline.models.layouts._why_not", lambda model, head_name: "this test says so")
    assert_same_steps(steps(tmp_path, 4, 1), with_trees)


def trainer(folder, options):
    return build_ppo(
        folder,
        **{
            "max_steps": 10,
            "per_device_train_batch_size": 2,
            "gradient_accumulation_steps": 2,
            "num_mini_batches": 2,
            "num_ppo_epochs": 2,
            "train_dataset": questions(20),
            "save_strategy": "steps",
            "save_steps": 3,
            "logging_steps": 2,
            "learning_rate": 1e-3,
            "lr_scheduler_type": "constant",
            **options,
        },
    )


def outcome(trained):
    logs = [{k: v for k, v in line.items() if k not in DROP} for line in trained.state.log_history]
    return weights(trained), logs


@pytest.mark.parametrize(
    "options",
    [
        pytest.param(ALL_THAT_ADAPTS, id="head"),
        pytest.param({"value_model": tiny_reward_model(), "critic_warmup_steps": 4}, marks=slow, id="model"),
        pytest.param({"peft_config": LORA}, marks=slow, id="adapter"),
        pytest.param({"peft_config": LORA, "value_function": "head"}, marks=slow, id="adapter and head"),
        pytest.param({"sync_ref_model": True, "ref_model_sync_steps": 2}, marks=slow, id="moved reference"),
    ],
)
def test_a_run_resumed_in_the_middle_of_a_generation_ends_bit_identical(options, tmp_path):
    def make():
        torch.manual_seed(7)  # for adapters, whose weights are drawn
        given = {**options, "value_model": tiny_reward_model()} if "value_model" in options else options
        return trainer(tmp_path, given)

    whole = make()
    whole.train()
    expected = outcome(whole)
    for step in (3, 9):
        resumed = make()
        resumed.train(resume_from_checkpoint=str(tmp_path / f"checkpoint-{step}"))
        found = outcome(resumed)
        assert all(torch.equal(found[0][name], end) for name, end in expected[0].items())
        assert found[1] == expected[1]
        assert resumed.algorithm_state() == whole.algorithm_state()


def test_a_checkpoint_without_its_value_function_is_not_resumed(tmp_path):
    trainer(tmp_path, {"max_steps": 3}).train()
    (tmp_path / "checkpoint-3" / "online" / "value.safetensors").unlink()
    with pytest.raises(ConfigError, match=r"value\.safetensors is missing"):
        trainer(tmp_path, {}).train(resume_from_checkpoint=str(tmp_path / "checkpoint-3"))


def test_an_evaluation_between_leaves_the_training_as_it_was(tmp_path):
    outcomes = []
    for options in ({}, {"eval_strategy": "steps", "eval_steps": 1, "eval_dataset": questions(3)}):
        settings = {**ALL_THAT_ADAPTS, "max_steps": 3, "save_strategy": "no", "per_device_eval_batch_size": 4}
        trained = trainer(tmp_path, {**settings, **options})
        trained.train()
        ends, logs = outcome(trained)
        outcomes.append((ends, [line for line in logs if "loss" in line]))
    assert all(torch.equal(outcomes[0][0][name], end) for name, end in outcomes[1][0].items())
    assert outcomes[0][1] == outcomes[1][1]


@slow
def test_gradient_checkpointing_changes_nothing(tmp_path):
    with_it, without = (
        steps(tmp_path, 4, 1, gradient_checkpointing=on, peft_config=LORA, passes=1) for on in (True, False)
    )
    for name, moved in without[0].items():
        assert_close(with_it[0][name], moved, atol=1e-6, rtol=1e-5)


@slow
def test_the_same_run_twice_gives_the_same_bits(tmp_path):
    ends = []
    for name in ("first", "second"):
        trained = trainer(tmp_path / name, {**ALL_THAT_ADAPTS, "max_steps": 5, "save_strategy": "no"})
        trained.train()
        ends.append(outcome(trained))
    assert all(torch.equal(ends[0][0][name], end) for name, end in ends[1][0].items())
    assert ends[0][1] == ends[1][1]
