"""Rows of any source as the rows that the line works on, or the reason why they cannot be.

Out come TRL's formats, with explicit prompts: `prompt` and `completion`, `messages` or `text` to learn from; `prompt`,
`chosen` and `rejected` to compare; `prompt` to ask. In goes what data sets for TRL, ShareGPT and hh-rlhf look like.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from tuneline.data.dialogues import is_marked_dialogue, prompt_turns, split_turns
from tuneline.data.formats import Messages, extract_prompt, is_messages, is_sharegpt, to_messages
from tuneline.data.readers import BadRow, SourceRow

_CONTENT = ("prompt", "completion", "chosen", "rejected", "margin", "messages", "text")
_NOT_COLUMNS = ("prompts", "completions", "completion_ids", "trainer_state", "log_extra", "log_metric", "environments")
_READ_OF_QUESTIONS = ("prompt", "messages", "conversations", "completion", "chosen", "rejected", "margin")
ROLES = ("system", "developer", "user", "assistant", "tool")
Row = dict[str, Any]


class UnfitError(Exception):
    """A row that is not what it should be: the field and the reason."""

    def __init__(self, field: str | None, reason: str):
        super().__init__(reason)
        self.field = field
        self.reason = reason


@dataclass
class Validator:
    """Turns the rows of one source into one kind of row, all of the same columns and notation as its first good row."""

    convert: Callable[[Row], Row]
    _columns: dict[str, str] | None = None

    def __call__(self, row: SourceRow) -> Row | BadRow:
        try:
            converted = self.convert(row.values)
            _check_unicode(converted)
            columns = {name: _notation(value) for name, value in converted.items() if name in _CONTENT}
            if self._columns is None:
                self._columns = columns
            elif columns != self._columns:
                reason = f"has {_described(columns)}, and the first row of its source {_described(self._columns)}"
                raise UnfitError(None, reason)
        except UnfitError as unfit:
            return BadRow(row.file, row.number, unfit.field, unfit.reason, row.values)
        return converted


def demonstration(values: Row) -> Row:
    """A row to learn from: `prompt` and `completion`, `messages`, or `text`.

    Raises:
        UnfitError: none of these, or one of them is empty or malformed.
    """
    if values.get("prompt") is not None or values.get("completion") is not None:
        prompt, completion = _prompt_with(values, "completion")
        return {"prompt": prompt, "completion": completion} | _named(values, "task", "solution") | _tools(values)
    for field in ("messages", "conversations", "text"):
        if (value := values.get(field)) is None:
            continue
        if field == "text" and not is_marked_dialogue(value):
            return {"text": _text(value, field)}
        messages = split_turns(value) if is_marked_dialogue(value) else _messages(value, field)
        if not any(message["role"] == "assistant" for message in messages):
            raise UnfitError(field, "has no turn of the assistant to learn from")
        _check_filled(messages, field)
        return {"messages": messages} | _named(values, "task", "solution") | _tools(values)
    raise UnfitError(None, f"has none of 'prompt', 'messages', 'conversations', 'text'; it has {_listed(values)}")


def preference(values: Row) -> Row:
    """A row to compare: `prompt`, `chosen`, `rejected`, with its `margin`, `task` and `solution` if it has them.

    Without a prompt of its own a row's prompt is what both sides begin with.

    Raises:
        UnfitError: a side is missing, empty or malformed, or the sides do not answer the same prompt.
    """
    for field in ("chosen", "rejected"):
        if values.get(field) is None:
            raise UnfitError(field, f"is missing; the row has {_listed(values)}")
    prompt = values.get("prompt")
    sides = {field: _whole(values[field], field) for field in ("chosen", "rejected")}
    if isinstance(sides["chosen"], str) != isinstance(sides["rejected"], str):
        raise UnfitError("rejected", "is in another notation than 'chosen': one is text, the other a list of messages")
    is_whole_dialogue = isinstance(sides["chosen"], list) and sides["chosen"][0]["role"] != "assistant"
    if prompt is None or is_whole_dialogue:
        shared = extract_prompt(sides)
        if not shared["prompt"]:
            raise UnfitError("prompt", "is missing, and 'chosen' and 'rejected' begin with nothing in common")
        prompt, sides = shared["prompt"], {field: shared[field] for field in ("chosen", "rejected")}
        prompt = _prompt(prompt)
    else:
        prompt = _prompt(prompt)
        sides = {field: _in_notation_of(prompt, sides[field], field) for field in sides}
    for field, side in sides.items():
        _check_completion(side, field)
    row: Row = {"prompt": prompt, **sides}
    if values.get("margin") is not None:
        row["margin"] = _number(values["margin"], "margin")
    return row | _named(values, "task", "solution") | _tools(values)


def question(values: Row) -> Row:
    """A row to ask: `prompt`, with its `solution`, `task`, `chosen` and `rejected` if it has them.

    Raises:
        UnfitError: no prompt, or one that is empty or malformed.
    """
    if values.get("chosen") is not None and values.get("rejected") is not None:
        row = preference(values)
        return {name: row[name] for name in row if name != "margin"}
    for field in ("prompt", "messages", "conversations"):
        if (value := values.get(field)) is None:
            continue
        if field == "prompt":
            prompt = _prompt(value)
        else:
            messages = _messages(value, field)
            prompt = _prompt(messages[:-1] if messages[-1]["role"] == "assistant" else messages)
        return {"prompt": prompt} | _named(values, "task", "solution") | _tools(values)
    raise UnfitError("prompt", f"is missing; the row has {_listed(values)}")


def rewarded_question(values: Row) -> Row:
    """A row to ask and to reward: `prompt`, and every other column as it is, for a reward function to read.

    Raises:
        UnfitError: no prompt, one that is empty or malformed, or a column named as what a reward function is given.
    """
    for name in _NOT_COLUMNS:
        if name in values:
            raise UnfitError(name, "is the name of what reward functions are given; call the column something else")
    asked = question({name: value for name, value in values.items() if name not in ("chosen", "rejected")})
    further = {name: value for name, value in values.items() if name not in _READ_OF_QUESTIONS and name not in asked}
    return asked | further


def _prompt_with(values: Row, field: str) -> tuple[str | Messages, str | Messages]:
    for needed in ("prompt", field):
        if values.get(needed) is None:
            raise UnfitError(needed, f"is missing; the row has {_listed(values)}")
    prompt = _prompt(values["prompt"])
    completion = _in_notation_of(prompt, _whole(values[field], field), field)
    _check_completion(completion, field)
    return prompt, completion


def _prompt(value: Any) -> str | Messages:
    if is_marked_dialogue(value):
        value = prompt_turns(value)
    if isinstance(value, str):
        return _text(value, "prompt")
    messages = _messages(value, "prompt")
    if messages[-1]["role"] not in ("user", "tool", "assistant"):
        raise UnfitError("prompt", f"ends with the role {messages[-1]['role']!r}, and nobody is asked")
    _check_filled(messages, "prompt")
    return messages


def _whole(value: Any, field: str) -> str | Messages:
    """A side or completion, before its prompt is taken off it."""
    if is_marked_dialogue(value):
        return split_turns(value)
    if isinstance(value, str):
        return _text(value, field)
    return _messages(value, field)


def _in_notation_of(prompt: str | Messages, completion: str | Messages, field: str) -> str | Messages:
    """A completion in the notation of its prompt: text that answers messages is the assistant's."""
    if isinstance(prompt, list) and isinstance(completion, str):
        return [{"role": "assistant", "content": completion.strip()}]
    if isinstance(prompt, str) and isinstance(completion, list):
        raise UnfitError(field, "is a list of messages, and 'prompt' is text; give both in one notation")
    return completion


