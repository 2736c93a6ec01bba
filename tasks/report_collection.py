"""Preferences that were collected: how far the labelling has got, by whom, and how far annotators agree."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tasks.collection import labels_file, open_store
from tasks.report_text import Difference, Limits, difference, prompt_parts
from tuneline.collection.agreement import Agreement, agreement
from tuneline.collection.store import Progress
from tuneline.errors import DataError
from tuneline.logging import get_logger

logger = get_logger(__name__)

_PAIRS_SHOWN, _LABELS_SHOWN = 6, 12


@dataclass(frozen=True)
class LabelledPair:
    """A pair and what was said of it."""

    prompt: list[tuple[str, str]]
    a: str
    b: Difference
    choices: list[tuple[str, str]]
    """(annotator, choice)"""


@dataclass(frozen=True)
class Collection:
    """What a store of labels tells."""

    progress: Progress
    by_kind: dict[str, int]
    """Labels that stand by how they were made: a person, a verifier, a judge."""
    agreement: Agreement
    pairs: list[LabelledPair]


def read_collection(root: Path, config: dict[str, Any], limits: Limits) -> Collection | None:
    """Of the line's store of labels; None where it has none."""
    name = str(config.get("name", ""))
    if not name or not labels_file(root, name).is_file():
        return None
    try:
        with open_store(root, name, None) as store:
            progress, labels = store.progress(), store.labels()
            labelled = {label.pair for label in labels}
            pairs = [pair for pair in store.pairs() if pair.id in labelled]
    except DataError as error:
        logger.warning("the report has no collected preferences: %s", error)
        return None
    by_kind: dict[str, int] = {}
    for label in labels:
        by_kind[label.how] = by_kind.get(label.how, 0) + 1
    shown = [
        LabelledPair(
            [(role, limits.text(text)) for role, text in prompt_parts(pair.prompt)],
            limits.text(pair.a),
            difference(limits.text(pair.a), limits.text(pair.b)),
            [
                (limits.text(label.annotator), label.choice)
                for label in limits.rows("labels", [label for label in labels if label.pair == pair.id], _LABELS_SHOWN)
            ],
        )
        for pair in pairs[:_PAIRS_SHOWN]
    ]
    return Collection(progress, by_kind, agreement(labels), shown)
