"""Calling several reward functions: values, weights, time-outs, and what a function that fails costs."""

import asyncio
import functools
import logging
import math
import subprocess
import sys
import textwrap
import threading
import time

import numpy as np
import pytest
import torch
from torch.testing import assert_close

from tests.meeting import Meeting
from tuneline.errors import ConfigError, RewardError
from tuneline.rewards import RewardFunctions, get_repetition_penalty_reward, reward_name

NAN = math.nan


@pytest.fixture
def score():
    """Scores of completions; the functions are closed after the test."""
    made = []

    def scores(functions, completions, timeout=5.0, on_error="skip", environments=None, **columns):
        rewards = RewardFunctions(functions, timeout=timeout, on_error=on_error)
        made.append(rewards)
        return rewards.start(
            prompts=[f"prompt {i}" for i in range(len(completions))],
            completions=completions,
            completion_ids=[[1] * len(text) for text in completions],
            columns=columns,
            environments=environments,
        ).result()

    yield scores
    for rewards in made:
        rewards.close()


def length(completions, **columns):
    return [float(len(text)) for text in completions]


async def later(completions, **columns):
    await asyncio.sleep(0.05)
    return [1.0 for _ in completions]


def assert_values(scores, rows):
    assert_close(scores.values, torch.tensor(rows), equal_nan=True)


def test_values_are_one_column_a_function_and_none_is_nan(score):
    scores = score([length, lambda completions, **columns: [None, 2]], ["a", "bb"])
    assert scores.names == ["length", "<lambda>"]
    assert scores.values.dtype == torch.float32
    assert_values(scores, [[1.0, NAN], [2.0, 2.0]])
    assert scores.failures == {"length": 0, "<lambda>": 0}


def test_functions_get_trls_keywords_and_the_columns(score):
    seen = {}

    def all_of_them(prompts, completions, completion_ids, trainer_state, log_extra, log_metric, answer, **others):
        seen.update(prompts=prompts, ids=completion_ids, state=trainer_state, answer=answer, others=others)
        return [0.0] * len(completions)

    score(all_of_them, ["a", "bb"], answer=["x", "y"], level=[1, 2])
    assert seen["prompts"] == ["prompt 0", "prompt 1"]
    assert seen["ids"] == [[1], [1, 1]]
    assert seen["answer"] == ["x", "y"]
    assert seen["others"] == {"level": [1, 2]}


def test_environments_are_passed_where_there_are_some(score):
    def won(environments):
        return [float(environment) for environment in environments]

    assert_values(score(won, ["a", "b"], environments=[3, 4]), [[3.0], [4.0]])


def test_functions_without_kwargs_get_what_they_name(score):
    def matches(completions, answer):
        return [float(text == right) for text, right in zip(completions, answer, strict=True)]

    assert_values(score(matches, ["a", "b"], answer=["a", "c"], other=[1, 2]), [[1.0], [0.0]])


def test_a_column_that_is_needed_and_missing_is_named_before_anything_runs(score):
    def matches(completions, answer):
        return [0.0] * len(completions)

    with pytest.raises(RewardError, match=r"'matches' needs \['answer'\], and the dataset has \['solution'\]"):
        score(matches, ["a"], solution=["a"])


def test_lists_of_different_lengths_are_refused(score):
    with pytest.raises(RewardError, match="'answer' has 1 entries for 2 completions"):
        score(length, ["a", "b"], answer=["x"])


def test_tensors_arrays_and_numbers_of_every_kind_are_rewards(score):
    functions = [
        lambda completions, **columns: torch.tensor([1.0, 2.0]),
        lambda completions, **columns: np.array([1, 2]),
        lambda completions, **columns: (True, np.float32(0.5)),
        lambda completions, **columns: [torch.tensor(1.0), NAN],
    ]
    assert_values(score(functions, ["a", "b"]), [[1.0, 1.0, 1.0, 1.0], [2.0, 2.0, 0.5, NAN]])


def test_asynchronous_functions_run_at_the_same_time_on_one_loop(score):
    loops, meeting = [], Meeting(3)

    async def slow(completions, **columns):
        loops.append(asyncio.get_running_loop())
        await meeting.wait_async()
        return [1.0] * len(completions)

    scores = score([slow, slow, slow, length], ["a"], timeout=60)
    assert_values(scores, [[1.0] * 4])
    assert scores.names == ["slow", "slow_2", "slow_3", "length"]
    assert loops[0] is loops[1] is loops[2]


