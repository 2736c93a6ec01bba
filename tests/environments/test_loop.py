"""Conversations with tools: what is kept, what is a target, what ends them."""

import asyncio
import threading
import time

import pytest

from tests.environments.scripts import (
    call,
    ids_of,
    policy,
    sampling,
    text_of,
    tokenizer,
    tool_outputs,
    turns,
    user,
)
from tests.meeting import Meeting
from tuneline.environments import run_conversations
from tuneline.errors import ConfigError, DataError, ModelError, RolloutError
from tuneline.rollout.protocol import Completion, rollout_seed
from tuneline.rollout.scripted import ScriptedEngine


def add(a: int, b: int) -> int:
    """Adds two numbers.

    Args:
        a: the one
        b: the other
    """
    return a + b


async def shout(text: str) -> str:
    """Says it louder.

    Args:
        text: what to say
    """
    return text.upper()


def slow(seconds: float) -> str:
    """Takes its time.

    Args:
        seconds: how long
    """
    time.sleep(seconds)
    return f"slept {seconds}"


def fail() -> None:
    """Fails."""
    raise ValueError("out of order")


def hold(engine, *prompts, tools=(add,), seeds=None, limits=None, **options):
    seeds = list(range(len(prompts))) if seeds is None else seeds
    conversations = [user(prompt) for prompt in prompts]
    return run_conversations(engine, tokenizer(), conversations, seeds, limits or sampling(), tools=tools, **options)


def test_a_tool_is_called_and_its_answer_read():
    engine = turns(call("add", a=2, b=3), "It is 5.")
    (rollout,), counts = hold(engine, "2+3?")
    assert [message["role"] for message in rollout.messages] == ["assistant", "tool", "assistant"]
    assert rollout.messages[0]["tool_calls"] == [
        {"type": "function", "function": {"name": "add", "arguments": {"a": 2, "b": 3}}}
    ]
    assert rollout.messages[1] == {"role": "tool", "name": "add", "content": "5"}
    assert rollout.messages[2]["content"] == "It is 5."
    assert rollout.is_finished
    assert (counts.calls, counts.failures) == (1, 0)
    assert '"name": "add"' in text_of(rollout.prompt_ids)  # the policy is told of its tools


def test_only_what_the_policy_wrote_is_a_target():
    first, last = call("add", a=2, b=3), "It is 5."
    (rollout,), _ = hold(turns(first, last), "2+3?")
    answer = "<|tool|>5<|end|><|assistant|>"
    assert text_of(rollout.completion_ids) == f"{first}<|end|>{answer}{last}<|end|>"
    lengths = [len(ids_of(text)) for text in (first + "<|end|>", answer, last + "<|end|>")]
    assert rollout.is_target == [1] * lengths[0] + [0] * lengths[1] + [1] * lengths[2]
    assert rollout.logprobs == [-0.5] * lengths[0] + [0.0] * lengths[1] + [-0.5] * lengths[2]
    assert rollout.support is None


def test_a_conversation_without_calls_is_a_plain_completion():
    (rollout,), counts = hold(turns("4"), "2+2?")
    assert text_of(rollout.completion_ids) == "4<|end|>"
    assert rollout.is_target is None
    assert rollout.is_finished
    assert counts.calls == 0
    assert counts.metrics() == {"tools/call_frequency": 0.0, "tools/failure_frequency": 0.0}


def test_what_the_policy_wrote_is_never_tokenised_again():
    # These ids spell the call in another way than the tokenizer would: with a special token that decodes to nothing.
    end, pad = tokenizer().eos_token_id, tokenizer().pad_token_id
    odd = [pad, *ids_of(call("add", a=1, b=1)), pad, end]
    replies = iter([odd, [pad, *ids_of("2"), end]])
    (rollout,), _ = hold(ScriptedEngine(lambda prompt, seed: next(replies)), "1+1?")
    assert rollout.completion_ids[: len(odd)] == odd
    written = [i for i, target in zip(rollout.completion_ids, rollout.is_target, strict=True) if target]
    assert written == [*odd, pad, *ids_of("2"), end]
    assert tool_outputs(rollout) == ["2"]


def test_each_request_goes_on_from_the_tokens_before():
    engine = turns(call("add", a=2, b=3), "5")
    (rollout,), _ = hold(engine, "2+3?")
    first, second = engine.requests
    assert list(first.prompt_ids) == rollout.prompt_ids
    assert list(second.prompt_ids) == rollout.prompt_ids + rollout.completion_ids[: -len(ids_of("5<|end|>"))]


@pytest.mark.parametrize("order", [("add", "shout"), ("shout", "add")])
def test_plain_and_async_tools_answer_in_the_order_of_the_calls(order):
    calls = {"add": call("add", a=1, b=1), "shout": call("shout", text="hey")}
    answers = {"add": "2", "shout": "HEY"}
    engine = turns("".join(calls[name] for name in order), "done")
    (rollout,), counts = hold(engine, "go", tools=[add, shout])
    assert [(m["name"], m["content"]) for m in rollout.messages[1:-1]] == [(name, answers[name]) for name in order]
    assert counts.calls == 2


