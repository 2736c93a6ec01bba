"""From a metric, a model version or a file back to source bytes: which runs made it, from what, with which settings."""

from __future__ import annotations

import difflib
import json
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from stages.git import git_text
from stages.hashes import file_hash
from stages.tracking import flatten
from tasks.lineage_records import PACKAGE_LOCK, Content, Records, StageRecord, is_code
from tasks.lineage_runs import ModelVersion, TrackedRun, Tracking, commits_with
from tasks.summary import read_metrics
from tuneline.errors import TunelineError

_SOURCES = ("demonstrations", "preferences", "prompts", "test")
_VERSION = re.compile(r"(?:models:/)?(?P<name>[\w.\- ]+)(?:/(?P<version>\d+)|@(?P<alias>[\w.\-]+))")


@dataclass(frozen=True)
class Target:
    """What was asked for, and the run that made it."""

    kind: Literal["metric", "model version", "file", "stage"]
    name: str
    path: str
    content: Content | None
    record: StageRecord | None
    """None for a source."""
    value: float | None = None
    version: ModelVersion | None = None
    note: str = ""
    """What the user should know about it, such as that the file has changed since."""


@dataclass(frozen=True)
class Source:
    """Where the chain ends: bytes that no stage made, or numbers drawn from a seed."""

    role: str
    """What it is to the line, such as `preferences`, `model` or `packages`."""
    text: str
    path: str = ""
    md5: str = ""
    size: int | None = None
    sha256: str = ""
    seed: int | None = None
    in_git: bool | None = None


@dataclass(frozen=True)
class Weights:
    """A file of weights within an output."""

    path: str
    md5: str
    sha256: str
    """Empty when the bytes are neither in the cache nor, unchanged, in the checkout."""
    size: int | None


@dataclass(frozen=True)
class Step:
    """One run of one stage in the chain."""

    record: StageRecord
    inputs: dict[str, str]
    """Path of what it read: key of the run that made it, or empty for a source."""
    run: TrackedRun | None
    commits: tuple[str, ...]
    """Commits whose dvc.lock brought or took the result, the newest first; none: it was not committed."""
    sources: tuple[Source, ...]
    weights: tuple[Weights, ...]
    versions: tuple[ModelVersion, ...]

    @property
    def settings(self) -> dict[str, Any]:
        return dict(flatten(self.record.params))

    @property
    def package_lock(self) -> Content | None:
        return self.record.deps.get(PACKAGE_LOCK)


@dataclass(frozen=True)
class Lineage:
    target: Target
    steps: tuple[Step, ...]
    """Each after those that it needs."""
    sources: tuple[Source, ...] = ()
    """Of a target that is itself a source."""
    read_by: tuple[str, ...] = field(default=())
    """Stages that read a target which is itself a source."""
    problem: str = ""
    """Why MLflow could not be asked; empty when it was."""

    def step(self, key: str) -> Step:
        return next(step for step in self.steps if step.record.key == key)


def trace(root: Path, text: str) -> Lineage:
    """The chain behind a target.

    Args:
        root: The checkout.
        text: `evaluate.dpo.accuracy`, or `dpo/accuracy` where one stage alone has it; `models:/quickstart-dpo/3`,
            `quickstart-dpo@champion`, a path, or a stage.

    Raises:
        TunelineError: there is no such thing, or nobody has noted how it was made.
    """
    records, tracking = Records(root), Tracking(root)
    target = find_target(records, tracking, text)
    if target.record is None:
        readers = tuple(name for name, record in records.current.items() if target.path in record.deps)
        source = _file_source(root, "file", target.path, target.content)
        return Lineage(target, (), (source,), readers, tracking.problem)
    chain = records.chain(target.record)
    steps = tuple(_step(records, tracking, record, chain) for record in chain)
    return Lineage(target, steps, problem=tracking.problem)


