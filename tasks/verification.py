"""`tuneline verify`: every hash is computed again, from the bytes that lie in the checkout and in DVC's cache.

DVC itself remembers hashes by size and time of a file, and takes the bytes of its cache for what their names say.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from stages.git import git_bytes
from stages.hashes import file_hash, folder_md5
from stages.yaml_files import load_yaml
from tasks.graph import PARAMS_FILE, differences
from tasks.lineage import find_target
from tasks.lineage_records import Content, Records, StageRecord
from tasks.lineage_runs import Tracking, commits_with
from tuneline.errors import TunelineError


@dataclass(frozen=True)
class Mismatch:
    """Something that is not what was recorded."""

    stage: str
    what: str
    """The path of a file, or the name of a setting."""
    problem: str


@dataclass
class Verification:
    """What was looked at, and what no longer matches."""

    num_files: int = 0
    num_bytes: int = 0
    num_stages: int = 0
    mismatches: list[Mismatch] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def verify(root: Path, target: str = "") -> Verification:
    """Compute the hashes of a target's chain again, or of all that dvc.lock records.

    Of the runs in dvc.lock it looks at outputs, sources, code and settings in the checkout, and at the cache; of
    earlier runs, whose files are no longer in the checkout, at the cache alone.

    Raises:
        TunelineError: there is no such target, or nothing is recorded.
    """
    records = Records(root)
    if target:
        found = find_target(records, Tracking(root), target)
        chain = records.chain(found.record) if found.record else []
        if found.record is None:
            raise TunelineError(
                f"{target} was made by no stage, so no hash of it is recorded; `tuneline verify` checks all."
            )
    else:
        chain = list(records.current.values())
        if not chain:
            raise TunelineError(f"{root / 'dvc.lock'} records nothing yet; `tuneline run CONFIG` first.")
    return _Verifier(records).verify(chain)


def changed_inputs(root: Path, record: StageRecord, chain: list[StageRecord]) -> list[Mismatch]:
    """Sources, code, command and settings in a checkout that are not those of a run; what other stages make is not
    looked at."""
    verifier = _Verifier(Records(root))
    found = [*verifier._inputs(record, chain), *verifier._changed_settings(record)]
    stages = load_yaml((root / "dvc.yaml").read_text(encoding="utf-8"))["stages"]
    command = (stages.get(record.stage) or {}).get("cmd")
    if command != record.command:
        found.append(("dvc.yaml", f"the command of {record.stage} is {command!r}, recorded {record.command!r}"))
    return [Mismatch(record.stage, what, problem) for what, problem in found]


class _Verifier:
    def __init__(self, records: Records) -> None:
        self.root, self.cache, self.records = records.root, records.cache, records
        self.result = Verification()
        self._hashes: dict[Path, str | None] = {}
        params = self.root / PARAMS_FILE
        self._settings = load_yaml(params.read_bytes()) if params.is_file() else {}

    def verify(self, chain: list[StageRecord]) -> Verification:
        current = {record.key for record in self.records.current.values()}
        for record in chain:
            self.result.num_stages += 1
            is_current = record.key in current
            found = list(self._cached(record))
            if is_current:
                found += [*self._outputs(record), *self._inputs(record, chain), *self._changed_settings(record)]
            else:
                found += self._code_of_past(record)
            self.result.mismatches += [Mismatch(record.stage, what, problem) for what, problem in found]
        past = [record.stage for record in chain if record.key not in current]
        if past:
            self.result.notes.append(
                f"{', '.join(past)}: not the run in dvc.lock, so the cache was checked, and not the checkout"
            )
        return self.result

    def _cached(self, record: StageRecord) -> Iterator[tuple[str, str]]:
        """Objects of the cache whose bytes are not what their name says, or that are gone."""
        for out, content in record.outs.items():
            yield from self._object(out, content.md5)
            for inner, md5 in (self.cache.tree(content.md5) or {}).items() if content.is_folder else ():
                yield from self._object(f"{out}/{inner}", md5)

    def _object(self, path: str, md5: str) -> Iterator[tuple[str, str]]:
        place = self.cache.path(md5)
        if place in self._hashes:  # told already, of another output that holds the same bytes
            return
        found = self._hash(place)
        if found is None:
            yield path, f"md5 {md5} is not in DVC's cache (`dvc pull` or `dvc commit` may bring it back)"
        elif found != md5.removesuffix(".dir"):
            yield path, f"its object in DVC's cache is corrupted: {place} has md5 {found}; delete it, then `dvc pull`"

    def _outputs(self, record: StageRecord) -> Iterator[tuple[str, str]]:
        for out, content in record.outs.items():
            place = self.root / out
            if not place.exists():
                yield out, "missing in the checkout (`dvc checkout` brings it back)"
                continue
            if not content.is_folder:
                yield from self._one_file(out, content.md5)
                continue
            tree = self.cache.tree(content.md5)
            files = {str(path.relative_to(place)): path for path in sorted(place.rglob("*")) if path.is_file()}
            if tree is None:
                if folder_md5({inner: self._hash(path) or "" for inner, path in files.items()}) != content.md5:
                    yield out, "changed since; which file cannot be said, as its list is gone from DVC's cache"
                continue
            for inner, md5 in tree.items():
                yield from self._one_file(f"{out}/{inner}", md5)
            for inner in sorted(files.keys() - tree.keys()):
                yield f"{out}/{inner}", "added since"

    def _inputs(self, record: StageRecord, chain: list[StageRecord]) -> Iterator[tuple[str, str]]:
        """Sources and code; what other stages made is looked at as their output."""
        made = {out for one in chain for out in one.outs}
        for path, content in record.deps.items():
            if any(path == out or path.startswith(f"{out}/") for out in made):
                continue
            if content.is_folder:
                yield from self._folder_input(path, content)
            else:
                yield from self._one_file(path, content.md5)

    def _folder_input(self, path: str, content: Content) -> Iterator[tuple[str, str]]:
        place = self.root / path
        if not place.is_dir():
            yield path, "missing in the checkout"
            return
        files = {
            str(file.relative_to(place)): self._hash(file) or ""
            for file in sorted(place.rglob("*"))
            if file.is_file() and "__pycache__" not in file.parts
        }
        if folder_md5(files) != content.md5:
            yield path, "changed since"

    def _one_file(self, path: str, md5: str) -> Iterator[tuple[str, str]]:
        found = self._hash(self.root / path)
        if found is None:
            yield path, "missing in the checkout"
        elif found != md5:
            yield path, f"changed since: md5 {found}, recorded {md5}"

    def _changed_settings(self, record: StageRecord) -> Iterator[tuple[str, str]]:
        for name, before in record.params.items():
            now = self._settings
            for part in name.split("."):
                now = now.get(part) if isinstance(now, dict) else None
            for text in differences(name, before, now):
                setting, _, values = text.partition(": ")
                yield setting, f"changed in {PARAMS_FILE} since: {values}"

    def _code_of_past(self, record: StageRecord) -> Iterator[tuple[str, str]]:
        """Code of an earlier run that the commit with its dvc.lock does not hold."""
        content = next(iter(record.outs.values()), None)
        commits = commits_with(self.root, content.md5) if content else []
        if not commits:
            return
        for path, code in record.code.items():
            text = git_bytes(self.root, "show", f"{commits[-1]}:./{path}")
            if text and hashlib.md5(text).hexdigest() != code.md5:
                yield path, f"the commit {commits[-1][:10]} that recorded the run holds other bytes than those that ran"

    def _hash(self, place: Path) -> str | None:
        if place not in self._hashes:
            self._hashes[place] = file_hash(place) if place.is_file() else None
            if self._hashes[place] is not None:
                self.result.num_files += 1
                self.result.num_bytes += place.stat().st_size
        return self._hashes[place]