def _check_completion(value: str | Messages, field: str) -> None:
    if isinstance(value, str):
        _text(value, field)
        return
    if value[-1]["role"] != "assistant":
        raise UnfitError(field, f"ends with the role {value[-1]['role']!r} and not with the assistant")
    if any(message["role"] == "user" for message in value):
        raise UnfitError(
            field, "goes on after a turn of the user; the two sides of a pair may differ in the last answer"
        )
    _check_filled(value, field)


def _text(value: Any, field: str) -> str:
    if not isinstance(value, str):
        raise UnfitError(field, f"is a {type(value).__name__} and neither text nor a list of messages: {_shown(value)}")
    if not value.strip():
        raise UnfitError(field, "is empty")
    return value


def _messages(value: Any, field: str) -> Messages:
    if isinstance(value, list) and not value:
        raise UnfitError(field, "is an empty list of messages")
    if not is_messages(value) and not is_sharegpt(value):
        _text(value, field)
        raise UnfitError(field, f"is no list of messages: {_shown(value)}")
    if not all(isinstance(message, dict) for message in value):
        raise UnfitError(field, f"holds something that is no message: {_shown(value)}")
    messages = to_messages(value)
    for number, message in enumerate(messages, 1):
        role, content = message.get("role"), message.get("content")
        if role not in ROLES:
            raise UnfitError(field, f"message {number} has the role {role!r}; known are {', '.join(ROLES)}")
        if isinstance(content, list):
            message["content"] = _joined_parts(content, field, number)
        elif not isinstance(content, str) and not (content is None and message.get("tool_calls")):
            raise UnfitError(field, f"message {number} has no text as its content: {_shown(content)}")
    return messages


