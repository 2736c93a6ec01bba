"""Reward functions by name, as a configuration has them."""

from __future__ import annotations

import difflib
import functools
import importlib.util
import inspect
import os
from collections.abc import Callable
from importlib import import_module
from typing import Any

from tuneline.errors import ConfigError

# Where each built-in lies. What begins with `get_` makes a reward function from options, as in TRL.
BUILT_IN = {
    "accuracy_reward": "accuracy",
    "reasoning_accuracy_reward": "accuracy",
    "get_cosine_scaled_reward": "accuracy",
    "think_format_reward": "formats",
    "get_regex_reward": "formats",
    "get_json_schema_reward": "formats",
    "get_repetition_penalty_reward": "lengths",
    "get_soft_overlong_punishment": "lengths",
    "exact_match_reward": "matching",
    "numeric_match_reward": "matching",
    "get_code_execution_reward": "code",
}

NEED_MATH_VERIFY = ("accuracy_reward", "reasoning_accuracy_reward", "get_cosine_scaled_reward")


def get_reward(name: str, **options: Any) -> Callable[..., Any]:
    """A reward function by its name in `tuneline.rewards`, or by a dotted path (`package.module.function`).

    A name that begins with `get_`, which may be left out, is called with the options and returns the function, as is a
    class; to any other the options become keywords of each call: `get_reward("numeric_match_reward",
    relative_tolerance=0.01)`.

    Raises:
        ConfigError: no such function, options that it does not take, or a package that it needs and that is not there.
    """
    known = next((one for one in (name, f"get_{name}") if one in BUILT_IN), None)
    if known in NEED_MATH_VERIFY:
        require_math_verify(known)
    found = getattr(import_module(f"tuneline.rewards.{BUILT_IN[known]}"), known) if known else _by_path(name)
    makes = inspect.isclass(found) or (known or name.replace(":", ".").rpartition(".")[2]).startswith("get_")
    _check_options(name, found, options, is_complete=makes)
    if makes:
        try:
            return found(**options)
        except (TypeError, ValueError) as error:
            raise ConfigError(f"the reward {name!r} cannot be made with {options}: {error}.") from error
    return functools.partial(found, **options) if options else found


def require_math_verify(name: str) -> None:
    """Raises `ConfigError` where math-verify is not installed."""
    if importlib.util.find_spec("math_verify") is None:
        raise ConfigError(f"{name} needs math-verify, which is not installed: pip install 'tuneline[math]'.")


def is_model_name(name: str) -> bool:
    """Whether a name is a folder, or one on a hub (`owner/name`), and no reward function's."""
    return name not in BUILT_IN and "://" not in name and ("/" in name or os.path.isdir(name))


def _by_path(path: str) -> Callable[..., Any]:
    module_name, _, attribute = path.replace(":", ".").rpartition(".")
    if not module_name:
        near = difflib.get_close_matches(path, [*BUILT_IN, *(name.removeprefix("get_") for name in BUILT_IN)], n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"there are {', '.join(BUILT_IN)}."
        raise ConfigError(
            f"there is no reward {path!r}; {hint} A function of yours has a dotted path, a model a folder or a name "
            "with an owner."
        )
    try:
        module = import_module(module_name)
    except ImportError as error:
        raise ConfigError(f"the reward {path!r} cannot be imported: {error}.") from error
    found = getattr(module, attribute, None)
    if not callable(found):
        near = difflib.get_close_matches(attribute, dir(module), n=1)
        hint = f"; did you mean {near[0]!r}?" if near else "."
        raise ConfigError(f"the reward {path!r}: {module_name} has no function {attribute!r}{hint}")
    return found


def _check_options(name: str, found: Callable[..., Any], options: dict[str, Any], is_complete: bool) -> None:
    parameters = inspect.signature(found).parameters
    takes_all = any(p.kind == p.VAR_KEYWORD for p in parameters.values())
    # Behind `**columns` a misspelt option would pass for a column; those of built-ins are keyword-only.
    if takes_all and name not in BUILT_IN:
        return
    for option in options:
        if option not in parameters:
            near = difflib.get_close_matches(option, parameters, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"it takes {', '.join(parameters)}."
            raise ConfigError(f"the reward {name!r} has no option {option!r}; {hint}")
    if is_complete:
        missing = [p.name for p in parameters.values() if p.default is p.empty and p.name not in options]
        missing = [one for one in missing if parameters[one].kind in (inspect.Parameter.POSITIONAL_OR_KEYWORD,)]
        if missing:
            raise ConfigError(f"the reward {name!r} needs {', '.join(missing)}; give it as an option.")
