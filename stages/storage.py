"""Files that are whole or not there: written aside, synced to disk, renamed."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
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


def write_whole(path: Path, text: str) -> None:
    """Write a file aside and rename it: whoever reads it, and whatever dies, finds the old text or the new one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f".{path.name}.{os.getpid()}.new")
    try:
        aside.write_text(text, encoding="utf-8")
        os.replace(aside, path)
    finally:
        aside.unlink(missing_ok=True)


@contextmanager
def publish_folder(final: Path) -> Iterator[Path]:
    """Yields an empty folder to fill; on leaving it is synced and becomes `final`, which on an error stays as it was.

    What a killed process has left beside `final` is removed by the next one, so one at a time may publish.
    """
    aside = final.with_name(f"{final.name}.new")
    shutil.rmtree(aside, ignore_errors=True)
    aside.mkdir(parents=True)
    try:
        yield aside
    except BaseException:
        shutil.rmtree(aside, ignore_errors=True)  # where the disk is full it makes room
        raise
    sync_tree(aside)
    shutil.rmtree(final, ignore_errors=True)
    os.replace(aside, final)
    _sync(final.parent)


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """Lines of a metrics.jsonl; one that was cut off, or is being written, is left out."""
    if not path.is_file():
        return []
    lines = []
    for line in path.read_text().splitlines():
        with suppress(ValueError):
            lines.append(json.loads(line))
    return lines


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
