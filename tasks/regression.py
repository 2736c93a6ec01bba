"""A new model that promotion refused becomes an event on Prefect's server, which automations can wait for."""

import json
from datetime import datetime
from pathlib import Path
from typing import Any

from prefect.events import emit_event

from tasks.promotion_words import PROMOTION_FILE
from tuneline.logging import get_logger

logger = get_logger(__name__)
REGRESSED = "tuneline.regressed"


def tell_of_regression(root: Path, name: str, flow_run: str, since: datetime) -> bool:
    """Emits `tuneline.regressed` where this run's model was compared with the champion and refused; whether it did.

    Args:
        root: the checkout, where promotion leaves its decision.
        name: the line's.
        flow_run: Prefect's id of the run.
        since: when the run began; a decision from before it was told of already.
    """
    decision = _read(root / PROMOTION_FILE, since)
    if decision is None or decision.get("alias_moved", True) or not decision.get("champion"):
        return False
    if not decision.get("regressed", True):  # nobody agreed, or it could not be compared
        return False
    payload: dict[str, Any] = {key: decision.get(key) for key in ("version", "champion", "metrics", "held_out_digest")}
    payload |= {"reasons": [str(reason) for reason in decision.get("reasons") or []], "flow_run": flow_run}
    resource = {"prefect.resource.id": f"tuneline.line.{name}", "prefect.resource.name": name}
    run = {"prefect.resource.id": f"prefect.flow-run.{flow_run}", "prefect.resource.role": "flow-run"}
    emit_event(REGRESSED, resource=resource, related=[run], payload=payload)
    return True


def _read(path: Path, since: datetime) -> dict[str, Any] | None:
    try:
        decision = json.loads(path.read_text())
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        logger.warning("%s cannot be read (%s), so nobody is told of a regression", path, error)
        return None
    if path.stat().st_mtime < since.timestamp() or not isinstance(decision, dict):
        return None
    return decision