def find_target(records: Records, tracking: Tracking, text: str) -> Target:
    """What the user means; see `trace`."""
    root = records.root
    called_from = Path(os.environ.get("TUNELINE_CALLED_FROM", root))
    path = Path(os.path.relpath(os.path.normpath(called_from / text), root)).as_posix()
    is_file = not text.startswith("models:") and (
        (root / path).exists() or any(_is_within(path, out) for one in records.current.values() for out in one.outs)
    )
    version = _VERSION.fullmatch(text)
    if text.startswith("models:") or (version and not is_file):
        if version is None:
            raise TunelineError(f"{text} is no model version; write models:/NAME/3 or models:/NAME@alias.")
        return _version_target(records, tracking, text, version)
    if is_file:
        return _file_target(records, path)
    stage, _, metric = text.partition(".")
    if stage in records.current:
        return _metric_target(records, stage, metric) if metric else _stage_target(records, stage)
    holders = [stage for stage in records.current if text in read_metrics(root, stage)]
    if len(holders) == 1:
        return _metric_target(records, holders[0], text)
    if holders:
        raise TunelineError(f"{text} is a metric of several stages: {', '.join(f'{name}.{text}' for name in holders)}.")
    near = difflib.get_close_matches(stage, records.current, n=1, cutoff=0.5)
    raise TunelineError(
        f"{text} is no file, no model version and no metric of a stage{f'; did you mean {near[0]}?' if near else '.'} "
        "Targets look like evaluate.dpo.accuracy, models:/quickstart-dpo/3, quickstart-dpo@champion or models/dpo."
    )


def _is_within(path: str, folder: str) -> bool:
    return path == folder or path.startswith(f"{folder}/")


def _stage_target(records: Records, stage: str) -> Target:
    record = records.current[stage]
    path, content = next(iter(record.outs.items()), ("", None))
    return Target("stage", stage, path, content, record)


def _metric_target(records: Records, stage: str, metric: str) -> Target:
    record, path = records.current[stage], f"reports/{stage}/metrics.json"
    content = record.outs.get(path)
    place = records.root / path
    note = ""
    if content is not None and not (place.is_file() and file_hash(place) == content.md5):
        place, note = (
            records.cache.path(content.md5),
            f"{path} is not what dvc.lock records; the value is the recorded one.",
        )
    if not place.is_file():
        raise TunelineError(f"{path} is neither in the checkout nor in DVC's cache; `dvc pull` or `tuneline run`.")
    values = json.loads(place.read_text())
    named = {name.replace("/", "."): name for name in values}
    name = named.get(metric.replace("/", "."))
    if name is None:
        near = difflib.get_close_matches(metric, named, n=3, cutoff=0.3)
        raise TunelineError(f"{stage} has no metric {metric}; there are {', '.join(near or list(named)[:8])}, ...")
    return Target("metric", f"{stage}.{name}", path, content, record, value=values[name], note=note)


def _version_target(records: Records, tracking: Tracking, text: str, parts: re.Match[str]) -> Target:
    version = tracking.version(parts["name"], parts["version"] or "", parts["alias"] or "")
    record = records.maker(version.path, version.md5) or tracking.record_of(version)
    if record is None:
        raise TunelineError(
            f"Nobody has noted how {version.uri} was made: its content {version.md5} is in no dvc.lock of this "
            "repository, not in DVC's run cache, and its run is gone from MLflow. `dvc pull --run-cache` may bring it."
        )
    note = "" if record.origin != "MLflow" else "only MLflow knows this run: its code is not on record."
    return Target("model version", version.uri, version.path, Content(version.md5), record, version=version, note=note)


def _file_target(records: Records, path: str) -> Target:
    for record in records.current.values():
        for out, content in record.outs.items():
            if not _is_within(path, out):
                continue
            inner = path.removeprefix(out).removeprefix("/")
            md5 = records.cache.below(content.md5, inner) if inner else content.md5
            place = records.root / path
            if place.is_file() and file_hash(place) != md5:
                here = _made_elsewhere(records, path, place)
                if here is not None:
                    return here
                note = "as it lies there it is not what dvc.lock records; the chain is that of the recorded one."
                return Target("file", path, path, Content(md5 or "not known"), record, note=note)
            size = place.stat().st_size if place.is_file() else content.size if not inner else None
            return Target("file", path, path, Content(md5 or "not known", size), record)
    place = records.root / path
    if place.is_dir():
        raise TunelineError(f"{path} is a folder that no stage has made; name a file in it, or an output of a stage.")
    return Target("file", path, path, Content(file_hash(place), place.stat().st_size), None)


