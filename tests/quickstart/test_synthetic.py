"""The made data: right where it should be, wrong where it should be, no problem on both sides, the same again."""

import subprocess
import sys
from collections import Counter

import pytest

from tuneline.data.synthetic import make_rows, make_synthetic
from tuneline.data.synthetic_tasks import TASKS
from tuneline.errors import ConfigError

SIZES = {"num_demonstrations": 2000, "num_preferences": 2000, "num_test": 800}


@pytest.fixture(scope="module")
def made():
    return make_synthetic(**SIZES, noise=0.25, seed=3)


def text(turns, role):
    (turn,) = turns
    assert turn["role"] == role
    return turn["content"]


def solve(task, question):
    """The answer, worked out from the words of the question alone."""
    match task:
        case "add":
            _, _, a, _, b = question.rstrip("?").split()
            return str(int(a) + int(b))
        case "sort":
            return " ".join(sorted(question.split(": ")[1].split()))
        case "reverse":
            return " ".join(reversed(question.split(": ")[1].split()))
        case "count":
            return str(question.split(": ")[1].split().count(question.split()[3]))
    raise AssertionError(task)


def the_same_problem(task, question):
    """What a question asks; the order of the terms of a sum does not matter."""
    if task == "add":
        _, _, a, _, b = question.rstrip("?").split()
        return task, *sorted([int(a), int(b)])
    return task, question


def test_the_columns_are_those_of_the_trainers_formats(made):
    assert made.demonstrations.column_names == ["prompt", "completion", "task"]
    assert made.preferences.column_names == ["prompt", "chosen", "rejected", "task"]
    assert made.test.column_names == ["prompt", "solution", "task"]
    assert [len(rows) for rows in made] == list(SIZES.values())


def test_no_problem_is_in_two_of_the_three_sets_nor_twice_in_one(made):
    problems = [{the_same_problem(row["task"], text(row["prompt"], "user")) for row in rows} for rows in made]
    assert not problems[0] & problems[1]
    assert not problems[0] & problems[2]
    assert not problems[1] & problems[2]
    assert [len(p) for p in problems] == list(SIZES.values())


def test_sets_of_other_seeds_sizes_and_tasks_share_no_problem_either():
    test = {row["prompt"][0]["content"] for row in make_rows("test", 400, seed=1)}
    training = {row["prompt"][0]["content"] for row in make_rows("demonstrations", 3000, tasks=["sort", "add"], seed=2)}
    assert not test & training


def test_solutions_and_chosen_answers_are_right_and_rejected_ones_wrong(made):
    for row in made.test:
        assert row["solution"] == solve(row["task"], text(row["prompt"], "user"))
    for row in made.preferences:
        solution = solve(row["task"], text(row["prompt"], "user"))
        assert text(row["chosen"], "assistant") == solution != text(row["rejected"], "assistant")


def test_the_noise_is_the_share_of_wrong_demonstrations(made):
    wrong = Counter(
        row["task"]
        for row in made.demonstrations
        if text(row["completion"], "assistant") != solve(row["task"], text(row["prompt"], "user"))
    )
    # 2000 draws at 0.25 have a standard deviation of 0.0097, 500 of 0.019; four of them are allowed
    assert sum(wrong.values()) / 2000 == pytest.approx(0.25, abs=0.039)
    assert all(wrong[task] / 500 == pytest.approx(0.25, abs=0.078) for task in TASKS)


def test_slips_are_right_answers_with_symbols_exchanged():
    rows = make_rows("preferences", 800, slips=1.0, seed=3)
    num_exchanged = Counter()
    for row in rows:
        solution, rejected = solve(row["task"], text(row["prompt"], "user")), text(row["rejected"], "assistant")
        assert text(row["chosen"], "assistant") == solution
        assert len(rejected) == len(solution)
        assert [symbol == " " for symbol in rejected] == [symbol == " " for symbol in solution]
        num_exchanged[sum(a != b for a, b in zip(rejected, solution, strict=True))] += 1
    assert num_exchanged[0] == 0
    assert 0.4 < num_exchanged[1] / 800 < 0.75  # half of them, and those with one symbol in all
    usual = make_rows("preferences", 800, seed=3)
    assert [row["chosen"] for row in rows] == [row["chosen"] for row in usual]
    some = make_rows("preferences", 800, slips=0.25, seed=3)
    lengths = [len(row["rejected"][0]["content"]) == len(row["chosen"][0]["content"]) for row in some]
    assert sum(lengths) > sum(len(r["rejected"][0]["content"]) == len(r["chosen"][0]["content"]) for r in usual)


def test_without_noise_all_demonstrations_are_right():
    for row in make_rows("demonstrations", 400):
        assert row["completion"][0]["content"] == solve(row["task"], row["prompt"][0]["content"])


def test_all_tasks_come_equally_often_and_only_those_asked_for(made):
    assert all(Counter(rows["task"]) == dict.fromkeys(TASKS, len(rows) // 4) for rows in made)
    assert set(make_synthetic(10, 10, 10, tasks=["sort", "count"]).test["task"]) == {"sort", "count"}


def test_the_same_seed_gives_the_same_rows_in_another_process(made):
    code = (
        "import hashlib, json; from tuneline.data.synthetic import make_rows; "
        "rows = [make_rows(r, 300, noise=0.25, seed=3) for r in ('demonstrations', 'preferences', 'test')]; "
        "print(hashlib.sha256(json.dumps(rows).encode()).hexdigest())"
    )
    hashes = {subprocess.check_output([sys.executable, "-c", code], env={"PYTHONHASHSEED": seed}) for seed in "12"}
    assert len(hashes) == 1
    assert make_synthetic(**SIZES, noise=0.25, seed=3).test[:] == made.test[:]
    assert make_synthetic(**SIZES, noise=0.25, seed=4).test[:] != made.test[:]


def test_an_unknown_task_is_named_with_its_nearest():
    with pytest.raises(ConfigError, match=r"unknown task 'sorting' \(nearest: 'sort'\); there are add, sort"):
        make_rows("test", 4, tasks=["sorting"])


def test_more_rows_than_there_are_problems_is_an_error():
    with pytest.raises(ConfigError, match="'add' has hardly more than"):
        make_rows("test", 4000, tasks=["add"])