def test_tools_of_a_batch_run_at_the_same_time():
    meeting = Meeting(24)

    def meet() -> str:
        """Meets."""
        meeting.wait()
        return "met"

    engine = turns(call("meet") * 2, "done")
    _, counts = hold(engine, *(f"prompt {i}" for i in range(12)), tools=[meet])
    assert (counts.calls, counts.failures) == (24, 0)
    assert len(engine.calls) == 2  # and each round is one call of the engine


def test_async_tools_of_a_batch_share_one_event_loop():
    seen = set()

    async def look() -> str:
        """Looks."""
        seen.add((threading.get_ident(), id(asyncio.get_running_loop())))
        return "ok"

    hold(turns(call("look"), call("look"), "done"), "a", "b", tools=[look])
    assert len(seen) == 1


@pytest.mark.parametrize(
    ("written", "told"),
    [
        (call("multiply", a=1, b=2), "unknown tool 'multiply'; the tools are add, fail"),
        (call("add", a=1), "missing a required argument: 'b'"),
        (call("add", a=1, b=2, c=3), "unexpected keyword argument 'c'"),
        (call("add", a=1, b=[]), "unsupported operand"),
        (call("fail"), "out of order"),
        ("<tool_call>{add(1, 2)}</tool_call>", "not valid JSON"),
    ],
)
def test_a_call_that_fails_is_told_to_the_policy_and_counted(written, told):
    (rollout,), counts = hold(turns(written, "sorry"), "go", tools=[add, fail])
    assert told in tool_outputs(rollout)[0]
    assert rollout.messages[-1]["content"] == "sorry"
    assert (counts.calls, counts.failures, counts.timeouts) == (1, 1, 0)
    assert counts.metrics()["tools/failure_frequency"] == 1.0


def test_a_tool_that_hangs_is_told_and_costs_its_own_call_alone():
    engine = turns(call("slow", seconds=60) + call("add", a=1, b=2), "done")
    start = time.perf_counter()
    (rollout,), counts = hold(engine, "go", tools=[add, slow], tool_timeout=0.2)
    assert time.perf_counter() - start < 30
    assert tool_outputs(rollout) == ["{'error': 'the call took longer than 0.2 s'}", "3"]
    assert (counts.calls, counts.failures, counts.timeouts) == (2, 1, 1)


def test_failures_and_calls_are_counted_over_the_batch():
    def speak(dialogue):
        return "done" if "<|tool|>" in dialogue else call("add", a=1, b=2 if "well" in dialogue else [])

    _, counts = hold(policy(speak), "well", "badly")
    assert counts.metrics() == {"tools/call_frequency": 1.0, "tools/failure_frequency": 0.5}


@pytest.mark.parametrize("max_turns", [0, 1, 3])
def test_no_tool_is_called_after_the_last_turn(max_turns):
    engine = policy(lambda dialogue: call("add", a=1, b=1))
    (rollout,), counts = hold(engine, "go", max_turns=max_turns)
    assert counts.calls == len(tool_outputs(rollout)) == max_turns
    assert rollout.messages[-1]["role"] == "assistant"
    assert not rollout.is_finished
    assert (counts.out_of_turns, counts.cut_off) == (1, 1)


def test_a_long_output_is_cut_with_a_mark_and_counted():
    def recite() -> str:
        """Recites."""
        return "la" * 500

    (rollout,), counts = hold(turns(call("recite"), "done"), "go", tools=[recite], max_tool_output_tokens=10)
    assert tool_outputs(rollout) == ["lalalalala [cut off: 10 of 1000 tokens]"]
    assert counts.shortened == 1


def test_an_answer_that_does_not_fit_ends_the_conversation_and_leaves_nothing_of_it():
    written = call("add", a=1, b=1)
    answer = "<|tool|>2<|end|><|assistant|>"
    just_too_short = len(ids_of(written + "<|end|>" + answer))  # no token left for the policy
    (rollout,), counts = hold(turns(written, "2"), "go", max_completion_length=just_too_short)
    assert text_of(rollout.completion_ids) == written + "<|end|>"
    assert [message["role"] for message in rollout.messages] == ["assistant"]
    assert rollout.is_target is None
    assert not rollout.is_finished
    assert (counts.not_fitting, counts.cut_off) == (1, 1)
    (rollout,), counts = hold(turns(written, "2"), "go", max_completion_length=just_too_short + 1)
    assert len(rollout.completion_ids) == just_too_short + 1
    assert (counts.not_fitting, counts.cut_off) == (0, 1)  # the policy's last turn was cut, not the tool's


