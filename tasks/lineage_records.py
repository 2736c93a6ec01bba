"""What DVC has noted of each stage's runs: in dvc.lock, in the dvc.lock of earlier commits, and in its run cache.

A record names bytes by their MD5, as DVC does. Which run made a file is asked of the content, not of the path, so that
the chain of a model from last month is found though dvc.lock has moved on.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import Any

import yaml

from stages.git import git_text, run_git
from stages.hashes import folder_md5
from stages.start import START
from stages.yaml_files import load_yaml
from tuneline.errors import TunelineError

LOCK_FILE = "dvc.lock"
PACKAGE_LOCK = "requirements.lock"
_CODE = (".py", ".jinja")
_HASH = re.compile(rb"\bmd5: *['\"]?([0-9a-f]{32}(?:\.dir)?)\b")


@dataclass(frozen=True)
class Content:
    """Bytes by their hash; that of a folder ends in `.dir` and is the hash of the list of its files."""

    md5: str
    size: int | None = None
    """Bytes; None where nobody has noted it."""

    @property
    def is_folder(self) -> bool:
        return self.md5.endswith(".dir")


@dataclass(frozen=True)
class StageRecord:
    """One run of one stage: what it read, under which settings, and what it made."""

    stage: str
    command: str
    deps: dict[str, Content]
    params: dict[str, Any]
    """Settings by the dotted names that dvc.yaml lists."""
    outs: dict[str, Content]
    origin: str = field(compare=False, default=LOCK_FILE)
    """Where the record stands, in words."""

    @property
    def code(self) -> dict[str, Content]:
        """Those of its inputs that are code."""
        return {path: content for path, content in self.deps.items() if is_code(path)}

    @property
    def key(self) -> str:
        """The same for two records of the same run."""
        parts = [self.stage, sorted((path, out.md5) for path, out in self.outs.items())]
        parts.append(sorted((path, dep.md5) for path, dep in self.deps.items()))
        return hashlib.sha256(json.dumps([*parts, self.params], sort_keys=True, default=str).encode()).hexdigest()[:16]


def is_code(path: str) -> bool:
    return path.endswith(_CODE)


class Cache:
    """DVC's cache of a checkout, read as files."""

    def __init__(self, root: Path) -> None:
        from dvc.exceptions import DvcException
        from dvc.repo import Repo

        try:
            with Repo(str(root)) as repo:
                self.folder = Path(repo.cache.local_cache_dir)
        except DvcException as error:
            raise TunelineError(f"{root} is no DVC repository that can be read: {error}") from error
        self._trees: dict[str, dict[str, str] | None] = {}

    @property
    def objects(self) -> Path:
        return self.folder / "files" / "md5"

    @property
    def runs(self) -> Path:
        return self.folder / "runs"

    def path(self, md5: str) -> Path:
        """Where the bytes of this hash lie, if they are there."""
        return self.objects / md5[:2] / md5[2:]

    def tree(self, md5: str) -> dict[str, str] | None:
        """Files of a folder with their hashes; None when its list is lost or damaged."""
        if md5 not in self._trees:
            try:
                listed = json.loads(self.path(md5).read_text())
                self._trees[md5] = {entry["relpath"]: entry["md5"] for entry in listed}
            except (OSError, ValueError, KeyError, TypeError):
                self._trees[md5] = None
        return self._trees[md5]

    def below(self, md5: str, inner: str) -> str | None:
        """The hash of a file or folder within a folder; None when it is not there, or not known."""
        tree = self.tree(md5)
        if tree is None:
            return None
        if inner in tree:
            return tree[inner]
        files = {path.removeprefix(f"{inner}/"): value for path, value in tree.items() if path.startswith(f"{inner}/")}
        return folder_md5(files) if files else None


