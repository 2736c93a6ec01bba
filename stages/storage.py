"""Files that are whole or not there: written aside, synced to disk, renamed."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any


def sync_tree(path: Path) -> None:
    """Bring a file, or a folder with all that is in it, to disk."""
    for folder, _, files in os.walk(path):
        for file in files:
            _sync(Path(folder) / file)
        _sync(Path(folder))
    if path.is_file():
        _sync(path)


@contextmanager
def publish_folder(final: Path, aside: Path) -> Iterator[None]:
    """Fill `aside`; on leaving it is synced and becomes `final`. On an error `final` stays as it was."""
    shutil.rmtree(aside, ignore_errors=True)
    aside.mkdir(parents=True)
    yield
    sync_tree(aside)
    shutil.rmtree(final, ignore_errors=True)
    os.replace(aside, final)
    _sync(final.parent)


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """Lines of a metrics.jsonl; a last line that was cut off is left out."""
    if not path.is_file():
        return []
    return [json.loads(line) for line in path.read_text().splitlines() if line.endswith("}")]


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
