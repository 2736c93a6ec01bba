"""Environments with reset and step, as OpenEnv has them."""

import asyncio
from dataclasses import dataclass
from types import SimpleNamespace

import pytest

from tests.environments.scripts import policy, sampling, text_of, tokenizer, turns
from tuneline.environments import Interaction, StepEnvironment


@dataclass
class Result:
    """As OpenEnv's StepResult."""

    observation: SimpleNamespace | None
    reward: float | None = None
    done: bool = False


class Echo:
    """Echoes; a reward a step; over after three."""

    def reset(self, seed=0):
        self.num_steps, self.seed = 0, seed
        return Result(SimpleNamespace(message=f"[ready {seed}]"))

    def step(self, action):
        self.num_steps += 1
        return Result(SimpleNamespace(message=action["message"]), reward=0.5, done=self.num_steps == 3)


class AsyncEcho(Echo):
    async def reset(self, seed=0):
        await asyncio.sleep(0)
        return super().reset(seed)

    async def step(self, action):
        await asyncio.sleep(0)
        return super().step(action)


def environment_of(kind):
    return lambda: StepEnvironment(
        kind(), lambda text: {"message": text.upper()}, show=lambda seen: seen.message, reset_columns=["seed"]
    )


def run(kind, engine, *seeds, **options):
    whole = Interaction(tokenizer(), [tokenizer().eos_token_id], environment_factory=environment_of(kind), **options)
    rows = [{"prompt": [{"role": "user", "content": "Talk. "}], "seed": seed, "answer": "x"} for seed in seeds]
    return whole, whole.run(engine, rows, list(range(len(rows))), sampling())


@pytest.mark.parametrize("kind", [Echo, AsyncEcho])
def test_each_turn_is_a_step_and_the_observation_is_read_next(kind):
    whole, held = run(kind, turns("one", "two", "three", "four"), 7)
    (rollout,) = held.rollouts
    assert text_of(rollout.prompt_ids) == "<|user|>Talk. [ready 7]<|end|><|assistant|>"
    assert text_of(rollout.completion_ids) == (
        "one<|end|><|user|>ONE<|end|><|assistant|>two<|end|><|user|>TWO<|end|><|assistant|>three<|end|>"
    )
    assert [message["role"] for message in rollout.messages] == ["assistant", "user", "assistant", "user", "assistant"]
    assert rollout.is_finished
    (environment,) = held.environments
    assert (environment.done, environment.num_steps, environment.total_reward) == (True, 3, 1.5)
    (reward,) = whole.reward_functions
    assert reward(environments=held.environments) == [1.5]
    assert held.counts.calls == 3


def test_episodes_of_a_batch_do_not_meet():
    engine = policy(lambda dialogue: dialogue.split("[ready ")[1][0])
    _, held = run(Echo, engine, 1, 2)
    assert [[m["content"] for m in rollout.messages] for rollout in held.rollouts] == [
        ["1", "1", "1", "1", "1"],
        ["2", "2", "2", "2", "2"],
    ]


def test_turns_are_limited():
    _, held = run(Echo, turns("one", "two", "three"), 1, max_tool_calling_iterations=1)
    assert [message["content"] for message in held.rollouts[0].messages] == ["one", "ONE", "two"]
    assert not held.rollouts[0].is_finished
    assert held.environments[0].total_reward == 0.5


def test_an_action_that_cannot_be_made_is_told_to_the_policy():
    def number(text):
        return {"message": str(int(text))}

    factory = lambda: StepEnvironment(Echo(), number, show=lambda seen: seen.message)  # noqa: E731
    whole = Interaction(tokenizer(), [tokenizer().eos_token_id], environment_factory=factory)
    row = {"prompt": [{"role": "user", "content": "A number: "}]}
    held = whole.run(turns("many", "1", "2", "3"), [row], [0], sampling())
    contents = [message["content"] for message in held.rollouts[0].messages]
    assert "invalid literal" in contents[1]
    assert contents[2:] == ["1", "1", "2", "2", "3"]
    assert (held.counts.calls, held.counts.failures) == (4, 1)


def test_an_episode_without_rewards_has_none():
    class Silent(Echo):
        def reset(self):
            super().reset()
            return Result(None)

        def step(self, action):
            return Result(None, done=True)

    environment = StepEnvironment(Silent())
    assert environment.reset() is None
    assert environment.respond("x") is None
    assert environment.get_reward() is None
    assert environment.respond("again") is None
    assert environment.num_steps == 1