def test_the_engine_is_asked_for_no_more_than_there_is_room_for():
    engine = turns(call("add", a=1, b=1), "x" * 500)
    (rollout,), _ = hold(engine, "go", max_completion_length=120)
    used = 120 - engine.requests[1].max_new_tokens
    assert sum(map(len, (engine.requests[1].prompt_ids,))) == len(rollout.prompt_ids) + used
    assert len(rollout.completion_ids) == 120
    assert not rollout.is_finished


def test_the_context_of_the_model_is_a_limit_too():
    (rollout,), _ = hold(turns("x" * 500), "go", tools=(), max_completion_length=400, max_length=50)
    assert len(rollout.prompt_ids) + len(rollout.completion_ids) == 50
    with pytest.raises(DataError, match="no room to answer"):
        hold(turns("x"), "go", tools=(), max_length=5)


def test_a_turn_that_was_cut_off_calls_nothing():
    written = call("add", a=1, b=1)
    limits = sampling(max_new_tokens=len(ids_of(written)))  # the call is whole, the turn is not
    (rollout,), counts = hold(turns(written), "go", limits=limits, max_completion_length=400)
    assert counts.calls == 0
    assert not rollout.is_finished


def test_copies_of_a_prompt_are_one_request_with_a_seed_each():
    engine = turns("4")
    rollouts, _ = hold(engine, "2+2?", "3+3?", "2+2?", seeds=[5, 6, 7])
    assert [list(request.seeds) for request in engine.requests] == [
        [rollout_seed(5, 0), rollout_seed(7, 0)],
        [rollout_seed(6, 0)],
    ]
    assert len(rollouts) == 3


def test_every_turn_has_a_seed_of_its_own_that_the_batch_does_not_change():
    alone, together = turns(call("add", a=1, b=1), "2"), turns(call("add", a=1, b=1), "2")
    hold(alone, "go", seeds=[9])
    hold(together, "other", "go", seeds=[8, 9])
    wanted = [[rollout_seed(9, 0)], [rollout_seed(9, 1)]]
    assert [list(request.seeds) for request in alone.requests] == wanted
    assert [list(request.seeds) for request in together.requests if list(request.seeds) in wanted] == wanted


def test_conversations_of_different_lengths_share_the_rounds():
    def speak(dialogue):
        wanted = int(dialogue.split("<|user|>")[1][0])
        return "done" if dialogue.count("<|tool|>") == wanted else call("add", a=1, b=1)

    engine = policy(speak)
    rollouts, counts = hold(engine, "0", "2", "1")
    assert [len(tool_outputs(rollout)) for rollout in rollouts] == [0, 2, 1]
    assert [sum(len(request.seeds) for request in requests) for requests, _ in engine.calls] == [3, 2, 1]
    assert counts.calls == 3


def test_the_support_that_was_cut_is_kept_and_empty_for_tools():
    def speak(prompt, seed):
        ids = ids_of((call("add", a=1, b=1) if "<|tool|>" not in text_of(prompt) else "2") + "<|end|>")
        return Completion(ids, [0.0] * len(ids), is_finished=True, support=[[i] for i in ids])

    (rollout,), _ = hold(ScriptedEngine(speak), "go")
    assert rollout.support == [
        [i] if target else [] for i, target in zip(rollout.completion_ids, rollout.is_target, strict=True)
    ]


def test_an_engine_that_gives_more_than_asked_for_is_named():
    engine = ScriptedEngine(lambda prompt, seed: Completion([5] * 99, [0.0] * 99, is_finished=True))
    with pytest.raises(RolloutError, match="99 tokens"):
        hold(engine, "go", max_completion_length=10)


def test_tools_that_cannot_be_described_are_refused():
    def bare(x):
        return x

    with pytest.raises(ConfigError, match=r"'bare'.*type hint"):
        hold(turns("x"), "go", tools=[bare])
    with pytest.raises(ConfigError, match="two tools are named 'add'"):
        hold(turns("x"), "go", tools=[add, add])


def test_a_template_that_cannot_go_on_is_refused_before_anything_is_generated():
    engine = turns("x")
    with pytest.raises(ModelError, match="leaves out"):
        hold(
            engine, "go", chat_template="{% for m in messages %}{{ m.content if m.role != 'tool' }}<|end|>{% endfor %}"
        )
    assert not engine.calls


def test_another_family_is_another_parser():
    from tuneline.environments import Reply, ToolCall

    def parser(tokenizer, prefix_ids, ids, schemas):
        text = tokenizer.decode(ids, skip_special_tokens=True)
        name, _, numbers = text.partition(" ")
        calls = [ToolCall(name, dict(zip("ab", map(int, numbers.split()), strict=True)))] if numbers else []
        return Reply(text, calls)

    (rollout,), _ = hold(turns("add 20 22", "42"), "go", parser=parser)
    assert tool_outputs(rollout) == ["42"]
