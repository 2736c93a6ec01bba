"""What was decided on the way: gates between stages, and the promotion of a version."""

from __future__ import annotations

import math
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from stages.gates import GATES_FILE
from stages.gates import read_gates as gates_of
from stages.schema_gates import GatesSection
from tasks.report_parts import read_json
from tasks.report_text import Limits
from tasks.summary import RunSummary
from tuneline.logging import get_logger

logger = get_logger(__name__)

PROMOTION_FILE = Path("reports/promotion.json")


@dataclass(frozen=True)
class Comparison:
    """A metric of the champion and of the version that would follow it, on the same items."""

    name: str
    champion: float | None
    challenger: float | None
    difference: float | None
    low: float | None
    high: float | None
    verdict: str


@dataclass(frozen=True)
class Promotion:
    """The decision on a version."""

    model: str
    version: str
    policy: str
    champion: str
    alias_moved: bool
    reasons: list[str]
    metrics: list[Comparison]
    held_out_digest: str
    at: str
    by: str
    """Who approved or refused; empty where nobody was asked."""
    is_earlier: bool
    """Whether it was decided before the run began, which has not asked again."""


@dataclass(frozen=True)
class CheckedGate:
    """What a stage's gate has measured, passed or not."""

    stage: str
    name: str
    value: float
    bound: str
    passed: bool
    reason: str


def read_gates(root: Path, run: RunSummary, limits: Limits) -> list[CheckedGate]:
    """Of the stages of a run, from their newest work folders that have any."""
    try:
        section = GatesSection(**(run.config.get("gates") or {}))
    except (ValidationError, TypeError):  # the record of another version
        section = GatesSection()
    found = []
    for stage in run.stages:
        folders = [path.parent for path in (root / ".work" / stage.name).glob(f"*/{GATES_FILE}")]
        folders.sort(key=lambda folder: (folder / GATES_FILE).stat().st_mtime)
        try:
            gates = gates_of(folders[-1], section) if folders else []
        except (ValueError, TypeError):
            logger.warning("the gates of %s cannot be read, and are left out of the report", stage.name)
            continue
        for gate in gates:
            reason = "" if gate.passed else limits.text(gate.reason)
            found.append(CheckedGate(stage.name, gate.name, gate.value, gate.bound, gate.passed, reason))
    return found


def read_promotion(root: Path, run: RunSummary, limits: Limits) -> Promotion | None:
    """The last decision in this checkout; None where there was none."""
    record = read_json(root / PROMOTION_FILE)
    if not isinstance(record, dict):
        return None
    metrics = [metric for metric in record.get("metrics") or () if isinstance(metric, dict)]
    return Promotion(
        model=_text(record.get("model")),
        version=_text(record.get("version")),
        policy=_text(record.get("policy")),
        champion=_text(record.get("champion")),
        alias_moved=record.get("alias_moved") is True,
        reasons=[limits.text(reason) for reason in limits.rows("reasons", record.get("reasons") or [], 40)],
        metrics=[_comparison(metric, limits) for metric in limits.rows("metrics of the promotion", metrics)],
        held_out_digest=_text(record.get("held_out_digest")),
        at=_text(record.get("at")),
        by=_text(record.get("by")),
        is_earlier=_is_before(record.get("at"), run.started),
    )


def _comparison(metric: dict[str, Any], limits: Limits) -> Comparison:
    values = {name: _number(metric.get(name)) for name in ("champion", "challenger", "difference", "low", "high")}
    return Comparison(name=limits.text(metric.get("name")), verdict=limits.text(metric.get("verdict") or ""), **values)


def _is_before(at: Any, moment: datetime) -> bool:
    try:
        return datetime.fromisoformat(str(at)) < moment
    except (ValueError, TypeError):  # no time, or one without a zone
        return False


def _text(value: Any) -> str:
    return "" if value is None else str(value)[:200]


def _number(value: Any) -> float | None:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        return None
    return value