def _made_elsewhere(records: Records, path: str, place: Path) -> Target | None:
    """A file that is not the one in dvc.lock may be that of an earlier run."""
    md5 = file_hash(place)
    made_by = records.maker(path, md5)
    if made_by is None:
        return None
    note = f"this is what an earlier run made ({made_by.origin}), not what dvc.lock records."
    return Target("file", path, path, Content(md5, place.stat().st_size), made_by, note=note)


def _step(records: Records, tracking: Tracking, record: StageRecord, chain: list[StageRecord]) -> Step:
    keys = {one.key for one in chain}
    inputs = {}
    for path, content in record.deps.items():
        if is_code(path):
            continue
        made_by = records.maker(path, content.md5, prefer=record.origin)
        inputs[path] = made_by.key if made_by is not None and made_by.key in keys else ""
    content = next(iter(record.outs.values()), Content(""))
    versions = [one for path, made in record.outs.items() for one in tracking.versions_of(path, made.md5)]
    return Step(
        record,
        inputs,
        tracking.run_of(record),
        tuple(commits_with(records.root, content.md5)) if content.md5 else (),
        tuple(_sources(records, record, inputs)),
        tuple(_weights(records, record)),
        tuple(versions),
    )


def _sources(records: Records, record: StageRecord, inputs: dict[str, str]) -> Iterator[Source]:
    """What the run read that no stage made: files, the package lock, names on a hub, and numbers from the seed."""
    root, seed = records.root, record.params.get("seed")
    roles = {}
    for role in _SOURCES:
        settings = (record.params.get("prepare") or {}).get(role) or {}
        if settings.get("synthetic"):
            rows = settings["synthetic"].get("num_rows")
            yield Source(role, f"made on the machine from seed {seed}: {rows} rows", seed=seed)
        elif settings.get("path"):
            roles[settings["path"]] = role
    model = record.params.get("model") or {}
    if isinstance(model, dict) and "prepare" in record.params:
        if model.get("init"):
            kind = model["init"].get("model_type", "model")
            yield Source("model", f"made on the machine from seed {seed}: {kind}", seed=seed)
        elif model.get("name_or_path"):
            roles[str(model["name_or_path"])] = "model"
    for path, made_by in inputs.items():
        if not made_by:
            role = "packages" if path == PACKAGE_LOCK else roles.pop(path, "input")
            yield _file_source(root, role, path, record.deps[path])
    for name, role in roles.items():
        if (root / name).exists():
            yield Source(
                role, f"{name}, which the settings name and dvc.yaml does not list: its bytes are not on record"
            )
            continue
        revision = model.get("revision") if role == "model" else record.params["prepare"][role].get("revision")
        pinned = f"at revision {revision}" if revision else "without a revision, so that its bytes are not pinned"
        yield Source(role, f"{name}, by name, {pinned}")


def _file_source(root: Path, role: str, path: str, content: Content | None) -> Source:
    place = root / path
    md5, size = (content.md5, content.size) if content else ("", None)
    is_here = place.is_file() and file_hash(place) == md5
    sha256 = file_hash(place, "sha256") if is_here else ""
    in_git = bool(git_text(root, "ls-files", "--", path)) if not path.startswith(("..", "/")) else False
    if is_here:
        text = "these bytes lie in the checkout" if not path.startswith(("..", "/")) else "these bytes lie there"
    elif place.is_dir():
        text = "a folder"
    else:
        text = "other bytes lie there now" if place.is_file() else "no longer there"
    return Source(role, text, path, md5, size, sha256, in_git=in_git)


def _weights(records: Records, record: StageRecord) -> Iterator[Weights]:
    for out, content in record.outs.items():
        tree = records.cache.tree(content.md5) if content.is_folder else {"": content.md5}
        for inner, md5 in (tree or {}).items():
            path = f"{out}/{inner}" if inner else out
            if not path.endswith(".safetensors"):
                continue
            places = (records.cache.path(md5), records.root / path)
            place = next((one for one in places if one.is_file() and file_hash(one) == md5), None)
            sha256 = file_hash(place, "sha256") if place else ""
            yield Weights(path, md5, sha256, place.stat().st_size if place else None)
