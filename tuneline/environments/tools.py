"""Functions as tools: what the policy is told of them, and what it is told when a call of them fails."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import Any

from transformers.utils import get_json_schema
from transformers.utils.chat_template_utils import DocstringParsingException, TypeHintParsingException

from tuneline.environments.calling import Outcome
from tuneline.environments.parsing import ToolCall
from tuneline.errors import ConfigError

Tools = Mapping[str, Callable[..., Any]]


def named_tools(tools: Iterable[Callable[..., Any]] | Tools | None) -> dict[str, Callable[..., Any]]:
    """Tools by the names that the policy calls them by: their own, or those of a mapping.

    Raises:
        ConfigError: one has no name, or two have the same.
    """
    if isinstance(tools, Mapping):
        return dict(tools)
    named: dict[str, Callable[..., Any]] = {}
    for tool in tools or ():
        name = getattr(tool, "__name__", None)
        if not callable(tool) or not isinstance(name, str):
            raise ConfigError(f"tools: {tool!r} is no function with a name; pass functions, sync or async.")
        if name in named:
            raise ConfigError(f"tools: two tools are named {name!r}, and a call could not tell them apart; rename one.")
        named[name] = tool
    return named


def tool_schemas(tools: Tools) -> list[dict[str, Any]]:
    """What the chat template is told of each tool, from its type hints and its docstring.

    Raises:
        ConfigError: a tool has no type hints or no docstring that describes its arguments.
    """
    schemas = []
    for name, tool in tools.items():
        try:
            schemas.append(get_json_schema(tool))
        except (DocstringParsingException, TypeHintParsingException) as error:
            reason = " ".join(str(error).split())
            raise ConfigError(
                f"tools: no schema can be made of {name!r} ({reason}); give every argument a type hint, and a line in "
                "an `Args:` block of the docstring."
            ) from error
    return schemas


def bind_call(tools: Tools, call: ToolCall) -> Callable[[], Any] | str:
    """The call, ready to be made; or why it cannot be, as it is told to the policy."""
    if call.error is not None:
        return call.error
    if call.name not in tools:
        return f"unknown tool {call.name!r}; the tools are {', '.join(tools) or 'none'}"
    tool = tools[call.name]
    try:
        inspect.signature(tool).bind(**call.arguments)
    except TypeError as error:
        return f"wrong arguments for {call.name!r}: {error}"
    return partial(tool, **call.arguments)


def error_text(reason: str) -> str:
    """How a failure reads in the conversation."""
    return str({"error": reason})


def outcome_text(outcome: Outcome, timeout: float | None) -> str:
    """What the policy reads of a call: its result, or what went wrong."""
    if outcome.error is None:
        return str(outcome.value)
    if outcome.timed_out:
        return error_text(f"the call took longer than {timeout:g} s" if timeout else str(outcome.error))
    return error_text(str(outcome.error) or type(outcome.error).__name__)
