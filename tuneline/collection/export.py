"""From labels to preference data: `prompt`, `chosen`, `rejected`, and who preferred it, when and how."""

from __future__ import annotations

import contextlib
import json
import os
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from tuneline.collection.pairs import Pair
from tuneline.collection.store import LabelStore, StoredLabel
from tuneline.errors import DataError

Row = dict[str, Any]


@dataclass(frozen=True)
class Exported:
    """What became of the pairs.

    Attributes:
        preferences: rows to learn from.
        ties: rows with `first` and `second` in place of chosen and rejected: labelled as equally good, or as many
            annotators for one as for the other.
        num_skipped: pairs that were skipped and nothing else.
        num_unlabelled: pairs without a label.
        num_disputed: pairs on which annotators preferred different sides, wherever these ended up.
    """

    preferences: list[Row]
    ties: list[Row]
    num_skipped: int
    num_unlabelled: int
    num_disputed: int


def preference_data(
    store: LabelStore,
    *,
    one_row_a: Literal["pair", "label"] = "pair",
    rounds: Sequence[int] | None = None,
    how: str | None = None,
) -> Exported:
    """The labels that stand, as preference data in the order of the pairs.

    Args:
        one_row_a: `pair`: what most annotators preferred, each pair once; `label`: a row for each label.
        rounds: of a loop; None takes all.
        how: `person`, `judge`, `verifier` or `reward`; None takes all.
    """
    by_pair: dict[str, list[StoredLabel]] = {}
    for label in store.labels(how):
        by_pair.setdefault(label.pair, []).append(label)
    preferences: list[Row] = []
    ties: list[Row] = []
    num_skipped = num_unlabelled = num_disputed = 0
    for pair in store.pairs(rounds):
        labels = by_pair.get(pair.id, [])
        decided = [label for label in labels if label.choice != "skip"]
        num_unlabelled += not labels
        num_skipped += bool(labels) and not decided
        num_disputed += {"a", "b"} <= {label.choice for label in decided}
        for together in [decided] if one_row_a == "pair" else [[label] for label in decided]:
            if together:
                side = _majority(together)
                (ties if side == "tie" else preferences).append(_row(pair, side, together))
    return Exported(preferences, ties, num_skipped, num_unlabelled, num_disputed)


def _majority(labels: Sequence[StoredLabel]) -> str:
    """The side that more annotators prefer; a tie where as many prefer either, or more hold them equal."""
    votes = Counter(label.choice for label in labels)
    if votes["a"] == votes["b"] or votes["tie"] > max(votes["a"], votes["b"]):
        return "tie"
    return "a" if votes["a"] > votes["b"] else "b"


def _row(pair: Pair, side: str, labels: Sequence[StoredLabel]) -> Row:
    texts = (pair.b, pair.a) if side == "b" else (pair.a, pair.b)
    first, second = (
        [{"role": "assistant", "content": text}] if isinstance(pair.prompt, list) else text for text in texts
    )
    names = ("first", "second") if side == "tie" else ("chosen", "rejected")
    votes = Counter(label.choice for label in labels)
    of_sides = ("b", "a") if side == "b" else ("a", "b")
    further = {name: pair.columns[name] for name in ("solution", "task") if pair.columns.get(name) is not None}
    return {
        "prompt": pair.prompt,
        names[0]: first,
        names[1]: second,
        **further,
        "annotator": ", ".join(sorted({label.annotator for label in labels})),
        "at": max(label.at for label in labels),
        "how": ", ".join(sorted({label.how for label in labels})),
        "votes": "-".join(str(votes[choice]) for choice in (*of_sides, "tie")),
        "pair": pair.id,
        "policy": pair.policy,
        "round": pair.round,
    }


def write_rows(path: Path, rows: Iterable[Row]) -> int:
    """JSON lines, written aside, synced and renamed; the number of rows.

    Raises:
        DataError: the file cannot be written.
    """
    aside = path.with_name(f".{path.name}.{os.getpid()}.new")
    num_rows = 0
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with aside.open("w", encoding="utf-8") as file:
            for row in rows:
                file.write(json.dumps(row, ensure_ascii=False) + "\n")
                num_rows += 1
            file.flush()
            os.fsync(file.fileno())
        os.replace(aside, path)
    except OSError as error:
        with contextlib.suppress(OSError):
            aside.unlink()
        raise DataError(f"{path} cannot be written ({error.strerror}); name another place.") from None
    return num_rows


def ties_file(path: Path) -> Path:
    """Where the ties of an export go: `labels.jsonl` has its in `labels.ties.jsonl`."""
    return path.with_name(f"{path.stem}.ties{path.suffix or '.jsonl'}")
