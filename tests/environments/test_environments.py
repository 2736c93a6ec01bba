"""Environments: tools of their own, resets, rewards, and that none knows of the others."""

import asyncio
import time

import pytest

from tests.environments.scripts import call, policy, sampling, text_of, tokenizer, tool_outputs, turns, user
from tests.meeting import Meeting
from tuneline.environments import ConcurrentCalls, EnvironmentPool, Interaction, environment_tools
from tuneline.environments.pool import with_observation
from tuneline.errors import ConfigError, DataError, RolloutError


class Counter:
    """Counts up from where the row says."""

    def __init__(self):
        self.value = None

    def reset(self, start=0, **row):
        self.value = start
        return f" The counter stands at {start}."

    def increment(self, by: int) -> int:
        """Counts up.

        Args:
            by: how far
        """
        self.value += by
        return self.value

    def get_reward(self):
        return float(self.value)

    def _hidden(self):
        pass

    @property
    def explosive(self):
        raise AssertionError("a property was read")


class Door:
    """Opens; has no reward of its own."""

    def reset(self, **row):
        self.is_open = False
        self.row = row

    async def open(self) -> str:
        """Opens the door."""
        await asyncio.sleep(0)
        self.is_open = True
        return "open"


class Judge(Door):
    async def get_reward(self):
        await asyncio.sleep(0.1)
        return 1.0 if self.is_open else 0.0


def interaction(factory=None, **options):
    return Interaction(tokenizer(), [tokenizer().eos_token_id], environment_factory=factory, **options)


def rows(*prompts, **columns):
    return [
        {"prompt": user(prompt), **{name: values[i] for name, values in columns.items()}}
        for i, prompt in enumerate(prompts)
    ]


def test_public_methods_are_tools_and_nothing_else_is():
    assert set(environment_tools(Counter())) == {"increment"}
    assert environment_tools(None) == {}


def test_environments_are_reset_with_their_row_and_their_words_end_the_prompt():
    held = interaction(Counter).run(turns("ok"), rows("Count.", "Count.", start=[3, 5]), [1, 2], sampling())
    assert [text_of(rollout.prompt_ids).split("<|user|>")[1] for rollout in held.rollouts] == [
        "Count. The counter stands at 3.<|end|><|assistant|>",
        "Count. The counter stands at 5.<|end|><|assistant|>",
    ]


def test_environments_of_a_batch_share_nothing():
    engine = policy(lambda dialogue: "done" if "<|tool|>" in dialogue else call("increment", by=10))
    held = interaction(Counter).run(engine, rows("a", "a", "a", start=[1, 2, 3]), [1, 2, 3], sampling())
    assert [environment.value for environment in held.environments] == [11, 12, 13]
    assert [tool_outputs(rollout) for rollout in held.rollouts] == [["11"], ["12"], ["13"]]
    assert held.counts.calls == 3


def test_environments_are_used_again_after_a_reset():
    made = []

    def factory():
        made.append(Counter())
        return made[-1]

    whole = interaction(factory)
    for _ in range(3):
        held = whole.run(turns(call("increment", by=1), "ok"), rows("a", "a", start=[0, 0]), [1, 2], sampling())
        assert [environment.value for environment in held.environments] == [1, 1]
    assert len(made) == 2
    whole.close()


def test_environments_own_reward_is_a_reward_function():
    whole = interaction(Counter)
    (reward,) = whole.reward_functions
    held = whole.run(turns(call("increment", by=1), "ok"), rows("a", "a", start=[0, 5]), [1, 2], sampling())
    assert reward.__name__ == "Counter"
    assert reward(environments=held.environments, prompts=[], completions=[], answer=[1, 2]) == [1.0, 6.0]


def test_a_rows_column_says_which_environment_it_uses():
    whole = interaction({"counter": Counter, "judge": Judge, "door": Door})
    engine = policy(
        lambda dialogue: (
            "done" if "<|tool|>" in dialogue else call("increment", by=1) + call("open")
        )  # one of them is unknown to each environment
    )
    batch = rows("a", "b", "c", environment=["judge", "counter", "door"])
    held = whole.run(engine, batch, [1, 2, 3], sampling())
    assert [type(environment) for environment in held.environments] == [Judge, Counter, Door]
    assert [["unknown" in output for output in tool_outputs(one)] for one in held.rollouts] == [
        [True, False],
        [False, True],
        [True, False],
    ]
    schemas = [text_of(rollout.prompt_ids).split("<|user|>")[0] for rollout in held.rollouts]
    assert ["increment" in schema for schema in schemas] == [False, True, False]
    assert "environment" not in held.environments[0].row
    counter, judge = whole.reward_functions
    assert (counter.__name__, judge.__name__) == ("Counter", "Judge")
    assert counter(environments=held.environments) == [None, 1.0, None]
    assert asyncio.run(judge(environments=held.environments)) == [1.0, None, None]  # and Door is no Judge


