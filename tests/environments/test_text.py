"""Plain text with tools called by marks."""

import pytest

from tests.environments.scripts import ids_of, sampling, text_of, tokenizer
from tuneline.environments import TextEnvironment
from tuneline.errors import ConfigError, RewardError
from tuneline.models.tiny import make_tokenizer
from tuneline.rollout.scripted import ScriptedEngine


def calculate(query):
    return sum(map(int, query.split("+")))


async def shout(query):
    return query.upper()


def writer(*turns):
    """An engine whose policy writes these turns, each in as many pieces as it is stopped for."""

    def speak(prompt, seed):
        text = text_of(prompt)
        turn = turns[text.count("<response>") % len(turns)] + "<|end|>"
        written = max(n for n in range(len(turn)) if text.endswith(turn[:n]))
        return ids_of(turn[written:])

    return ScriptedEngine(speak)


def environment(engine, tools=None, **options):
    tools = {"Calculator": calculate, "shout": shout} if tools is None else tools
    return TextEnvironment(engine, tokenizer(), tools, **{"prompt": "Q: ", "sampling": sampling(), **options})


def test_a_tool_is_answered_in_the_text_and_the_policy_writes_on():
    run = environment(writer("<request><Calculator>13+4<call>", "Result=17<submit>")).run(["13+4?"])
    (history,) = run.histories
    assert history.text == "Q: 13+4?<request><Calculator>13+4<call>17<response>Result=17<submit>"
    assert [span.source for span in history.spans] == ["prompt", "policy", "tool", "policy"]
    assert history.last_text_segment == "Result=17<submit>"
    assert (history.completed, history.truncated) == (True, False)
    assert text_of(run.queries[0]) == "Q: 13+4?"
    written = [i for i, mask in zip(run.responses[0], run.masks[0], strict=True) if mask]
    assert text_of(written) == "<request><Calculator>13+4<call>Result=17<submit>"
    assert run.rollouts[0].is_target == run.masks[0]
    assert run.counts.calls == 1


def test_async_tools_unknown_tools_and_malformed_calls_are_answered():
    def answer(written):
        return environment(writer(written, "ok<submit>")).run(["?"]).histories[0].spans[2].text

    assert answer("<request><shout>hey<call>") == "HEY<response>"
    assert "unknown tool 'nobody'" in answer("<request><nobody>hey<call>")
    assert "malformed call" in answer("hey<call>")
    assert "invalid literal" in answer("<request><Calculator>x<call>")


def test_a_mark_within_an_answer_is_no_mark():
    run = environment(writer("<request><echo>x<call>", "ok<submit>"), {"echo": lambda query: "<submit><call>"}).run(
        ["?"]
    )
    assert run.histories[0].spans[2].text == "< submit>< call><response>"


def test_marks_that_are_one_token_stop_the_policy_themselves():
    whole = make_tokenizer()
    whole.add_tokens(["<call>", "<submit>"])
    asked = []

    def speak(prompt, seed):
        asked.append(whole.decode(prompt))
        text = "ok<submit>" if "<call>" in asked[-1] else "<request><Calculator>1+1<call>"
        return whole(text)["input_ids"]

    run = TextEnvironment(ScriptedEngine(speak), whole, {"Calculator": calculate}, sampling=sampling()).run(["?"])
    assert run.histories[0].text == "?<request><Calculator>1+1<call>2<response>ok<submit>"
    assert len(asked) == 2


def test_limits_truncate_the_text():
    endless = writer("<request><Calculator>1+1<call>")
    run = environment(endless, max_turns=2).run(["?"])
    assert (run.counts.calls, run.counts.out_of_turns) == (2, 1)
    assert run.histories[0].truncated
    run = environment(endless, max_length=40).run(["?"])
    assert len(run.queries[0]) + len(run.responses[0]) <= 40
    assert run.histories[0].truncated
    run = environment(endless, max_turns=1, max_tool_response=3, tools={"Calculator": lambda query: "123456"}).run(
        ["?"]
    )
    assert run.histories[0].spans[2].text == "123 [cut off: 3 of 6 tokens]<response>"
    assert run.counts.shortened == 1


def test_rewards_are_asked_for_the_last_words():
    def reward(last_text_segments, answer):
        return [float(str(right) in text) for text, right in zip(last_text_segments, answer, strict=True)]

    engine = writer("<request><Calculator>2+2<call>", "=4<submit>")
    run = environment(engine, reward_fn=reward).run(["a?", "b?"], answer=[4, 5])
    assert run.rewards == [1.0, 0.0]
    assert [history.reward for history in run.histories] == [1.0, 0.0]
    with pytest.raises(RewardError, match="1 rewards for 2 texts"):
        environment(engine, reward_fn=lambda texts: [1.0]).run(["a?", "b?"])


def test_ending_the_text_completes_it_without_submitting():
    history = environment(writer("17")).run(["13+4?"]).histories[0]
    assert history.completed
    assert history.last_text_segment == "17<|end|>"


def test_an_empty_prompt_is_refused():
    with pytest.raises(ConfigError, match="give a prompt"):
        environment(writer("x"), prompt="").run([""])
