"""Where a line's pairs and labels lie in the checkout, and how what the stage collect made gets to the others."""

from __future__ import annotations

from pathlib import Path

from stages.schema_collect import CollectSection
from tuneline.collection.store import LabelStore

COLLECTED = Path("data/collected")
LABELS = Path("data/labels")


def labels_file(root: Path, name: str) -> Path:
    """The store of a line's labels. It lies outside DVC: what people say cannot be made again from inputs."""
    return root / LABELS / f"{name}.db"


def open_store(root: Path, name: str, section: CollectSection | None) -> LabelStore:
    """The store of a line; made where it is missing."""
    share = CollectSection().shared_share if section is None else section.shared_share
    return LabelStore(labels_file(root, name), shared_share=share)


def take_in(root: Path, store: LabelStore) -> int:
    """The pairs of the stage collect, and the labels that it made; the number of pairs that are new. Safe to repeat."""
    from tuneline.collection.labelling import read_labels
    from tuneline.collection.pairs import read_pairs

    folder = root / COLLECTED
    if not (folder / "pairs.jsonl").is_file():
        return 0
    num_new = store.add_pairs(read_pairs(folder / "pairs.jsonl"))
    for label in read_labels(folder / "labels.jsonl"):
        store.add_label(label.pair, label.annotator, label.choice, how=label.how)
    return num_new