def test_async_rewards_of_a_batch_are_asked_at_once():
    meeting = Meeting(10)

    class Jury(Door):
        async def get_reward(self):
            await meeting.wait_async()
            return 1.0

    whole = interaction(Jury)
    held = whole.run(turns("ok"), rows(*"abcdefghij"), list(range(10)), sampling())
    assert asyncio.run(whole.reward_functions[0](environments=held.environments)) == [1.0] * 10


def test_resets_of_a_batch_run_at_the_same_time():
    meeting, another = Meeting(10), Meeting(10)

    class Meets(Door):
        def reset(self, **row):
            meeting.wait()

    class MeetsAsync(Door):
        async def reset(self, **row):
            await another.wait_async()

    for factory in (Meets, MeetsAsync):
        held = interaction(factory).run(turns("ok"), rows(*"abcdefghij"), list(range(10)), sampling())
        assert len(held.environments) == 10


def test_tools_and_environments_go_together():
    def double(x: int) -> int:
        """Doubles.

        Args:
            x: what
        """
        return 2 * x

    whole = interaction(Counter, tools=[double])
    engine = turns(call("double", x=4) + call("increment", by=1), "ok")
    held = whole.run(engine, rows("a", start=[1]), [1], sampling())
    assert tool_outputs(held.rollouts[0]) == ["8", "2"]


@pytest.mark.parametrize(
    ("observation", "prompt"),
    [
        (None, user("go")),
        (" now", user("go now")),
        ({"role": "user", "content": "now"}, [*user("go"), *user("now")]),
        (user("now") + user("really"), [*user("go"), *user("now"), *user("really")]),
        (
            [{"type": "text", "text": "now"}],
            [{"role": "user", "content": [{"type": "text", "text": "go"}, {"type": "text", "text": "now"}]}],
        ),
    ],
)
def test_what_a_reset_returns_goes_to_the_prompt(observation, prompt):
    before = user("go")
    assert with_observation(before, observation) == prompt
    assert before == user("go")


def test_what_is_no_observation_is_refused():
    with pytest.raises(RolloutError, match="return a text"):
        with_observation(user("go"), 3)


def test_a_reset_that_fails_or_hangs_is_named():
    class Broken(Door):
        def reset(self, **row):
            raise ValueError("no such level")

    class Hanging(Door):
        def reset(self, **row):
            time.sleep(2)

    with pytest.raises(RolloutError, match=r"Broken.reset failed: ValueError: no such level"):
        interaction(Broken).run(turns("ok"), rows("a"), [1], sampling())
    with pytest.raises(RolloutError, match=r"Hanging.reset took longer than 0.1 s"):
        interaction(Hanging, environment_timeout=0.1).run(turns("ok"), rows("a"), [1], sampling())


def test_what_is_no_environment_is_refused_before_the_run():
    with pytest.raises(ConfigError, match="no method `reset`"):
        interaction(dict)
    with pytest.raises(ConfigError, match="names no environment"):
        interaction({})
    shared = Counter()
    with ConcurrentCalls() as calls, pytest.raises(ConfigError, match="the same Counter twice"):
        EnvironmentPool(lambda: shared, calls).acquire([{}, {}])


def test_a_row_that_names_no_environment_is_refused():
    with pytest.raises(DataError, match=r"'environment' is 'window'.*'counter'"):
        interaction({"counter": Counter}).run(turns("ok"), rows("a", environment=["window"]), [1], sampling())
    with pytest.raises(DataError, match="list of messages"):
        interaction(Counter).run(turns("ok"), [{"prompt": "plain text"}], [1], sampling())


def test_what_a_tool_lacks_is_said_before_the_run():
    class Mute:
        def reset(self, **row):
            pass

        def act(self, x):
            pass

    with pytest.raises(ConfigError, match=r"'act'.*type hint"):
        interaction(Mute)
