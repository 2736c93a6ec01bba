"""Several reward functions on the completions of a step, while the caller does other work.

>>> def is_short(completions, **columns):
...     return [1.0 if len(text) < 10 else 0.0 for text in completions]
>>> def agrees(completions, answer, **columns):
...     return [None if right is None else float(right in text) for text, right in zip(completions, answer)]
>>> rewards = RewardFunctions([is_short, agrees], weights=[0.5, 1.0])
>>> pending = rewards.start(
...     prompts=["1 + 1 =", "2 + 2 ="],
...     completions=["2", "it is 4, I think"],
...     completion_ids=[[7], [3, 1, 4]],
...     columns={"answer": ["2", None]},
... )
>>> scores = pending.result()  # the caller may do much between the two
>>> scores.names, scores.values.tolist()
(['is_short', 'agrees'], [[1.0, 1.0], [0.0, nan]])
>>> rewards.close()
"""

from __future__ import annotations

import functools
import threading
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor, nn

from tuneline.errors import ConfigError, RewardError
from tuneline.logging import get_logger
from tuneline.rewards.batch import Batch
from tuneline.rewards.choosing import get_reward, is_model_name
from tuneline.rewards.running import EventLoop, Function, Outcome, OwnsModel, SharesPolicy
from tuneline.rewards.urls import is_url, url_reward

logger = get_logger(__name__)

RewardFunction = Callable[..., list[float | None] | Awaitable[list[float | None]]]
_MOST_REASONS_LOGGED = 20


@dataclass(frozen=True)
class Scores:
    """What the functions gave for a batch.

    Attributes:
        values: (rollouts, functions), float32, in each function's own unit; NaN where one gave None or was lost.
        names: of the functions, as metrics have them (`rewards/NAME/mean`).
        failures: for each function the number of samples it lost: raised, out of time, no number.
        reasons: one line for each function and reason, with the samples.
        extras: columns that functions logged with `log_extra`, one value a rollout, None where there is none.
        metrics: what functions logged with `log_metric`, averaged.
        seconds: how long each function took.
    """

    values: Tensor
    names: list[str]
    failures: dict[str, int]
    reasons: list[str]
    extras: dict[str, list] = field(default_factory=dict)
    metrics: dict[str, float] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)


class Pending:
    """Rewards on their way."""

    def __init__(
        self, threads: list[threading.Thread], of_the_caller: list[Callable[[], None]], finish: Callable[[], Scores]
    ):
        self._threads = threads
        self._of_the_caller = of_the_caller
        self._finish = finish

    def is_done(self) -> bool:
        return not self._of_the_caller and not any(thread.is_alive() for thread in self._threads)

    def result(self) -> Scores:
        """Call the functions that compute with the policy, and wait for all others; each of these is given up after
        two times its time-out (see `running`).

        Raises:
            RewardError: with `on_error="raise"`, naming the function and the sample.
            ConfigError: a function was given a setting that it cannot work with; no sample is at fault.
        """
        while self._of_the_caller:
            self._of_the_caller.pop(0)()
        for thread in self._threads:
            thread.join()
        return self._finish()


