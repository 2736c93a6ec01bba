"""What reward functions are given: prompts, completions, and the columns of the dataset that go with them."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from tuneline.errors import RewardError
from tuneline.logging import get_logger

logger = get_logger(__name__)

_PER_SAMPLE = ("prompts", "completions", "completion_ids")
_ALWAYS = {*_PER_SAMPLE, "trainer_state", "log_extra", "log_metric", "environments"}


class Unavailable(RewardError):
    """What answers for all samples cannot be reached: none is at fault, none is tried again alone."""


@dataclass
class Record:
    """What a function logs beside its rewards: columns of the completions table, and metrics."""

    num_samples: int
    extras: dict[str, list] = field(default_factory=dict)
    metrics: dict[str, list[float]] = field(default_factory=dict)

    def log_extra(self, column: str, values: Sequence[Any]) -> None:
        """A column of the completions table, one value a completion."""
        values = list(values)
        if len(values) != self.num_samples:
            logger.warning(
                "log_extra(%r) gave %d values for %d completions; they are left out",
                column,
                len(values),
                self.num_samples,
            )
            return
        self.extras[column] = values

    def log_metric(self, name: str, value: float) -> None:
        """A metric of the step; what is given several times is averaged."""
        self.metrics.setdefault(name, []).append(float(value))

    def take(self, i: int, of_sample: Record) -> None:
        """Add what was logged for one sample alone."""
        for column, values in of_sample.extras.items():
            self.extras.setdefault(column, [None] * self.num_samples)[i] = values[0]
        for name, values in of_sample.metrics.items():
            self.metrics.setdefault(name, []).extend(values)


@dataclass(frozen=True)
class Batch:
    """Samples to be rewarded. All lists have one entry a sample."""

    prompts: list
    completions: list
    completion_ids: list[list[int]]
    columns: Mapping[str, list]
    trainer_state: Any = None
    environments: list | None = None

    def __post_init__(self) -> None:
        lists = {name: getattr(self, name) for name in _PER_SAMPLE} | dict(self.columns)
        if self.environments is not None:
            lists["environments"] = self.environments
        for name, values in lists.items():
            if len(values) != len(self):
                raise RewardError(
                    f"{name!r} has {len(values)} entries for {len(self)} completions; give one for each completion."
                )
        taken = sorted(set(self.columns) & _ALWAYS)
        if taken:
            raise RewardError(f"the columns {taken} have names that reward functions are given anyway; rename them.")

    def __len__(self) -> int:
        return len(self.completions)

    def only(self, i: int) -> Batch:
        """The batch of one sample."""
        return Batch(
            [self.prompts[i]],
            [self.completions[i]],
            [self.completion_ids[i]],
            {name: [values[i]] for name, values in self.columns.items()},
            self.trainer_state,
            None if self.environments is None else [self.environments[i]],
        )

    def arguments(self, record: Record) -> dict[str, Any]:
        """The keyword arguments of TRL's reward functions."""
        arguments = {
            **self.columns,
            "prompts": self.prompts,
            "completions": self.completions,
            "completion_ids": self.completion_ids,
            "trainer_state": self.trainer_state,
            "log_extra": record.log_extra,
            "log_metric": record.log_metric,
        }
        return arguments if self.environments is None else {**arguments, "environments": self.environments}


class Signature:
    """The arguments that a reward function takes: all that there are, or those that it names."""

    def __init__(self, function: Callable[..., Any]):
        try:
            parameters = list(inspect.signature(function).parameters.values())
        except (TypeError, ValueError):  # some callables written in C have none
            parameters = [inspect.Parameter("all", inspect.Parameter.VAR_KEYWORD)]
        named = [p for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)]
        self.takes_all = any(p.kind == p.VAR_KEYWORD for p in parameters)
        self.names = {p.name for p in named}
        self.required = {p.name for p in named if p.default is p.empty}

    def missing(self, batch: Batch) -> list[str]:
        """The columns that the function cannot do without and the batch does not have."""
        return sorted(self.required - set(batch.arguments(Record(0))))

    def select(self, arguments: dict[str, Any]) -> dict[str, Any]:
        if self.takes_all:
            return arguments
        return {name: value for name, value in arguments.items() if name in self.names}
