"""The environments of a run: made by factories, one instance a rollout, used again after a reset."""

from __future__ import annotations

import asyncio
import inspect
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

from tuneline.data.formats import Messages
from tuneline.environments.calling import ConcurrentCalls, Outcome, is_async
from tuneline.environments.members import Responder, environment_tools
from tuneline.errors import ConfigError, DataError, RolloutError

ENVIRONMENT_COLUMN = "environment"
EnvironmentFactory = Callable[[], Any]


class EnvironmentPool:
    """Instances for as many rollouts as a batch has; more are made where they do not suffice.

    Args:
        factory: makes an environment; or several by name, and the column `environment` of a row says which it uses.
        calls: runs factories and resets, all of a batch at once.
        timeout: seconds for making an environment, and for a reset.

    Raises:
        ConfigError: there is no factory, or what it makes is no environment.
        RolloutError: a factory failed or took too long.
    """

    def __init__(
        self,
        factory: EnvironmentFactory | Mapping[str, EnvironmentFactory],
        calls: ConcurrentCalls,
        *,
        timeout: float | None = 300.0,
    ):
        self.by_name = isinstance(factory, Mapping)
        self._factories: dict[str, EnvironmentFactory] = (
            dict(factory) if isinstance(factory, Mapping) else {"": factory}
        )
        if not self._factories:
            raise ConfigError("environment_factory={} names no environment; pass one factory, or one a name.")
        self._calls = calls
        self._timeout = timeout
        self._instances: dict[str, list[Any]] = {name: [] for name in self._factories}
        self._grow(dict.fromkeys(self._factories, 1))
        for name in self._factories:
            _check(name, self._instances[name][0])

    @property
    def has_tools(self) -> bool:
        return any(environment_tools(instances[0]) for instances in self._instances.values())

    @property
    def has_responders(self) -> bool:
        return any(isinstance(instances[0], Responder) for instances in self._instances.values())

    def tools(self) -> dict[str, dict[str, Callable[..., Any]]]:
        """The tools of each environment by its name, such as for making their schemas before the run."""
        return {name: environment_tools(instances[0]) for name, instances in self._instances.items()}

    def reward_functions(self) -> list[Callable[..., Any]]:
        """One for each class with a `get_reward`, under the class's name; None for rollouts of other classes."""
        classes = dict.fromkeys(type(instances[0]) for instances in self._instances.values())
        return [own_reward(one) for one in classes if callable(inspect.getattr_static(one, "get_reward", None))]

    def acquire(self, rows: Sequence[Mapping[str, Any]]) -> list[Any]:
        """An environment for each row, all different; those of the batch before are used again.

        Raises:
            DataError: a row names no known environment.
            RolloutError: a factory failed or took too long.
        """
        names = [self._name(row) for row in rows]
        wanted = Counter(names)
        self._grow({name: count - len(self._instances[name]) for name, count in wanted.items()})
        unused = {name: iter(self._instances[name]) for name in wanted}
        return [next(unused[name]) for name in names]

    def reset(
        self, environments: Sequence[Any], rows: Sequence[Mapping[str, Any]], prompts: Sequence[Messages]
    ) -> list[Messages]:
        """Reset all at once, each with its row, and give the prompts with what the resets returned.

        Raises:
            RolloutError: a reset failed, took too long, or returned what is no text or message.
        """
        calls = [
            partial(environment.reset, **self._reset_arguments(row))
            for environment, row in zip(environments, rows, strict=True)
        ]
        outcomes = self._calls.run(calls, self._timeout)
        observed = [
            _value(outcome, f"{type(environment).__name__}.reset", self._timeout)
            for environment, outcome in zip(environments, outcomes, strict=True)
        ]
        return [with_observation(prompt, value) for prompt, value in zip(prompts, observed, strict=True)]

    def _reset_arguments(self, row: Mapping[str, Any]) -> dict[str, Any]:
        return {column: value for column, value in row.items() if not (self.by_name and column == ENVIRONMENT_COLUMN)}

    def _name(self, row: Mapping[str, Any]) -> str:
        if not self.by_name:
            return ""
        name = row.get(ENVIRONMENT_COLUMN)
        if name not in self._factories:
            raise DataError(
                f"A row's {ENVIRONMENT_COLUMN!r} is {name!r}, and environment_factory has {sorted(self._factories)}; "
                "name one of these in every row."
            )
        return str(name)

    def _grow(self, missing: Mapping[str, int]) -> None:
        names = [name for name, count in missing.items() for _ in range(count)]
        outcomes = self._calls.run([self._factories[name] for name in names], self._timeout)
        for name, outcome in zip(names, outcomes, strict=True):
            instance = _value(outcome, f"environment_factory {name}".strip(), self._timeout)
            if any(instance is known for known in self._instances[name]):
                raise ConfigError(
                    f"environment_factory gave the same {type(instance).__name__} twice, and rollouts would share its "
                    "state; make a new one at every call."
                )
            self._instances[name].append(instance)


def with_observation(prompt: Messages, observation: Any) -> Messages:
    """A prompt with what a reset returned; the prompt itself is left as it was.

    Raises:
        RolloutError: the observation is neither text, nor messages, nor content parts.
    """
    match observation:
        case None:
            return list(prompt)
        case str() if not prompt:
            return [{"role": "user", "content": observation}]
        case str():
            last = prompt[-1]
            if isinstance(last["content"], list):
                return [*prompt[:-1], {**last, "content": [*last["content"], {"type": "text", "text": observation}]}]
            return [*prompt[:-1], {**last, "content": (last["content"] or "") + observation}]
        case {"role": _}:
            return [*prompt, dict(observation)]
        case [{"role": _}, *_]:
            return [*prompt, *observation]
        case [{"type": _}, *_] if prompt:
            content = prompt[-1]["content"]
            parts = content if isinstance(content, list) else [{"type": "text", "text": content}]
            return [*prompt[:-1], {**prompt[-1], "content": [*parts, *observation]}]
    raise RolloutError(
        f"An environment's reset returned {str(observation)[:80]!r}, a {type(observation).__name__}; return a text, a "
        "message, a list of messages, or None."
    )


def own_reward(environment_class: type) -> Callable[..., Any]:
    """A reward function that asks each environment of exactly this class for its own reward; None for the others."""
    asks: Callable[..., Any] = environment_class.get_reward  # type: ignore[attr-defined]

    def score(environments: Sequence[Any], **columns: Any) -> list[float | None]:
        return [asks(one) if type(one) is environment_class else None for one in environments]

    async def score_async(environments: Sequence[Any], **columns: Any) -> list[float | None]:
        asked = [one for one in environments if type(one) is environment_class]
        rewards = iter(await asyncio.gather(*map(asks, asked)))
        return [next(rewards) if type(one) is environment_class else None for one in environments]

    function = score_async if is_async(asks) else score
    function.__name__ = environment_class.__name__
    return function


def _check(name: str, instance: Any) -> None:
    if not callable(inspect.getattr_static(type(instance), "reset", None)):
        raise ConfigError(
            f"environment_factory{f'[{name!r}]' if name else ''} made a {type(instance).__name__}, which has no method "
            "`reset`; give it one that takes the row's columns: reset(self, **row)."
        )


def _value(outcome: Outcome, what: str, timeout: float | None) -> Any:
    if outcome.error is None:
        return outcome.value
    if outcome.timed_out and not str(outcome.error):
        raise RolloutError(f"{what} took longer than {timeout:g} s." if timeout else f"{what} took too long.")
    raise RolloutError(f"{what} failed: {type(outcome.error).__name__}: {outcome.error}") from outcome.error