class RewardFunctions:
    """Reward functions with TRL's signature, models and URLs, called together.

    A function is called with keywords: `prompts`, `completions`, `completion_ids`, the columns of the dataset,
    `trainer_state`, `log_extra(column, values)`, `log_metric(name, value)`, and `environments` where there are some;
    one without `**kwargs` is given those that it names. It returns one number or None a completion. Asynchronous ones
    run concurrently on one event loop, others in a thread each: functions that share state must guard it.

    Args:
        functions: each a function, a sequence classifier, a URL (see `url_reward`), the name of a built-in or a dotted
            path (see `get_reward`), or the name or folder of a sequence classifier.
        weights: one a function, 1 by default. They are kept for the caller and not applied to `Scores.values`.
        tokenizers: one a function, None for those that are no model; by default a model's own.
        timeout: seconds that one call may take.
        on_error: what a call costs that raises, hangs, or returns no numbers: its samples (`skip`: NaN, counted,
            logged once a reason), or the run (`raise`).

    Raises:
        ConfigError, ModelError: a name, a number of weights or a model that cannot be used.
    """

    def __init__(
        self,
        functions: RewardFunction | str | nn.Module | Sequence[RewardFunction | str | nn.Module],
        *,
        weights: Sequence[float] | None = None,
        tokenizers: Any = None,
        timeout: float = 60.0,
        on_error: Literal["skip", "raise"] = "skip",
    ):
        functions = list(functions) if isinstance(functions, list | tuple) else [functions]  # type: ignore[list-item]
        tokenizers = list(tokenizers) if isinstance(tokenizers, list | tuple) else [tokenizers] * len(functions)
        weights = [1.0] * len(functions) if weights is None else list(weights)
        for name, values in (("reward_weights", weights), ("reward_processing_classes", tokenizers)):
            if len(values) != len(functions):
                raise ConfigError(
                    f"{name} has {len(values)} entries for {len(functions)} reward functions; give one each."
                )
        if on_error not in ("skip", "raise"):
            raise ConfigError(f"on_reward_error={on_error!r} is neither 'skip' nor 'raise'.")
        if not timeout > 0:
            raise ConfigError(f"reward_timeout={timeout!r} is no time; give a number of seconds above 0.")
        loop = EventLoop()
        calls = [_callable(one, tokenizer, timeout) for one, tokenizer in zip(functions, tokenizers, strict=True)]
        self.names = _distinct([reward_name(call) for call in calls])
        self.weights = torch.tensor(weights, dtype=torch.float32)
        self.timeout = timeout
        self.on_error = on_error
        self._functions = [Function(n, call, loop) for n, call in zip(self.names, calls, strict=True)]
        self._logged: Counter[str] = Counter()
        self._known: set[tuple[str, str]] = set()

    def start(
        self,
        *,
        prompts: list,
        completions: list,
        completion_ids: list[list[int]],
        columns: dict[str, list],
        trainer_state: Any = None,
        environments: list | None = None,
    ) -> Pending:
        """Begin to reward completions, in the background; all lists have one entry a rollout.

        Raises:
            RewardError: lists of different lengths, or a column that a function needs is not there.
        """
        batch = Batch(prompts, completions, completion_ids, columns, trainer_state, environments)
        for function in self._functions:
            missing = function.signature.missing(batch)
            if missing:
                raise RewardError(
                    f"the reward function {function.name!r} needs {missing}, and the dataset has {sorted(columns)}; "
                    "add the column, or rename one."
                )
        outcomes: dict[str, Outcome | Exception] = {}
        threads: list[threading.Thread] = []
        of_the_caller: list[Callable[[], None]] = []
        for function in self._functions if len(batch) else []:
            work = functools.partial(_work, function, batch, self.timeout, outcomes)
            if isinstance(function.call, SharesPolicy):
                of_the_caller.append(work)
            else:
                threads.append(threading.Thread(target=work, daemon=True, name=f"reward {function.name}"))
        for thread in threads:
            thread.start()
        return Pending(threads, of_the_caller, functools.partial(self._finish, batch, outcomes))

    def attach(self, policy: nn.Module) -> None:
        """Tell the functions that compute with the policy of it.

        Raises:
            ModelError: a policy that one of them cannot use.
        """
        for function in self._functions:
            if isinstance(function.call, SharesPolicy):
                function.call.attach(policy)

    def move_to(self, device: torch.device) -> None:
        """Bring the models among the functions to the device where training runs; those that lie on a device already
        stay."""
        for function in self._functions:
            if isinstance(function.call, OwnsModel):
                function.call.move_to(device)

    def close(self) -> None:
        """End the event loop; functions that still run are abandoned."""
        for function in self._functions:
            function.close()

    def _finish(self, batch: Batch, outcomes: dict[str, Outcome | Exception]) -> Scores:
        values = torch.full((len(batch), len(self.names)), torch.nan)
        failures = dict.fromkeys(self.names, 0)
        extras: dict[str, list] = {}
        metrics: dict[str, float] = {}
        seconds: dict[str, float] = {}
        reasons = []
        for number, name in enumerate(self.names if len(batch) else []):
            outcome = outcomes[name]
            if isinstance(outcome, Exception):
                raise outcome
            values[:, number] = torch.tensor(outcome.values)
            failures[name] = len(outcome.lost)
            extras |= outcome.record.extras
            seconds[name] = outcome.seconds
            metrics |= {key: sum(given) / len(given) for key, given in outcome.record.metrics.items()}
            reasons += self._report(name, batch, outcome)
        return Scores(values, list(self.names), failures, reasons, extras, metrics, seconds)

    def _report(self, name: str, batch: Batch, outcome: Outcome) -> list[str]:
        """What a function lost, by reason; logged once, or raised."""
        samples: dict[str, list[int]] = {}
        for i, reason in sorted(outcome.lost.items()):
            samples.setdefault(reason, []).append(i)
        lines = []
        for reason, which in samples.items():
            shown = ", ".join(map(str, which[:5])) + (", ..." if len(which) > 5 else "")
            line = (
                f"the reward function {name!r} lost {len(which)} of {len(batch)} completions (number {shown}): {reason}"
            )
            lines.append(line)
            if self.on_error == "raise":
                raise RewardError(
                    f"{line}. The first was {batch.completions[which[0]]!r:.200}. Mend the function, or set "
                    "on_reward_error to 'skip' to go on without these completions."
                )
            if (name, reason) not in self._known and self._logged[name] < _MOST_REASONS_LOGGED:
                self._known.add((name, reason))
                self._logged[name] += 1
                logger.warning("%s; said once, then only counted", line)
        return lines


def reward_name(function: Callable[..., Any]) -> str:
    """What a function is called in metrics: its own name; a model's last part of its path; a URL's host and path."""
    if isinstance(function, functools.partial):
        return reward_name(function.func)
    name = getattr(function, "__name__", None)
    return name if isinstance(name, str) else type(function).__name__


def _work(function: Function, batch: Batch, timeout: float, outcomes: dict[str, Outcome | Exception]) -> None:
    try:
        outcomes[function.name] = function.reward(batch, timeout)
    except Exception as error:
        outcomes[function.name] = error


def _callable(function: Any, tokenizer: Any, timeout: float) -> Callable[..., Any]:
    if isinstance(function, nn.Module) or (isinstance(function, str) and is_model_name(function)):
        from tuneline.rewards.models import RewardModel  # transformers, which functions alone do not need

        return RewardModel.load(function, tokenizer) if isinstance(function, str) else RewardModel(function, tokenizer)
    if isinstance(function, str):
        return url_reward(function, timeout=timeout) if is_url(function) else get_reward(function)
    if not callable(function):
        raise ConfigError(
            f"a reward function is {function!r:.80}, which cannot be called; give a function, model or name."
        )
    return function


def _distinct(names: Sequence[str]) -> list[str]:
    """Names that occur twice get a number, so that none's metrics are written over."""
    seen: Counter[str] = Counter()
    distinct = []
    for name in names:
        seen[name] += 1
        distinct.append(name if seen[name] == 1 else f"{name}_{seen[name]}")
    return distinct
