"""Rewards judged by math-verify: TRL's values, and text made to be parsed for ever."""

import importlib.util
import pickle
import threading
import time

import pytest

from tuneline.errors import ConfigError
from tuneline.rewards import (
    RewardFunctions,
    accuracy_reward,
    get_cosine_scaled_reward,
    get_reward,
    reasoning_accuracy_reward,
    verifying,
)

needs_math_verify = pytest.mark.skipif(
    importlib.util.find_spec("math_verify") is None, reason="math-verify is not installed"
)
THIRD, HALF = r"\frac{1}{3}", r"\frac{1}{2}"


def said(*texts):
    return [[{"role": "assistant", "content": text}] for text in texts]


@needs_math_verify
def test_equal_answers_have_one_others_zero_and_unparsable_solutions_none():
    completions = said(
        rf"My answer is \boxed{{{THIRD}}}",
        rf"\boxed{{{HALF}}}",
        r"\boxed{1}",
        "no answer",
        r"\boxed{42}",
        r"\boxed{0.5}",
    )
    solutions = [THIRD, THIRD, "no number at all", THIRD, "#### 42", HALF]
    assert accuracy_reward(completions, solutions) == [1, 0, None, 0, 1, 1]


@needs_math_verify
def test_what_was_parsed_is_logged():
    columns = {}
    accuracy_reward(said(rf"\boxed{{{THIRD}}}", "none"), [THIRD, "words"], log_extra=columns.__setitem__)
    assert columns["solution"] == [THIRD, "words"]
    assert "1/3" in columns["gold_parsed"][0]
    assert columns["gold_parsed"][1] == "[unparseable]"
    assert columns["answer_parsed"][1] == "[skipped]"


@needs_math_verify
def test_reasoning_is_left_out_and_must_come_to_its_end():
    completions = said(
        rf"<think> \boxed{{{HALF}}} </think> It is \boxed{{{THIRD}}}",
        rf"<think> \boxed{{{THIRD}}} </think> It is \boxed{{{HALF}}}",
        rf"<think> \boxed{{{THIRD}}} but no end",
    )
    assert reasoning_accuracy_reward(completions, [THIRD] * 3) == [1, 0, 0]
    ended = said(rf"why ### \boxed{{{THIRD}}}")
    assert reasoning_accuracy_reward(ended, [THIRD], reasoning_delimiters=["</think>", "###"]) == [1]


@needs_math_verify
def test_cosine_scaling_favours_short_right_and_long_wrong_answers():
    reward = pickle.loads(pickle.dumps(get_cosine_scaled_reward(max_len=100)))
    right, wrong = said(rf"\boxed{{{THIRD}}}", rf"\boxed{{{HALF}}}")
    # cos 0 = 1, cos pi/2 = 0, cos pi = -1, and no further
    for length, of_right, of_wrong in [(0, 1, -1), (50, 0.75, -0.75), (100, 0.5, -0.5), (150, 0.5, -0.5)]:
        rewards = reward(completions=[right, wrong], solution=[THIRD] * 2, completion_ids=[[1] * length] * 2)
        assert rewards == pytest.approx([of_right, of_wrong])
    assert reward(completions=[right], solution=["words"], completion_ids=[[1]]) == [None]


@needs_math_verify
def test_an_answer_without_end_costs_itself_alone_also_in_a_thread(monkeypatch):
    monkeypatch.setattr("tuneline.rewards.accuracy._TIMEOUT", 2.0)
    completions = said(r"\boxed{9^{9^{9^{9^{9}}}}}", rf"\boxed{{{THIRD}}}", r"\boxed{" + "(" * 5000 + "}")
    rewards = RewardFunctions(accuracy_reward, timeout=60)
    started = time.monotonic()
    scores = rewards.start(
        prompts=["p"] * 3, completions=completions, completion_ids=[[1]] * 3, columns={"solution": [THIRD] * 3}
    ).result()
    assert time.monotonic() - started < 40
    assert scores.values[:, 0].tolist() == [0, 1, 0]
    assert scores.failures == {"accuracy_reward": 0}


def test_a_process_that_is_killed_costs_its_question_alone():
    def kill_soon():
        time.sleep(0.3)
        busy = [verifier for verifier in verifiers if verifier.worker is not None]
        for verifier in busy:
            verifier.worker.process.kill()
            verifier.worker.process.wait()

    quick = {"kind": "pattern", "pattern": "a", "flags": 0, "whole": False, "text": "a"}
    verifying.ask_all([quick], 1, 5.0)
    verifiers = [verifying._free.get() for _ in range(verifying._num_verifiers)]
    for verifier in verifiers:
        verifying._free.put(verifier)
    slow = {**quick, "pattern": "(a+)+$", "text": "a" * 60 + "b"}
    killer = threading.Thread(target=kill_soon)
    killer.start()
    answers = verifying.ask_all([slow], 1, 60.0)
    killer.join()
    assert answers == [([], "ended the process that read it")]
    assert verifying.ask_all([quick], 1, 5.0) == [([{"holds": True}], "")]


def test_without_math_verify_the_error_says_what_to_install(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ConfigError, match="pip install"):
        accuracy_reward(["1"], ["1"])
    with pytest.raises(ConfigError, match="pip install"):
        get_reward("cosine_scaled_reward", max_len=3)