def _joined_parts(parts: list, field: str, number: int) -> str:
    for part in parts:
        if not isinstance(part, dict) or part.get("type") != "text" or not isinstance(part.get("text"), str):
            raise UnfitError(field, f"message {number} has a part that is no text: {_shown(part)}")
    return "".join(part["text"] for part in parts)


def _check_filled(messages: Messages, field: str) -> None:
    for number, message in enumerate(messages, 1):
        is_asked = message["role"] in ("user", "assistant") and not message.get("tool_calls")
        if is_asked and not (message.get("content") or "").strip():
            raise UnfitError(field, f"message {number}, of the {message['role']}, is empty")


def _number(value: Any, field: str) -> float:
    try:
        number = float(value)
    except (TypeError, ValueError):
        raise UnfitError(field, f"is no number: {_shown(value)}") from None
    if not math.isfinite(number):
        raise UnfitError(field, f"is {number} and not finite")
    return number


def _named(values: Row, *fields: str) -> Row:
    return {field: str(values[field]) for field in fields if values.get(field) is not None}


def _tools(values: Row) -> Row:
    """The tools of a row as JSON, in which form they have the same type in all rows."""
    tools = values.get("tools")
    if not tools:
        return {}
    if isinstance(tools, str):
        try:
            tools = json.loads(tools)
        except json.JSONDecodeError as error:
            raise UnfitError("tools", f"is not JSON: {error}") from None
    if not isinstance(tools, list):
        raise UnfitError("tools", f"is no list: {_shown(tools)}")
    return {"tools": json.dumps(tools, ensure_ascii=False)}


def _check_unicode(row: Row) -> None:
    for field, value in row.items():
        try:
            json.dumps(value, ensure_ascii=False).encode()
        except UnicodeEncodeError:
            raise UnfitError(field, "holds half of a surrogate pair, which is no character") from None


def _notation(value: Any) -> str:
    return "messages" if isinstance(value, list) else "number" if isinstance(value, float) else "text"


def _described(columns: dict[str, str]) -> str:
    return ", ".join(f"{name!r} ({notation})" for name, notation in columns.items())


def _listed(values: Row) -> str:
    return ", ".join(map(repr, values)) or "no fields"


def _shown(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False, default=str)
    return text if len(text) <= 60 else text[:57] + "..."
