"""What the HTML report shows, read from what the stages left; a missing part is None or empty, never an error."""

from __future__ import annotations

import csv
import hashlib
import json
import math
import platform
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import yaml

from stages.git import git_text
from stages.yaml_files import load_yaml
from tuneline.cli.environment import describe_environment

PACKAGES = ("tuneline", "torch", "transformers", "accelerate", "datasets", "peft", "prefect", "dvc", "mlflow")
LOCK_FILE = "requirements.lock"


@dataclass(frozen=True)
class Curve:
    """One quantity over the steps of a stage, in training and on held-out rows."""

    name: str
    series: dict[str, tuple[list[float], list[float]]]


@dataclass(frozen=True)
class Source:
    """Where rows came from, and what became of them."""

    name: str
    origin: str
    counts: dict[str, int]


@dataclass(frozen=True)
class DataSummary:
    """What prepare made of its sources."""

    data_hash: str
    sources: list[Source]
    lengths: dict[str, dict[str, Any]]  # by file

    @property
    def steps(self) -> list[str]:
        """What is counted of any source, in the order of the work."""
        return list(dict.fromkeys(step for source in self.sources for step in source.counts))


@dataclass(frozen=True)
class Environment:
    """What the results were made with."""

    versions: dict[str, str]
    commit: str | None
    num_changed_files: int
    lock_hash: str | None
    outputs: list[tuple[str, str, str]]  # stage, path, hash in DVC


def read_json(path: Path) -> Any:
    """What a JSON file holds; None when it is missing or cannot be read."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None


def read_data_summary(root: Path) -> DataSummary | None:
    summary = read_json(root / "data" / "prepared" / "summary.json")
    if not isinstance(summary, dict):
        return None
    sources = [
        Source(name, _origin(source.get("from")), source.get("counts", {}))
        for name, source in summary.get("sources", {}).items()
    ]
    return DataSummary(str(summary.get("data_hash", "")), sources, summary.get("lengths", {}))


def read_curves(root: Path, stage: str) -> list[Curve]:
    """The columns of reports/STAGE/curve.csv: `train/x` and `eval_x` are two series of one curve."""
    path = root / "reports" / stage / "curve.csv"
    try:
        with path.open(newline="", encoding="utf-8") as file:
            rows = list(csv.DictReader(file))
    except OSError:
        return []
    curves: dict[str, Curve] = {}
    for column in rows[0] if rows else ():
        if column in ("step", "epoch"):
            continue
        kind = "eval" if column.startswith(("eval_", "eval/")) else "train"
        name = column.removeprefix("eval_").removeprefix("eval/").removeprefix("train/")
        points = [(_number(row["step"]), _number(row[column])) for row in rows]
        points = [point for point in points if all(map(math.isfinite, point))]
        if points:
            curve = curves.setdefault(name, Curve(name, {}))
            curve.series[kind] = ([step for step, _ in points], [value for _, value in points])
    return [
        Curve(c.name, {kind: c.series[kind] for kind in ("train", "eval") if kind in c.series}) for c in curves.values()
    ]


def read_environment(root: Path) -> Environment:
    versions = {"python": platform.python_version(), "system": f"{platform.system()} {platform.machine()}"}
    for package in PACKAGES:
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    machine = describe_environment()
    versions |= {name: machine[name] for name in ("cpu", "memory", "gpu")}
    lock = root / LOCK_FILE
    return Environment(
        versions=versions,
        commit=git_text(root, "rev-parse", "HEAD"),
        num_changed_files=len((git_text(root, "status", "--porcelain") or "").splitlines()),
        lock_hash=hashlib.sha256(lock.read_bytes()).hexdigest() if lock.is_file() else None,
        outputs=_dvc_outputs(root),
    )


def _dvc_outputs(root: Path) -> list[tuple[str, str, str]]:
    try:
        lock = load_yaml((root / "dvc.lock").read_text(encoding="utf-8")) or {}
    except (OSError, yaml.YAMLError):
        return []
    return [
        (stage, str(out.get("path", "")), str(out.get("md5", "")))
        for stage, entry in lock.get("stages", {}).items()
        for out in entry.get("outs", ())
    ]


def _origin(value: Any) -> str:
    """A source of the config in few words."""
    if not isinstance(value, dict):
        return str(value)
    if value.get("path"):
        return f"{value['path']} ({value['split']})" if value.get("split") else str(value["path"])
    if isinstance(value.get("synthetic"), dict):
        made = ", ".join(f"{name} {_plain(setting)}" for name, setting in value["synthetic"].items())
        return f"made on the machine: {made}"
    return json.dumps(value)


def _plain(value: Any) -> str:
    return " ".join(map(str, value)) if isinstance(value, list) else str(value)


def _number(text: str | None) -> float:
    try:
        return float(text or "nan")
    except ValueError:
        return math.nan
