"""The worked examples, as a user runs them: the model is better afterwards, by more than chance."""

import importlib

import pytest


def example(name):
    return importlib.import_module(f"examples.{name}")


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize(("name", "gain"), [("calculator_tool", 0.4), ("guess_the_number", 0.1)])
def test_the_model_is_better_after_grpo(name, gain, tmp_path):
    before, after = example(name).main(str(tmp_path))
    assert after.low > before.high
    assert after.estimate > before.estimate + gain


def test_the_examples_tasks_are_what_they_say():
    calculator, game = example("calculator_tool"), example("guess_the_number")
    keys = [{row["prompt"][0]["content"] for row in calculator.problems(500, for_test=test)} for test in (False, True)]
    assert not keys[0] & keys[1]
    environment = game.make_environment()
    environment.reset(number=6)
    assert [environment.respond(guess) for guess in ("4", "5", "6")] == ["higher", "higher", None]
    assert (environment.total_reward, environment.stepping.is_won) == (1.0, True)
    environment.reset(number=2)
    assert [environment.respond(guess) for guess in ("4", "7", "many")] == ["lower", "lower", None]
    assert (environment.total_reward, environment.stepping.is_won) == (-1.0, False)
