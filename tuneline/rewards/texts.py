"""What a completion says, in whichever notation it comes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tuneline.errors import RewardError

Completion = str | list[dict[str, Any]]


def completion_text(completion: Completion) -> str:
    """The text of a completion; of a conversation what the assistant said last.

    Raises:
        RewardError: it is neither text nor messages.
    """
    if isinstance(completion, str):
        return completion
    if isinstance(completion, list) and all(isinstance(message, Mapping) for message in completion):
        spoken = [message for message in completion if message.get("role", "assistant") == "assistant"]
        content = spoken[-1].get("content") if spoken else ""
        if isinstance(content, list):  # parts, as vision models have them
            return "".join(part.get("text", "") for part in content if isinstance(part, Mapping))
        return content or ""
    raise RewardError(f"a completion is {completion!r:.80}, which is neither text nor a list of messages.")
