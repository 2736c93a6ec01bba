"""Duplicates, held-out rows, and what overlaps them: told by the content of rows; order and chance play no part."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from typing import Any

from tuneline.data.formats import Messages

Row = dict[str, Any]

_CONTENT = ("prompt", "completion", "chosen", "rejected", "messages", "text", "tools")


def content_key(row: Row) -> str:
    """Equal for rows that say the same, whatever else they carry."""
    return _digest({name: _canonical(row[name]) for name in _CONTENT if name in row})


def prompt_key(row: Row) -> str:
    """Equal for rows that ask the same. A dialogue asks with all before its last answer, text with all of it."""
    if "prompt" in row:
        return _digest(_canonical(row["prompt"]))
    if "messages" in row:
        last = max(i for i, message in enumerate(row["messages"]) if message["role"] == "assistant")
        return _digest(_canonical(row["messages"][:last]))
    return content_key(row)


def answered_keys(row: Row) -> set[str]:
    """The prompt keys of all that a row shows an answer to: a dialogue answers at every turn of the assistant."""
    turns = row.get("messages") or row.get("prompt")
    keys = {prompt_key(row)}
    if isinstance(turns, list):
        answers = (i for i, message in enumerate(turns) if message["role"] == "assistant" and i)
        keys |= {_digest(_canonical(turns[:i])) for i in answers}
    return keys


def drop_duplicates(rows: Iterable[Row]) -> list[Row]:
    """The rows without those whose content came before."""
    first: dict[str, Row] = {}
    for row in rows:
        first.setdefault(content_key(row), row)
    return list(first.values())


def hold_out(rows: list[Row], fraction: float) -> tuple[list[Row], list[Row]]:
    """Rows to train on and rows held out, in their order; rows with one prompt stay together.

    A prompt is held out when its hash, read as a number from 0 to 1, is below `fraction`. So it stays where it is when
    other rows come or go, and the same prompt goes the same way in every source. Where that would leave a side empty,
    the prompt nearest to the border goes over, if there are two prompts.
    """
    keys = [prompt_key(row) for row in rows]
    ordered = sorted(set(keys))
    held_out = {key for key in ordered if int(key[:16], 16) < fraction * 16**16}
    if len(ordered) > 1 and not held_out:
        held_out = {ordered[0]}
    elif len(ordered) > 1 and len(held_out) == len(ordered):
        held_out.remove(ordered[-1])
    train = [row for row, key in zip(rows, keys, strict=True) if key not in held_out]
    return train, [row for row, key in zip(rows, keys, strict=True) if key in held_out]


def without_answers_to(rows: list[Row], keys: set[str]) -> list[Row]:
    """The rows that show no answer to any of these prompts."""
    return [row for row in rows if keys.isdisjoint(answered_keys(row))]


def _canonical(value: str | Messages) -> Any:
    """A single turn of the user and its bare text are the same."""
    if (
        isinstance(value, list)
        and len(value) == 1
        and set(value[0]) == {"role", "content"}
        and value[0]["role"] == "user"
    ):
        return value[0]["content"]
    return value


def _digest(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()
