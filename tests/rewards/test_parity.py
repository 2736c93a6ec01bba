"""The same rewards as TRL's own functions on the same completions."""

import importlib.util
import random

import pytest

import tuneline.rewards as ours

theirs = pytest.importorskip("trl.rewards", reason="TRL, the peer, is not installed")

IDS = [[random.Random(seed).randrange(3) for _ in range(seed)] for seed in range(60)]
TEXTS = [
    "<think>a</think>b",
    "<think>\na\n</think>\nb",
    "a</think>b",
    "<think>a<think>b</think>c",
    "<think>a</think>b<think>",
    "\n<think>a</think>b",
    "<think>a</think></think>",
    "",
]
COMPLETIONS = [[{"role": "assistant", "content": text}] for text in TEXTS]


@pytest.mark.parametrize("options", [{}, {"ngram_size": 1}, {"ngram_size": 5, "max_penalty": -0.3}])
def test_repetition(options):
    reward = ours.get_repetition_penalty_reward(**options)
    assert reward(completion_ids=IDS) == pytest.approx(theirs.get_repetition_penalty_reward(**options)(IDS))


@pytest.mark.parametrize("cache", [0, 1, 20, 50])
def test_soft_overlong(cache):
    reward = ours.get_soft_overlong_punishment(50, cache)
    assert reward(completion_ids=IDS) == pytest.approx(theirs.get_soft_overlong_punishment(50, cache)(IDS))


def test_think_format():
    assert ours.think_format_reward(COMPLETIONS) == theirs.think_format_reward(COMPLETIONS)


@pytest.mark.skipif(importlib.util.find_spec("math_verify") is None, reason="math-verify is not installed")
def test_accuracy_and_its_cosine():
    pairs = [
        (r"\boxed{\frac{2}{6}}", r"\frac{1}{3}"),
        (r"It is $x=3$.", "3"),
        (r"It is 3.", "3"),
        (r"\boxed{3\text{ cm}}", "3"),
        (r"\boxed{1,000}", "1000"),
        (r"\boxed{(1, 2)}", "(1, 2)"),
        (r"\boxed{50\%}", "0.5"),
        (r"\boxed{x^2+2x+1}", "$(x+1)^2$"),
        (r"first \boxed{1} then \boxed{2}", "2"),
        (r"<think>\boxed{1}</think>\boxed{2}", "2"),
        ("", "2"),
        (r"\boxed{2}", "who knows"),
    ]
    completions = [[{"role": "assistant", "content": text}] for text, _ in pairs]
    solutions = [right for _, right in pairs]
    ids = [[1] * (10 * i) for i in range(len(pairs))]
    assert ours.accuracy_reward(completions, solutions) == theirs.accuracy_reward(completions, solutions)
    assert ours.reasoning_accuracy_reward(completions, solutions) == theirs.reasoning_accuracy_reward(
        completions, solutions
    )
    scaled = [
        one.get_cosine_scaled_reward(60)(completions=completions, solution=solutions, completion_ids=ids)
        for one in (ours, theirs)
    ]
    assert scaled[0] == pytest.approx(scaled[1], nan_ok=True)
