"""Tool calls read from what a policy wrote.

Families write them differently. A tokenizer with a `response_template` (transformers 5) says how; for all others the
notation of Hermes and Qwen is read: `<tool_call>{"name": ..., "arguments": {...}}</tool_call>`. Another family is one
more `ReplyParser`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from transformers import PreTrainedTokenizerBase

UNREADABLE = "unknown"  # the name of a call whose own cannot be read
_HERMES = re.compile(r"<tool_call>(.*?)(</tool_call>|\Z)", re.DOTALL)


@dataclass(frozen=True)
class ToolCall:
    """A call as the policy wrote it; `error` says what is wrong where it is none."""

    name: str
    arguments: dict[str, Any] = field(default_factory=dict)
    error: str | None = None

    def as_message_part(self) -> dict[str, Any]:
        return {"type": "function", "function": {"name": self.name, "arguments": self.arguments}}


@dataclass(frozen=True)
class Reply:
    """A turn of the policy: its words, with calls that cannot be read among them, and its calls, in order."""

    content: str
    calls: list[ToolCall] = field(default_factory=list)
    reasoning: str | None = None

    def as_message(self) -> dict[str, Any]:
        """The turn in the notation of chat templates."""
        message: dict[str, Any] = {"role": "assistant", "content": self.content}
        if self.reasoning is not None:
            message["reasoning_content"] = self.reasoning
        if self.calls:
            message["tool_calls"] = [call.as_message_part() for call in self.calls]
        return message


class ReplyParser(Protocol):
    """Reads a turn of the policy. It never raises on what a policy wrote: a malformed call is a call with an error."""

    def __call__(
        self, tokenizer: PreTrainedTokenizerBase, prefix_ids: Sequence[int], ids: Sequence[int], schemas: list[dict]
    ) -> Reply:
        """`prefix_ids` is all before the turn, `ids` the turn, `schemas` those of its tools."""
        ...


def reply_parser(tokenizer: PreTrainedTokenizerBase) -> ReplyParser:
    """The parser that goes with a tokenizer."""
    return parse_hermes if tokenizer.response_template is None else parse_by_template


def parse_hermes(
    tokenizer: PreTrainedTokenizerBase, prefix_ids: Sequence[int], ids: Sequence[int], schemas: list[dict]
) -> Reply:
    """Calls as Hermes and Qwen2 write them. One that is not closed is malformed."""
    text = decoded(tokenizer, ids)
    calls, words = [], text
    for match in _HERMES.finditer(text):
        body, closed = match.groups()
        calls.append(_json_call(body) if closed else ToolCall(UNREADABLE, error="it is not closed by </tool_call>"))
        if calls[-1].error is None:
            words = words.replace(match.group(), "")
    if not calls:
        return Reply(_plain(tokenizer, ids))
    return Reply(without_special_tokens(tokenizer, words).strip(), calls)


def parse_by_template(
    tokenizer: PreTrainedTokenizerBase, prefix_ids: Sequence[int], ids: Sequence[int], schemas: list[dict]
) -> Reply:
    """Calls as the tokenizer's own `response_template` says."""
    try:
        message: Any = tokenizer.parse_response(list(ids), prefix=list(prefix_ids), tools=schemas or None)
    except ValueError as error:  # how transformers says that a part of the text is not what its place demands
        reason = " ".join(str(error).split())
        return Reply(_plain(tokenizer, ids), [ToolCall(UNREADABLE, error=f"the call cannot be read: {reason}")])
    calls = [_call(part.get("function")) for part in message.get("tool_calls") or []]
    content = without_special_tokens(tokenizer, message.get("content") or "")
    return Reply(content, calls, message.get("reasoning_content") or message.get("thinking"))


def without_special_tokens(tokenizer: PreTrainedTokenizerBase, text: str) -> str:
    """The text with the tokenizer's special tokens taken out."""
    for token in tokenizer.all_special_tokens:
        text = text.replace(token, "")
    return text


def _json_call(body: str) -> ToolCall:
    try:
        return _call(json.loads(body))
    except json.JSONDecodeError as error:
        return ToolCall(UNREADABLE, error=f"the call is not valid JSON ({error})")
    except RecursionError:
        return ToolCall(UNREADABLE, error="the call is nested too deeply")


def _call(function: Any) -> ToolCall:
    if not isinstance(function, dict) or not isinstance(function.get("name"), str):
        return ToolCall(UNREADABLE, error='a call is an object with "name" and "arguments"')
    arguments = function.get("arguments", {})
    if isinstance(arguments, str):  # OpenAI's notation: JSON within JSON
        try:
            arguments = json.loads(arguments)
        except (json.JSONDecodeError, RecursionError):
            return ToolCall(function["name"], error="the arguments are not valid JSON")
    if not isinstance(arguments, dict):
        return ToolCall(function["name"], error="the arguments are not an object of names and values")
    return ToolCall(function["name"], arguments)


def decoded(tokenizer: PreTrainedTokenizerBase, ids: Sequence[int]) -> str:
    """The text of token ids, special tokens included."""
    text = tokenizer.decode(list(ids), skip_special_tokens=False)
    assert isinstance(text, str)
    return text


def _plain(tokenizer: PreTrainedTokenizerBase, ids: Sequence[int]) -> str:
    text = tokenizer.decode(list(ids), skip_special_tokens=True)
    assert isinstance(text, str)
    return text
