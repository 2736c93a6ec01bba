"""Pre-flight gates: what has to hold before a stage goes on, measured by the stage itself, so for `dvc repro` as well.

A gate measures one number and holds it against its limit in the config's `gates`. One that does not pass ends the stage
with a message that no retry helps. What was measured lies in the work folder (`gates.json`), in the stage's metrics
(`gates/NAME`) and in MLflow. A gate changes nothing that a stage makes: another limit is held against what was measured
before, and nothing is trained again for it.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from stages.context import StageContext
from stages.schema_gates import GatesSection
from stages.storage import write_whole
from tuneline.errors import StageError
from tuneline.logging import get_logger

logger = get_logger(__name__)

GATES_FILE = "gates.json"
PREFIX = "gates/"
NAMES = ("reward_accuracy", "same_tokenizer", "dpo_first_loss", "logprob_difference", "ended_answers")
_AT_LEAST = ("reward_accuracy", "ended_answers")  # of the others, the value may be at most the limit


class GateError(StageError):
    """What a stage was given is broken: it did not pass a gate."""


@dataclass(frozen=True)
class Gate:
    """One gate of one run of a stage."""

    name: str
    value: float
    limit: float | None
    """None: it is measured, and stops nothing."""
    reason: str = ""
    """What a value beyond the limit means, and what helps."""

    @property
    def passed(self) -> bool:
        if self.limit is None:
            return True
        return self.value >= self.limit if self.name in _AT_LEAST else self.value <= self.limit

    @property
    def bound(self) -> str:
        """Such as `at least 0.5`."""
        if self.limit is None:
            return "none"
        return f"{'at least' if self.name in _AT_LEAST else 'at most'} {self.limit:g}"

    def describe(self) -> str:
        return f"gates.{self.name}: measured {self.value:.4g}, the limit is {self.bound}. {self.reason}"


def limit_of(name: str, limits: GatesSection) -> float | None:
    """The number that a gate's value is held against."""
    if name == "same_tokenizer":
        return 0.0 if limits.same_tokenizer else None
    limit = getattr(limits, name)
    return None if limit is None else float(limit)


class Gates:
    """The gates of one run of one stage; every process of it may ask, the main one keeps the record."""

    def __init__(self, stage: str, work: Path, limits: GatesSection):
        self.stage, self.work, self.limits = stage, work, limits

    @classmethod
    def of(cls, context: StageContext) -> Gates:
        return cls(context.name, context.work, context.config.gates)

    def has_passed(self, name: str) -> bool:
        """Whether an earlier try of this run has measured it already, and it passes: a resumed run goes on."""
        return any(gate.name == name and gate.passed for gate in read_gates(self.work, self.limits))

    def check(self, name: str, value: float, reason: str) -> None:
        """Note what was measured and hold it against its limit.

        Args:
            reason: what a value beyond the limit means, and what helps.

        Raises:
            GateError: it does not pass.
        """
        gate = Gate(name, float(value), limit_of(name, self.limits), reason)
        if os.environ.get("RANK", "0") == "0":
            others = [other for other in read_gates(self.work, self.limits) if other.name != name]
            _write(self.work, [*others, gate])
            verdict = "passes" if gate.passed else "does not pass"
            logger.info("gate %s %s: %.4g, limit %s", name, verdict, gate.value, gate.bound)
        if not gate.passed:
            raise GateError(f"{self.stage} was stopped by a gate. {gate.describe()}")


def read_gates(work: Path, limits: GatesSection) -> list[Gate]:
    """What was measured in a work folder, held against these limits."""
    file = work / GATES_FILE
    if not file.is_file():
        return []
    found = [Gate(**entry) for entry in json.loads(file.read_text())]
    return [Gate(gate.name, gate.value, limit_of(gate.name, limits), gate.reason) for gate in found]


def judge_again(stage: str, work: Path, limits: GatesSection) -> str:
    """Hold what a finished run measured against limits that may have changed since.

    Returns:
        What cannot be judged, as it was not measured; empty where there is nothing of the kind.

    Raises:
        GateError: one does not pass any more.
    """
    gates = read_gates(work, limits)
    _write(work, gates)
    for gate in gates:
        if not gate.passed:
            raise GateError(f"{stage} was stopped by a gate. {gate.describe()}")
    if stage == "dpo" and limits.ended_answers is not None and all(gate.name != "ended_answers" for gate in gates):
        return "gate ended_answers was off when dpo ran, so nothing was measured: `tuneline stage dpo --force` does it"
    return ""


def gate_metrics(work: Path) -> dict[str, float]:
    """`gates/NAME`: what was measured; limits are settings."""
    file = work / GATES_FILE
    entries: Sequence[dict[str, Any]] = json.loads(file.read_text()) if file.is_file() else []
    return {f"{PREFIX}{entry['name']}": entry["value"] for entry in entries}


def check_reward_model(gates: Gates, metrics: Path) -> None:
    """The line's reward model against `gates.reward_accuracy`, by what its own stage measured on held-out pairs.

    Args:
        metrics: reports/reward/metrics.json.
    """
    values = json.loads(metrics.read_text()) if metrics.is_file() else {}
    if "eval/accuracy" not in values:
        logger.warning("gate reward_accuracy: %s has no eval/accuracy, so it was not checked", metrics)
        return
    gates.check(
        "reward_accuracy",
        values["eval/accuracy"],
        "That is the share of held-out pairs that the reward model ranks rightly; what learns from it, or chooses by "
        "it, takes over its mistakes. Train it longer or on better pairs (reward.training, prepare.preferences), or "
        "lower the limit.",
    )


def _write(work: Path, gates: Sequence[Gate]) -> None:
    if not gates and not (work / GATES_FILE).is_file():
        return
    write_whole(work / GATES_FILE, json.dumps([asdict(gate) for gate in gates], indent=1) + "\n")
