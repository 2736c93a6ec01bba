"""Online DPO: a step by hand, against TRL, cut into micro-batches, resumed, with judges and adapters."""

import math

import pytest
from torch.testing import assert_close
from transformers import PrinterCallback

from tests.trainers.build import weights, with_plain_descent
from tests.trainers.online import questions
from tests.trainers.paired import (
    assert_resumes_to_the_bit,
    build_paired,
    by_prompt,
    model_in,
    scripted_like,
    train_adapter,
)
from tuneline.errors import ConfigError
from tuneline.judges import FunctionJudge, ScriptedJudge


def last_log(trainer):
    return next(line for line in reversed(trainer.state.log_history) if "loss" in line)


def stepped(trainer, learning_rate=0.1):
    """How weights moved, and the last log line."""
    start = weights(with_plain_descent(trainer, learning_rate))
    trainer.train()
    return {name: start[name] - end for name, end in weights(trainer).items()}, last_log(trainer)


def assert_same_steps(found, expected):
    largest = max(moved.abs().max().item() for moved in expected.values())
    assert largest > 0
    for name, moved in expected.items():
        assert_close(found[name], moved, atol=2e-5 * largest, rtol=1e-5, msg=lambda m, n=name: f"{n}: {m}")


def test_the_first_step_starts_at_log_two_and_moves_towards_the_better_one(tmp_path):
    trainer = build_paired("OnlineDPO", tmp_path, rollout_engine=by_prompt(), max_steps=8, learning_rate=1e-2)
    trainer.train()
    lines = [line for line in trainer.state.log_history if "loss" in line]
    assert lines[0]["loss"] == pytest.approx(math.log(2), abs=1e-4)  # the policy is the reference
    assert lines[0]["rewards/margins"] == pytest.approx(0, abs=1e-5)
    assert lines[-1]["loss"] < 0.6
    assert lines[-1]["rewards/accuracies"] == 1
    assert lines[-1]["beta"] == pytest.approx(0.1)
    assert lines[-1]["objective/lost_pairs"] == 0


@pytest.mark.parametrize("loss_type", ["sigmoid", "ipo"])
def test_steps_are_trls(loss_type, tmp_path):
    trl = pytest.importorskip("trl.experimental.online_dpo", reason="parity is measured against TRL")
    engine = by_prompt()
    options = {
        "loss_type": loss_type,
        "max_steps": 2,
        "missing_eos_penalty": 0.5,
        "lr_scheduler_type": "constant",
        "learning_rate": 2e-4 if loss_type == "ipo" else 0.02,  # whose gradient is some hundred times as large
        "optim": "sgd",
    }
    ours = build_paired("OnlineDPO", tmp_path, rollout_engine=engine, **options)
    ours.train()
    theirs = build_paired("OnlineDPO", tmp_path, library=trl, ref_model=None, **options)
    theirs._generate = scripted_like(engine)
    theirs.remove_callback(PrinterCallback)
    theirs.train()
    start = {name: p.detach() for name, p in model_in(tmp_path).named_parameters()}
    moved = [{name: start[name] - end for name, end in weights(one).items()} for one in (ours, theirs)]
    assert_same_steps(*moved)
    shared = (
        "rewards/chosen", "rewards/rejected", "rewards/margins", "rewards/accuracies", "logps/chosen", "logps/rejected",
        "objective/scores", "objective/scores_margin", "val/contain_eos_token", "beta",
    )  # fmt: skip
    lines = [[line for line in one.state.log_history if "loss" in line] for one in (ours, theirs)]
    for own, their in zip(*lines, strict=True):
        assert own["loss"] == pytest.approx(their["loss"], abs=1e-4)  # TRL rounds to four places
        assert {n: own[n] for n in shared} == pytest.approx({n: their[n] for n in shared}, rel=1e-4, abs=1e-5)


def test_any_split_into_micro_batches_gives_the_same_step(tmp_path):
    def step(per_device, accumulation):
        trainer = build_paired(
            "OnlineDPO",
            tmp_path,
            rollout_engine=by_prompt(),
            per_device_train_batch_size=per_device,
            gradient_accumulation_steps=accumulation,
            max_steps=2,
            judge=FunctionJudge(lambda prompt, a, b: None if "1" in prompt else int(len(b) > len(a))),
        )
        return stepped(trainer)

    whole, log = step(4, 1)
    assert log["objective/lost_pairs"] == 0.25
    assert log["judge/failures"] == 0.25
    for cut in ((2, 2), (1, 4)):  # in the last, a micro-batch holds nothing to learn from
        found, line = step(*cut)
        assert_same_steps(found, whole)
        for name in ("loss", "rewards/margins", "objective/kl", "logps/chosen"):
            assert line[name] == pytest.approx(log[name], rel=1e-4, abs=1e-6)


def test_a_judge_decides_and_verdicts_that_fail_teach_nothing(tmp_path):
    trainer = build_paired("OnlineDPO", tmp_path, rollout_engine=by_prompt(), judge=ScriptedJudge([-1]))
    moved, log = stepped(trainer)
    assert all(not change.any() for change in moved.values())
    assert log["objective/lost_pairs"] == 1
    by_zero, by_one = (
        stepped(build_paired("OnlineDPO", tmp_path, rollout_engine=by_prompt(), judge=ScriptedJudge([v])))[0]
        for v in (0, 1)
    )
    # at the reference the gradient of the loss is -beta/2 (grad chosen - grad rejected): turned round by the verdict
    assert_same_steps({name: -change for name, change in by_one.items()}, by_zero)


def test_a_resumed_run_ends_bit_identical(tmp_path):
    whole = assert_resumes_to_the_bit("OnlineDPO", tmp_path, beta=[0.1, 0.3])
    assert [line["beta"] for line in whole.state.log_history[:-1]] == pytest.approx([0.1, 0.1, 0.3, 0.3])


def test_an_adapter_is_trained_against_its_base(tmp_path):
    trainer = train_adapter("OnlineDPO", tmp_path, eval_dataset=questions(2), per_device_eval_batch_size=2)
    lines = [line for line in trainer.state.log_history if "loss" in line]
    assert lines[0]["loss"] == pytest.approx(math.log(2), abs=1e-4)
    assert lines[1]["rewards/margins"] != 0
    found = trainer.evaluate()
    assert found["eval_loss"] > 0
    assert "eval_rewards/margins" in found


def test_what_contradicts_itself_is_told(tmp_path):
    with pytest.raises(ConfigError, match="mask_truncated"):
        build_paired("OnlineDPO", tmp_path, mask_truncated_completions=True)
    with pytest.raises(ConfigError, match="two completions"):
        build_paired("OnlineDPO", tmp_path, num_generations=2)
    with pytest.raises(ConfigError, match="hinge"):
        build_paired("OnlineDPO", tmp_path, loss_type="hinge")
    with pytest.raises(ConfigError, match="above 0"):
        build_paired("OnlineDPO", tmp_path, beta=[0.1, 0.0])
    with pytest.raises(ConfigError, match="max_completion_length=9"):
        build_paired("OnlineDPO", tmp_path, max_completion_length=9)
    with pytest.raises(ConfigError, match="both judge and reward_funcs"):
        build_paired("OnlineDPO", tmp_path, judge=ScriptedJudge([0]), reward_funcs=len)
