"""Environments with `reset` and `step`, such as OpenEnv's, for conversations.

OpenEnv's clients answer `reset(**options)` and `step(action)` with a result that holds an observation, a reward and
whether the episode is over. Nothing of OpenEnv is imported: whatever has these methods fits, plain or async.
"""

from __future__ import annotations

import inspect
from collections.abc import Awaitable, Callable, Iterable
from typing import Any, Protocol

from tuneline.environments.members import Responder


class StepResult(Protocol):
    """What a step gives."""

    @property
    def observation(self) -> Any: ...
    @property
    def reward(self) -> float | None: ...
    @property
    def done(self) -> bool: ...


class Stepping(Protocol):
    """What is adapted."""

    def reset(self, **options: Any) -> StepResult | Awaitable[StepResult]: ...
    def step(self, action: Any) -> StepResult | Awaitable[StepResult]: ...


class StepEnvironment(Responder):
    """Each turn of the policy is an action; the observation is what it reads next. The reward is the sum over steps.

    Use it as `environment_factory=lambda: StepEnvironment(EchoEnv(base_url), make_action)`.

    Args:
        stepping: the environment, or a client of it.
        make_action: an action from the policy's words; where it raises, the policy reads why, and may try again.
        show: an observation as the text that the policy reads.
        reset_columns: columns of the row that `stepping.reset` takes as keywords, such as `seed`.

    Attributes:
        total_reward: the sum of the rewards since the reset; None as long as no step gave one.
        done: the environment has said that the episode is over.
        num_steps: since the reset.
    """

    def __init__(
        self,
        stepping: Stepping,
        make_action: Callable[[str], Any] = str.strip,
        *,
        show: Callable[[Any], str] = str,
        reset_columns: Iterable[str] = (),
    ):
        self.stepping = stepping
        self.make_action = make_action
        self.show = show
        self.reset_columns = tuple(reset_columns)
        self.total_reward: float | None = None
        self.done = False
        self.num_steps = 0

    def reset(self, **row: Any) -> Any:
        """The text of the first observation; none where there is none to show."""
        self.total_reward, self.done, self.num_steps = None, False, 0
        result = self.stepping.reset(**{column: row[column] for column in self.reset_columns})
        return self._later(result, self._shown) if inspect.isawaitable(result) else self._shown(result)

    def respond(self, text: str) -> Any:
        """Take a step; the text of what it showed, or None once the episode is over."""
        if self.done:
            return None
        result = self.stepping.step(self.make_action(text))
        return self._later(result, self._after_step) if inspect.isawaitable(result) else self._after_step(result)

    def get_reward(self) -> float | None:
        return self.total_reward

    def _after_step(self, result: StepResult) -> str | None:
        self.num_steps += 1
        if result.reward is not None:
            self.total_reward = (self.total_reward or 0.0) + float(result.reward)
        self.done = bool(result.done)
        return None if self.done else self.show(result.observation)

    def _shown(self, result: StepResult) -> str | None:
        return None if result.observation is None else self.show(result.observation)

    @staticmethod
    async def _later(result: Awaitable[StepResult], then: Callable[[StepResult], str | None]) -> str | None:
        return then(await result)
