"""What a stage made again against what it made before: file by file, tensor by tensor, metric by metric."""

from __future__ import annotations

import json
from dataclasses import dataclass
from math import isnan
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from stages.hashes import file_hash
from tasks.lineage_records import Records, StageRecord


@dataclass(frozen=True)
class Difference:
    """A file that is not the same, and by how much."""

    stage: str
    path: str
    text: str


def differences_of(records: Records, record: StageRecord, made: Path) -> tuple[int, list[Difference]]:
    """The number of files compared, and those that differ; the recorded ones are named by their hashes in dvc.lock."""
    num_files, found = 0, []
    for out, content in record.outs.items():
        tree = records.cache.tree(content.md5) if content.is_folder else {"": content.md5}
        if tree is None:
            found.append(Difference(record.stage, out, "not compared: the list of its files is gone from DVC's cache"))
            continue
        for inner, md5 in sorted(tree.items()):
            path = f"{out}/{inner}" if inner else out
            num_files += 1
            text = _difference(records.cache.path(md5), md5, made / path)
            if text:
                found.append(Difference(record.stage, path, text))
        files = {str(path.relative_to(made / out)) for path in (made / out).rglob("*") if path.is_file()}
        for inner in sorted(files - tree.keys()) if content.is_folder else ():
            found.append(Difference(record.stage, f"{out}/{inner}", "was not there before"))
    return num_files, found


def _difference(before: Path, md5: str, now: Path) -> str:
    """In words; empty when the bytes are the same."""
    if not now.is_file():
        return "was not made"
    if file_hash(now) == md5:
        return ""
    if not before.is_file() or file_hash(before) != md5:
        return "differs; by how much is not known, as the recorded bytes are gone from DVC's cache"
    if now.suffix == ".safetensors":
        try:
            return _tensors(before, now)
        except SafetensorError:  # it only has the name
            return _bytes(before, now)
    if now.name == "metrics.json":
        return _metrics(json.loads(before.read_text()), json.loads(now.read_text()))
    return _bytes(before, now)


def _tensors(before: Path, now: Path) -> str:
    with safe_open(str(before), "pt") as one, safe_open(str(now), "pt") as other:
        names = sorted({*one.keys(), *other.keys()})
        differing, largest, where = 0, 0.0, ""
        for name in names:
            if name not in one.keys() or name not in other.keys():  # noqa: SIM118 - it is no dict
                return f"the tensor {name} is in one of them only"
            first, second = one.get_tensor(name), other.get_tensor(name)
            if first.shape != second.shape or first.dtype != second.dtype:
                forms = [f"{tuple(tensor.shape)} of {tensor.dtype}" for tensor in (first, second)]
                return f"the tensor {name} is {forms[1]}, and was {forms[0]}"
            first, second = first.double(), second.double()
            if first.allclose(second, rtol=0, atol=0, equal_nan=True):
                continue
            differing += 1
            gap = float((first - second).abs().max())
            if gap > largest or isnan(gap):
                largest, where = gap, name
    if not differing:
        return "all tensors are equal; the file around them is not"
    return f"{differing} of {len(names)} tensors differ, by {largest:.3g} at most ({where})"


def _metrics(before: dict[str, Any], now: dict[str, Any]) -> str:
    texts = []
    for name in sorted({*before, *now}):
        first, second = before.get(name), now.get(name)
        if first != second:
            texts.append(f"{name} {first} -> {second}")
    shown = "; ".join(texts[:5])
    return f"{len(texts)} of {len(before)} metrics differ: {shown}{'; ...' if len(texts) > 5 else ''}"


def _bytes(before: Path, now: Path) -> str:
    first, second = before.read_bytes(), now.read_bytes()
    if len(first) != len(second):
        return f"{len(second):,} bytes instead of {len(first):,}"
    return f"{sum(a != b for a, b in zip(first, second, strict=True)):,} of {len(first):,} bytes differ"
