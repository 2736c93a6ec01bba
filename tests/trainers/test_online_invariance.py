"""The step of an online trainer does not depend on how its batch was cut, nor on what was left out of it."""

import pytest
from torch.testing import assert_close

from tests.trainers.build import weights, with_plain_descent
from tests.trainers.online import build_online, by_position, questions
from tuneline.losses.policy import LOSS_TYPES

MOVED = {"num_iterations": 2, "max_steps": 2}  # the second update is by a policy that has left the sampler
slow = pytest.mark.slow

CASES = [
    ("grpo", {"loss_type": "dapo", **MOVED}),
    pytest.param("grpo", {"loss_type": "grpo", "mask_truncated_completions": True, **MOVED}, marks=slow),
    ("grpo", {"top_entropy_quantile": 0.4, "entropy_coef": 0.2, **MOVED}),
    ("rloo", {"beta": 0.1, **MOVED}),
    *(pytest.param("grpo", {"loss_type": loss, **MOVED}, marks=slow) for loss in LOSS_TYPES if loss != "dapo"),
    *(
        pytest.param("grpo", {**options, **MOVED}, marks=slow)
        for options in (
            {"loss_type": "dr_grpo", "mask_truncated_completions": True},
            {"importance_sampling_level": "sequence"},
            {"entropy_coef": 0.2, "loss_type": "grpo"},
            {"use_adaptive_entropy": True, "entropy_target": 9.0, "entropy_coef_delta": 0.1},
            {"off_policy_mask_threshold": 0.05},
            {"beta": 0.2},
            {"beta": 0.2, "loss_type": "luspo", "use_bias_correction_kl": False},
            {"scale_rewards": "batch"},
            {"vllm_importance_sampling_mode": "token_truncate"},
        )
    ),
    pytest.param("rloo", {"beta": 0.0, "mask_truncated_completions": True, **MOVED}, marks=slow),
]


def steps(method, folder, per_device, accumulation, **options):
    """How weights moved, and the log; two prompts of four completions each, whichever way they are cut."""
    options.setdefault("vllm_importance_sampling_correction", "vllm_importance_sampling_mode" in options)
    if method == "rloo":
        options.pop("vllm_importance_sampling_correction")
    trainer = build_online(
        method,
        folder,
        per_device_train_batch_size=per_device,
        gradient_accumulation_steps=accumulation,
        train_dataset=questions(2),
        rollout_engine=by_position(),
        **options,
    )
    start = weights(with_plain_descent(trainer, 0.1))
    trainer.train()
    return {name: start[name] - end for name, end in weights(trainer).items()}, trainer.state.log_history[:-1]


def assert_same_steps(found, expected, skip=()):
    largest = max(moved.abs().max().item() for moved in expected[0].values())
    assert largest > 0
    for name, moved in expected[0].items():
        assert_close(found[0][name], moved, atol=2e-5 * largest, rtol=1e-5, msg=lambda m, n=name: f"{n}: {m}")
    for line, expected_line in zip(found[1], expected[1], strict=True):
        assert line.keys() == expected_line.keys()
        for name in line.keys() - {"step_time", *skip}:
            assert line[name] == pytest.approx(expected_line[name], rel=1e-4, abs=1e-5), name


@pytest.mark.parametrize(("method", "options"), CASES, ids=str)
def test_any_split_into_micro_batches_gives_the_same_step(method, options, tmp_path):
    whole = steps(method, tmp_path, 8, 1, **options)
    for per_device, accumulation in ((4, 2), (1, 8)):
        assert_same_steps(steps(method, tmp_path, per_device, accumulation, **options), whole)


@pytest.mark.parametrize("loss_type", ["dapo", *(pytest.param(name, marks=slow) for name in ("grpo", "sapo", "vespo"))])
def test_leaving_out_completions_that_teach_nothing_changes_no_step(loss_type, tmp_path):
    # rewards of which a whole group and some of the other are of advantage 0
    def reward(completion_ids, prompts, **columns):
        return [float(len(ids) > 4) if "0" in text else 1.0 for ids, text in zip(completion_ids, prompts, strict=True)]

    options = {"loss_type": loss_type, "reward_funcs": reward, **MOVED}
    without, with_all = (steps("grpo", tmp_path, 2, 4, skip_zero_advantages=skip, **options) for skip in (True, False))
    assert_same_steps(without, with_all, skip=("entropy", "vespo/phi_seq_mean"))  # of the tokens that are read


@pytest.mark.parametrize("method", ["grpo", pytest.param("rloo", marks=slow)])
def test_gradient_checkpointing_changes_nothing(method, tmp_path):
    with_it, without = (
        steps(method, tmp_path, 4, 2, beta=0.1, gradient_checkpointing=checkpointing, **MOVED)
        for checkpointing in (True, False)
    )
    assert_same_steps(with_it, without)
