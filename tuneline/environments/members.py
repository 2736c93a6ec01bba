"""What an environment is: a fresh state at every reset, its public methods for tools, perhaps a reward of its own."""

from __future__ import annotations

import inspect
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any, Protocol

NOT_TOOLS = ("reset", "get_reward")


class Environment(Protocol):
    """What `environment_factory` makes; one instance a rollout, so that nothing is shared.

    Every other public method of its class is a tool. It may also have `get_reward() -> float | None`, plain or async,
    which is asked once the conversation is over.
    """

    def reset(self, **row: Any) -> Any:
        """Begin anew with a row of the dataset. A text goes to the end of the prompt's last message; a message, or a
        list of them, behind it; None leaves the prompt as it is."""
        ...


class Responder(ABC):
    """An environment that the policy talks to in words: it answers each turn that calls no tool."""

    @abstractmethod
    def respond(self, text: str) -> Any:
        """The answer to a turn, plain or awaitable; None ends the conversation."""


def environment_tools(environment: Any) -> dict[str, Callable[..., Any]]:
    """The public methods of an environment, bound to it; none of None."""
    if environment is None:
        return {}
    hidden = (*NOT_TOOLS, "respond") if isinstance(environment, Responder) else NOT_TOOLS
    return {
        name: getattr(environment, name)
        for name, _ in inspect.getmembers(type(environment), inspect.isfunction)  # of the class: no property is run
        if not name.startswith("_") and name not in hidden
    }