def test_objects_with_an_asynchronous_call_and_functions_that_return_awaitables(score):
    class Judge:
        async def __call__(self, completions, **columns):
            return [2.0] * len(completions)

    def wrapped(completions, **columns):
        return later(completions)

    scores = score([Judge(), wrapped], ["a"])
    assert scores.names == ["Judge", "wrapped"]
    assert_values(scores, [[2.0, 1.0]])


def test_the_caller_works_while_rewards_run():
    began, may_end = threading.Event(), threading.Event()

    def slow(completions, **columns):
        began.set()
        assert may_end.wait(30)
        return [1.0] * len(completions)

    rewards = RewardFunctions(slow, timeout=60)
    pending = rewards.start(prompts=["p"], completions=["c"], completion_ids=[[1]], columns={})
    assert began.wait(30)
    assert not pending.is_done()
    time.sleep(0.1)
    may_end.set()
    assert pending.result().values.item() == 1
    assert pending.result().seconds["slow"] >= 0.1


def test_a_sample_that_raises_costs_itself_alone_and_is_logged_once(caplog):
    def picky(completions, **columns):
        if "bad" in completions:
            raise ValueError("no bad ones")
        return [1.0] * len(completions)

    rewards = RewardFunctions(picky)
    with caplog.at_level(logging.WARNING):
        for _ in range(2):
            scores = rewards.start(
                prompts=["p"] * 3, completions=["a", "bad", "c"], completion_ids=[[1]] * 3, columns={"x": [1, 2, 3]}
            ).result()
    assert_values(scores, [[1.0], [NAN], [1.0]])
    assert scores.failures == {"picky": 1}
    reason = "the reward function 'picky' lost 1 of 3 completions (number 1): raised ValueError: no bad ones"
    assert scores.reasons == [reason]
    assert [record.message for record in caplog.records] == [f"{reason}; said once, then only counted"]


def test_an_asynchronous_sample_that_raises_or_hangs_costs_itself_alone(score):
    async def picky(completions, **columns):
        if "bad" in completions:
            raise KeyError("bad")
        if "slow" in completions:
            await asyncio.sleep(100)
        return [1.0] * len(completions)

    scores = score(picky, ["a", "bad", "slow", "d"], timeout=0.3)
    assert_values(scores, [[1.0], [NAN], [NAN], [1.0]])
    assert scores.failures == {"picky": 2}
    assert "raised KeyError: 'bad'" in scores.reasons[0]
    assert "took longer than 0.3 s" in scores.reasons[1]


@pytest.mark.parametrize("how", ["sleeps", "spins"])
def test_a_sample_that_hangs_costs_itself_alone(score, how):
    def hangs(completions, **columns):
        while "slow" in completions:
            time.sleep(60) if how == "sleeps" else None
        return [1.0] * len(completions)

    started = time.monotonic()
    scores = score([hangs, length], ["a", "slow", "c"], timeout=0.5)
    assert time.monotonic() - started < 30
    assert_values(scores, [[1.0, 1.0], [NAN, 4.0], [1.0, 1.0]])
    assert scores.failures == {"hangs": 1, "length": 0}


def test_an_asynchronous_function_that_blocks_the_loop_costs_itself_alone(score):
    async def blocks(completions, **columns):
        if "slow" in completions:
            time.sleep(4)
        return [1.0] * len(completions)

    scores = score([blocks, later], ["a", "slow"], timeout=1.0)
    assert_values(scores, [[1.0, 1.0], [NAN, 1.0]])
    assert "blocked the event loop" in scores.reasons[0]