class Records:
    """All that is known of past runs in a checkout; what costs time is read when it is first asked for."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.cache = Cache(root)

    @cached_property
    def current(self) -> dict[str, StageRecord]:
        """By stage, as dvc.lock in the working tree has them.

        Raises:
            TunelineError: it cannot be read.
        """
        path = self.root / LOCK_FILE
        try:
            return (
                {record.stage: record for record in read_lock(path.read_bytes(), LOCK_FILE)} if path.is_file() else {}
            )
        except (yaml.YAMLError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise TunelineError(f"{path} cannot be read ({error}); `git checkout dvc.lock` or `dvc repro`.") from error

    @cached_property
    def past(self) -> list[StageRecord]:
        """Those of the run cache, and of dvc.lock in any commit: the newest first."""
        return [*self.of_run_cache(), *self._of_history()]

    def of_run_cache(self, since: float = 0.0) -> Iterator[StageRecord]:
        """The newest first; `since` is the time of the oldest one wanted, in seconds since 1970."""
        files = [path for path in self.cache.runs.glob("*/*/*") if path.is_file() and path.stat().st_mtime >= since]
        for path in sorted(files, key=lambda file: file.stat().st_mtime, reverse=True):
            try:
                entry = load_yaml(path.read_bytes())
                yield _record(entry["cmd"].split()[-1], entry, "DVC's run cache")
            except (yaml.YAMLError, KeyError, TypeError, AttributeError):
                continue  # a damaged entry is none; DVC deletes it when it meets it

    def _of_history(self) -> Iterator[StageRecord]:
        commits = (git_text(self.root, "log", "--all", "--format=%H", "--", LOCK_FILE) or "").split()
        seen = set()
        for commit in commits:
            blob = git_text(self.root, "rev-parse", "--verify", "--quiet", f"{commit}:./{LOCK_FILE}")
            if not blob or blob in seen:
                continue
            seen.add(blob)
            try:
                yield from read_lock(run_git(self.root, "cat-file", "blob", blob), f"dvc.lock of {commit[:10]}")
            except (yaml.YAMLError, ValueError, KeyError, TypeError, AttributeError):
                continue

    def maker(self, path: str, md5: str, *, prefer: str = LOCK_FILE) -> StageRecord | None:
        """The run that made these bytes at this path, as an output or within one; None for what no stage made.

        Args:
            prefer: origin whose records are taken where several made the same bytes; there a folder whose list is lost
                is taken by its path.
        """
        current = list(self.current.values())
        if path == START:  # what a version of the registry refers to, under another path
            return next(
                (one for one in [*current, *self.past] if any(out.md5 == md5 for out in one.outs.values())), None
            )
        if current and not any(PurePosixPath(path).is_relative_to(out) for one in current for out in one.outs):
            return None  # a source: the past need not be asked
        nearest = current if prefer == LOCK_FILE else [one for one in self.past if one.origin == prefer]
        for record in nearest:
            if self._makes(record, path, md5, trust=True):
                return record
        others = current if prefer != LOCK_FILE else []
        return next((one for one in [*others, *self.past] if self._makes(one, path, md5, trust=False)), None)

    def _makes(self, record: StageRecord, path: str, md5: str, *, trust: bool) -> bool:
        for out, content in record.outs.items():
            if out == path:
                return content.md5 == md5
            if PurePosixPath(path).is_relative_to(out):
                found = self.cache.below(content.md5, str(PurePosixPath(path).relative_to(out)))
                return found == md5 or (found is None and trust and self.cache.tree(content.md5) is None)
        return False

    def chain(self, record: StageRecord, *, beyond_start: bool = True) -> list[StageRecord]:
        """The run and all runs that it goes back to, each after those that it needs.

        Args:
            beyond_start: go on, where the line starts from a version of the registry, with the runs that made that.
        """
        found: dict[str, StageRecord] = {}

        def visit(one: StageRecord) -> None:
            for path, content in one.deps.items():
                is_end = is_code(path) or (path == START and not beyond_start)
                made_by = None if is_end else self.maker(path, content.md5, prefer=one.origin)
                if made_by is not None and made_by.key != one.key and made_by.key not in found:
                    visit(made_by)
            found.setdefault(one.key, one)

        visit(record)
        return list(found.values())


def hashes_in(text: bytes) -> set[str]:
    """Every hash that a dvc.lock or a .dvc file names, whatever version of DVC has written it."""
    return {found.decode() for found in _HASH.findall(text)}


def tracked_by_hand(root: Path) -> set[str]:
    """Hashes of what `dvc add` tracks in the working tree, by the .dvc files that it leaves."""
    found: set[str] = set()
    for folder, inner, files in os.walk(root):
        inner[:] = [name for name in inner if not name.startswith(".") and name not in ("models", "__pycache__")]
        for name in files:
            found |= hashes_in((Path(folder) / name).read_bytes()) if name.endswith(".dvc") else set()
    return found


def read_lock(text: bytes, origin: str) -> list[StageRecord]:
    """The records of a dvc.lock."""
    stages = (load_yaml(text) or {}).get("stages", {})
    return [_record(name, entry, origin) for name, entry in stages.items()]


def _record(name: str, entry: dict[str, Any], origin: str) -> StageRecord:
    params = {key: value for of_file in (entry.get("params") or {}).values() for key, value in of_file.items()}
    deps, outs = (
        {one["path"]: Content(one["md5"], one.get("size")) for one in entry.get(kind) or []}
        for kind in ("deps", "outs")
    )
    return StageRecord(name, str(entry["cmd"]), deps, params, outs, origin)
