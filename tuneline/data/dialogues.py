"""Dialogues in one string, as in hh-rlhf: every turn begins with `Human:` or `Assistant:` after an empty line."""

from __future__ import annotations

import re
from typing import Any

from tuneline.data.formats import Messages

_TURN = re.compile(r"\n\n(Human|Assistant):")
_ROLE_OF = {"Human": "user", "Assistant": "assistant"}


def is_marked_dialogue(value: Any) -> bool:
    """Whether a string begins with a human's turn and holds one of the assistant's."""
    return isinstance(value, str) and value.startswith("\n\nHuman:") and "\n\nAssistant:" in value


def split_turns(text: str) -> Messages:
    """The turns of a marked dialogue as messages, without the white space around them."""
    _, *parts = _TURN.split(text)
    return [
        {"role": _ROLE_OF[mark], "content": content.strip()}
        for mark, content in zip(parts[::2], parts[1::2], strict=True)
    ]


def prompt_turns(text: str) -> Messages:
    """The turns of a marked prompt; the assistant's mark at its end, which asks for an answer, is no turn."""
    turns = split_turns(text)
    if turns[-1] == {"role": "assistant", "content": ""}:
        turns.pop()
    return turns