def test_a_function_that_hangs_does_not_hold_up_the_end_of_the_process():
    code = """
        import time
        from tuneline.rewards import RewardFunctions
        def hangs(completions, **columns):
            time.sleep(1000)
        async def hangs_too(completions, **columns):
            time.sleep(1000)
        rewards = RewardFunctions([hangs, hangs_too], timeout=0.2)
        scores = rewards.start(prompts=["p"], completions=["c"], completion_ids=[[1]], columns={}).result()
        print(scores.failures, flush=True)
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True, timeout=60, check=True
    )
    assert done.stdout == "{'hangs': 1, 'hangs_too': 1}\n"


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        ([1.0], "returned 1 rewards for 2 completions"),
        (3.0, "returned 3.0, which is no list of 1 rewards"),
        (None, "returned None, which is no list of 1 rewards"),
        (["good", 1.0], "returned 'good', which is no finite number and not None"),
        ([math.inf, 1.0], "returned inf, which is no finite number and not None"),
    ],
)
def test_what_is_no_list_of_numbers_is_lost_with_the_reason(score, answer, reason):
    scores = score(lambda completions, **columns: answer, ["a", "b"])
    lost = scores.failures["<lambda>"]
    assert lost == scores.values.isnan().sum()
    if answer == [1.0]:  # right when it is asked for one sample alone
        assert lost == 0
    else:
        assert lost > 0
        assert reason in scores.reasons[0]


def test_a_function_that_calls_exit_costs_its_samples(score):
    def leaves(completions, **columns):
        sys.exit(3)

    scores = score(leaves, ["a"])
    assert scores.failures == {"leaves": 1}
    assert "SystemExit(3)" in scores.reasons[0]


def test_a_function_that_bounds_its_time_is_waited_for(score):
    class Judge:
        def longest(self, num_samples):
            return 5.0

        def __call__(self, completions, **columns):
            time.sleep(0.4)
            return [1.0] * len(completions)

    assert score(Judge(), ["a"], timeout=0.1).failures == {"Judge": 0}


def test_raise_names_the_function_the_sample_and_the_reason(score):
    def picky(completions, **columns):
        return [1.0 / (text != "bad") for text in completions]

    with pytest.raises(
        RewardError, match=r"'picky' lost 1 of 2 completions \(number 1\): raised ZeroDivisionError.*'bad'"
    ):
        score(picky, ["a", "bad"], on_error="raise")


def test_settings_at_fault_end_the_run_whatever_on_error_says(score):
    def wrong(completions, **columns):
        raise ConfigError("no such tolerance")

    with pytest.raises(ConfigError, match="no such tolerance"):
        score(wrong, ["a", "b"])


def test_functions_log_columns_and_metrics(score):
    def logs(completions, log_extra, log_metric, **columns):
        log_extra("size", [len(text) for text in completions])
        log_metric("longest", max(map(len, completions)))
        log_metric("longest", 0)
        return [0.0] * len(completions)

    scores = score(logs, ["a", "bbb"])
    assert scores.extras == {"size": [1, 3]}
    assert scores.metrics == {"longest": 1.5}


def test_what_is_logged_sample_by_sample_is_put_together(score):
    def picky(completions, log_extra, **columns):
        log_extra("size", [len(text) for text in completions])
        if "bad" in completions:
            raise ValueError
        return [1.0] * len(completions)

    assert score(picky, ["a", "bad", "cc"]).extras == {"size": [1, None, 2]}


def test_a_logged_column_of_another_length_is_left_out_and_said(score, caplog):
    def logs(completions, log_extra, **columns):
        log_extra("size", [1])
        return [0.0] * len(completions)

    assert score(logs, ["a", "b"]).extras == {}
    assert "log_extra('size') gave 1 values for 2 completions" in caplog.text


def test_no_completions_give_no_scores(score):
    assert score([length, later], []).values.shape == (0, 2)


def test_weights_are_ones_unless_given_one_a_function():
    assert_close(RewardFunctions([length, later]).weights, torch.ones(2))
    assert_close(RewardFunctions([length, later], weights=[0.3, 0.7]).weights, torch.tensor([0.3, 0.7]))
    with pytest.raises(ConfigError, match="reward_weights has 1 entries for 2 reward functions"):
        RewardFunctions([length, later], weights=[1.0])


def test_settings_that_are_none_are_refused():
    with pytest.raises(ConfigError, match="neither 'skip' nor 'raise'"):
        RewardFunctions(length, on_error="ignore")
    with pytest.raises(ConfigError, match="reward_timeout"):
        RewardFunctions(length, timeout=0)
    with pytest.raises(ConfigError, match="cannot be called"):
        RewardFunctions([3])


def test_names_are_those_of_the_metrics():
    assert reward_name(functools.partial(length, x=1)) == "length"
    assert reward_name(get_repetition_penalty_reward()) == "repetition_penalty_reward"
    assert RewardFunctions(["think_format_reward", "http://host:8000/score/v1?key=1"]).names == [
        "think_format_reward",
        "host_score_v1",
    ]
