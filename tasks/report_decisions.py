"""What was decided on the way: gates between stages, the promotion of a version, preferences that were collected."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tasks.report_parts import read_json
from tasks.report_text import Limits

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

    version: str
    champion: str
    alias_moved: bool
    reasons: list[str]
    metrics: list[Comparison]
    held_out_digest: str
    at: str


def read_promotion(root: Path, limits: Limits) -> Promotion | None:
    """The last decision in this checkout; None where there was none."""
    record = read_json(root / PROMOTION_FILE)
    if not isinstance(record, dict):
        return None
    metrics = [metric for metric in record.get("metrics") or () if isinstance(metric, dict)]
    return Promotion(
        version=_text(record.get("version")),
        champion=_text(record.get("champion")),
        alias_moved=record.get("alias_moved") is True,
        reasons=[limits.text(reason) for reason in limits.rows("reasons", record.get("reasons") or [], 40)],
        metrics=[_comparison(metric, limits) for metric in limits.rows("metrics of the promotion", metrics)],
        held_out_digest=_text(record.get("held_out_digest")),
        at=_text(record.get("at")),
    )


def _comparison(metric: dict[str, Any], limits: Limits) -> Comparison:
    values = {name: _number(metric.get(name)) for name in ("champion", "challenger", "difference", "low", "high")}
    return Comparison(name=limits.text(metric.get("name")), verdict=limits.text(metric.get("verdict") or ""), **values)


def _text(value: Any) -> str:
    return "" if value is None else str(value)[:200]


def _number(value: Any) -> float | None:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        return None
    return value
