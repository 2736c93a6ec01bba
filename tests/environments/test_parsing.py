"""Tool calls read from text, well-formed or not."""

import pytest

from tests.environments.scripts import call, ids_of, tokenizer
from tuneline.environments.parsing import parse_by_template, parse_hermes, reply_parser
from tuneline.models.tiny import make_tokenizer

RESPONSE_TEMPLATE = {
    "defaults": {"role": "assistant"},
    "start_anchor": "<|assistant|>",
    "fields": {
        "tool_calls": {
            "open": "[CALL]",
            "close": "[/CALL]",
            "repeats": True,
            "content": "json",
            "transform": {"type": "function", "function": "{content}"},
        },
        "content": {"close": "<|end|>", "content": "text"},
    },
}


def hermes(text):
    return parse_hermes(tokenizer(), [], ids_of(text), [])


def test_words_and_calls_are_taken_apart_in_order():
    reply = hermes(f"Let me see. {call('add', a=1)}{call('sub', b=[2])}<|end|>")
    assert reply.content == "Let me see."
    assert [(one.name, one.arguments, one.error) for one in reply.calls] == [
        ("add", {"a": 1}, None),
        ("sub", {"b": [2]}, None),
    ]


def test_a_reply_without_calls_is_its_words_unchanged():
    assert hermes("  4 \n<|end|>").content == "  4 \n"
    assert hermes("4<|end|>").as_message() == {"role": "assistant", "content": "4"}


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        ('{"name": "add", "arguments": {"a": 1}', "not valid JSON"),
        ('{"name": 3}', '"name" and "arguments"'),
        ("[1]", '"name" and "arguments"'),
        ('{"name": "add", "arguments": [1]}', "not an object"),
        ('{"name": "add", "arguments": "{"}', "not valid JSON"),
        ("[" * 100_000, "nested too deeply"),
    ],
)
def test_a_malformed_call_is_a_call_with_its_error(body, reason):
    (one,) = hermes(f"<tool_call>{body}</tool_call><|end|>").calls
    assert reason in one.error


def test_a_call_that_is_not_closed_is_malformed_and_stays_among_the_words():
    reply = hermes('<tool_call>{"name": "add"}<|end|>')
    assert "not closed" in reply.calls[0].error
    assert reply.content == '<tool_call>{"name": "add"}'


def test_arguments_may_be_json_within_json():
    (one,) = hermes('<tool_call>{"name": "add", "arguments": "{\\"a\\": 1}"}</tool_call>').calls
    assert one.arguments == {"a": 1}


def test_a_tokenizer_with_a_response_template_says_how_its_calls_are_read():
    other = make_tokenizer()
    other.response_template = RESPONSE_TEMPLATE
    assert reply_parser(tokenizer()) is parse_hermes
    assert reply_parser(other) is parse_by_template

    def read(text):
        return parse_by_template(other, ids_of("<|assistant|>"), ids_of(text), [])

    reply = read('So: [CALL]{"name": "add", "arguments": {"a": 1}}[/CALL]<|end|>')
    assert [(one.name, one.arguments) for one in reply.calls] == [("add", {"a": 1})]
    assert reply.content.strip() == "So:"
    assert "cannot be read" in read('[CALL]{"name": [/CALL]<|end|>').calls[0].error
    assert read("4<|end|>").calls == []
