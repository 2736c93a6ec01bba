"""Messages with pictures, in the notation that processors of vision-language models read."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from tuneline.data.formats import Messages
from tuneline.errors import DataError

ROLES = ("system", "user", "assistant", "tool")


def prepare_multimodal_messages(messages: Sequence[Mapping[str, Any]], images: Sequence[Any] | None = None) -> Messages:
    """Messages whose content is a list of parts, with the images in their places. Name and results as in TRL 1.16.

    Strings become text parts. Where the first user's message is a string, places for all images go before it; messages
    that have parts already name the places themselves (`{"type": "image"}`). A part that holds an image keeps it, and
    what a tool answered is left alone. Nothing that comes in is changed in place.

    Raises:
        DataError: an unknown role, or another number of images than of places.
    """
    waiting = list(images or [])
    structured: Messages = []
    places_made = False
    for message in messages:
        role, content = message["role"], message.get("content")
        if role not in ROLES:
            raise DataError(f"A message has the role {role!r}; use one of {', '.join(ROLES)}.")
        if isinstance(content, str):
            parts: list[dict[str, Any]] = [{"type": "text", "text": content}]
            if role == "user" and not places_made:
                parts = [{"type": "image"} for _ in waiting] + parts
                places_made = True
            message = {**message, "content": parts}
        structured.append(dict(message))

    num_places = sum(_is_place(part) for message in _with_places(structured) for part in message["content"])
    if num_places != len(waiting):
        raise DataError(f"The messages have {num_places} places for images, and {len(waiting)} images are given.")
    left = iter(waiting)
    for message in _with_places(structured):
        message["content"] = [{**part, "image": next(left)} if _is_place(part) else part for part in message["content"]]
    return structured


def _with_places(messages: Messages) -> list[dict[str, Any]]:
    return [message for message in messages if message.get("content") and message["role"] != "tool"]


def _is_place(part: Mapping[str, Any]) -> bool:
    return part["type"] == "image" and "image" not in part
