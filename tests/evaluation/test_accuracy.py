from tuneline.evaluation.accuracy import verify
from tuneline.evaluation.prompts import Prompts
from tuneline.evaluation.sampling import Completion
from tuneline.rewards import RewardFunctions

PROMPTS = Prompts(
    {
        "prompt": [[{"role": "user", "content": "1 + 1"}], "2 + 2", "2 + 3"],
        "solution": ["2", None, "5"],
        "task": ["add", "add", "sum"],
    }
)
COMPLETIONS = [Completion([1], text, True) for text in (" 2\n", "4", "6")]


def test_without_a_verifier_a_completion_is_compared_with_the_solution():
    assert verify(None, PROMPTS, COMPLETIONS) == [True, None, False]


def test_a_verifier_is_asked_about_the_prompts_whose_solution_is_known():
    asked = {}

    def verifier(**columns):
        asked.update(columns)
        return [1.0, None]

    assert verify(RewardFunctions([verifier]), PROMPTS, COMPLETIONS) == [True, None, None]
    assert asked["prompts"] == [PROMPTS.values[0], "2 + 3"]
    assert asked["completions"] == [[{"role": "assistant", "content": " 2\n"}], "6"]
    assert (asked["completion_ids"], asked["solution"], asked["task"]) == ([[1], [1]], ["2", "5"], ["add", "sum"])


def test_what_a_verifier_rewards_with_more_than_one_half_is_right():
    async def verifier(completions, **columns):
        return [0.5, 0.9]

    assert verify(RewardFunctions([verifier]), PROMPTS, COMPLETIONS) == [False, None, True]
