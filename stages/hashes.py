"""Hashes of bytes as they are now, as DVC computes them: nothing that was remembered is trusted."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path

CHUNK = 1 << 22
"""Bytes that are read at once."""


def file_hash(path: Path, name: str = "md5") -> str:
    """The hash of a file's bytes, in hexadecimal digits."""
    digest = hashlib.new(name)
    with path.open("rb") as file:
        while chunk := file.read(CHUNK):
            digest.update(chunk)
    return digest.hexdigest()


def folder_md5(files: Mapping[str, str]) -> str:
    """DVC's hash of a folder, which ends in `.dir`: MD5 of the list of its files with their MD5, as JSON.

    Args:
        files: their hashes, by their paths in the folder.
    """
    listed = [{"md5": md5, "relpath": path} for path, md5 in sorted(files.items())]
    return hashlib.md5(json.dumps(listed, sort_keys=True).encode()).hexdigest() + ".dir"
