"""`tuneline gc`: what no kept version needs, how much that is, and freeing it.

DVC's own `gc` knows commits alone. It would drop the model of a registered version whose run was never committed, and
what its entries in the run cache lead to, so that going back to its settings trains again. Kept here is what is
reachable from the working tree, from the branches, tags and experiments of git, and from the registered versions, each
with the runs that it was made by.
"""

from __future__ import annotations

import fcntl
import shutil
import time
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import yaml

from stages.git import run_git
from stages.yaml_files import load_yaml
from tasks.lineage_records import LOCK_FILE, Records, StageRecord, hashes_in, read_lock, tracked_by_hand
from tasks.lineage_runs import ModelVersion, Tracking
from tuneline.errors import StageError, TunelineError

History = Literal["refs", "all", "none"]
_LOG_SECONDS = 30 * 24 * 3600


@dataclass(frozen=True)
class Garbage:
    """Something that no kept version needs."""

    kind: Literal["cache", "run cache", "work folder", "log", "clone"]
    path: Path
    size: int
    """Bytes that removing it frees: files that have other names elsewhere free none."""
    why: str


@dataclass
class Collection:
    """What would go, and what is kept and why."""

    garbage: list[Garbage] = field(default_factory=list)
    kept: dict[str, int] = field(default_factory=dict)
    """Number of results kept, by what keeps them."""
    num_kept_objects: int = 0
    kept_bytes: int = 0

    @property
    def size(self) -> int:
        return sum(one.size for one in self.garbage)


@dataclass(frozen=True)
class Keeping:
    """What is kept beside what dvc.lock in the working tree names."""

    history: History = "refs"
    """Whose dvc.lock: of all branches, tags and experiments (`refs`), of every commit (`all`), or of `none`."""
    versions: int | None = None
    """The newest so many versions of each registered model, and those with an alias; None: every version."""
    days: float = 0.0
    """Results that the run cache has of the last so many days: going back to their settings runs nothing again."""


def collect(root: Path, keeping: Keeping = Keeping()) -> Collection:
    """What no kept version needs; nothing is removed.

    Args:
        root: The checkout.
        keeping: What is kept beside the working tree.

    Raises:
        TunelineError: what has to be kept cannot be known: MLflow does not answer, or the cache is another checkout's.
    """
    records = Records(root)
    _check_cache_is_ours(root, records)
    found = Collection()
    objects = _with_members(records, _kept(records, keeping, found))
    for place in sorted(records.cache.objects.glob("*/*")):
        md5 = place.parent.name + place.name
        size = place.stat().st_size
        if md5 in objects:
            found.num_kept_objects += 1
            found.kept_bytes += size
        else:
            size = size if place.stat().st_nlink == 1 else 0
            found.garbage.append(Garbage("cache", place, size, "no kept version has it"))
    found.garbage += _run_cache(records, objects)
    found.garbage += [*_work(root), *_old_logs(root)]
    return found


def free(root: Path, keeping: Keeping = Keeping()) -> Collection:
    """Remove what `collect` finds, looked for anew once no run can start; what was removed.

    Raises:
        TunelineError: a run is active.
    """
    with nothing_runs(root):
        found = collect(root, keeping)
        # The run cache first: an entry whose objects are gone would be no result.
        for one in sorted(found.garbage, key=lambda garbage: garbage.kind != "run cache"):
            if one.path.is_dir() and not one.path.is_symlink():
                shutil.rmtree(one.path, ignore_errors=True)
            else:
                one.path.unlink(missing_ok=True)
        _remove_empty_folders(Records(root).cache.folder)
    return found


@contextmanager
def nothing_runs(root: Path) -> Iterator[None]:
    """Holds the locks that runs and stages hold, so that none is active and none starts.

    Raises:
        TunelineError: one is active.
    """
    work = root / ".work"
    work.mkdir(exist_ok=True)
    others = sorted(path for path in (*work.glob("*/lock"), *work.glob("*/*/lock")) if path.is_file())
    with ExitStack() as held:
        for path in (work / "run.lock", *others):
            file = held.enter_context(path.open("a+"))
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                file.seek(0)
                holder = file.read().strip() or "?"
                what = "A run" if path.name == "run.lock" else f"What holds {path.relative_to(root)}"
                raise TunelineError(
                    f"{what} is active (process {holder}), and needs what it reads and makes. Nothing was freed; "
                    "`tuneline gc` again once it has ended."
                ) from None
        in_use = next((clone for clone in _clones(root) if _is_in_use(clone)), None)
        if in_use is not None:
            raise TunelineError(
                f"A run is active in {in_use}: `tuneline gc` again once it has ended. Nothing was freed."
            )
        busy = _busy_in_dvc(root)
        if busy:
            raise TunelineError(f"DVC is at work in process {busy}: `tuneline gc` again once it has ended.")
        yield


def _busy_in_dvc(root: Path) -> int | None:
    """A living process that DVC's own lock of paths names."""
    import psutil

    path = root / ".dvc" / "tmp" / "rwlock"
    try:
        holders = load_yaml(path.read_text()) or {}
    except (OSError, yaml.YAMLError):
        return None
    for modes in holders.values():
        for mode in ("read", "write"):
            infos = modes.get(mode) or []
            for info in infos if isinstance(infos, list) else [infos]:
                if psutil.pid_exists(int(info.get("pid", 0))):
                    return int(info["pid"])
    return None


def _check_cache_is_ours(root: Path, records: Records) -> None:
    folder = records.cache.folder.resolve()
    if not folder.is_relative_to(root.resolve()):
        raise TunelineError(
            f"The DVC cache is {folder}, outside this checkout: others may need what this one does not. Run "
            "`tuneline gc` in the checkout that holds it."
        )


def _kept(records: Records, keeping: Keeping, found: Collection) -> set[str]:
    """Hashes of what the kept runs read and made, and of what `dvc add` tracks."""
    kept: dict[str, StageRecord] = {}
    md5s: set[str] = set()

    def keep(why: str, ones: Iterable[StageRecord]) -> None:
        new = {one.key: one for one in ones if one.key not in kept}
        found.kept[why] = found.kept.get(why, 0) + len(new)
        kept.update(new)

    keep("the working tree", records.current.values())
    md5s |= tracked_by_hand(records.root)
    if keeping.history != "none":
        for text in _locks_of_history(records.root, keeping.history):
            md5s |= hashes_in(text)  # all, also where a lock is of another format of DVC's
            keep("git", _read(text))
    for clone in filter(_is_in_use, _clones(records.root)):  # a sweep that is not over shares this cache
        if (clone / LOCK_FILE).is_file():
            keep("checkouts below .work", _read((clone / LOCK_FILE).read_bytes()))
    if keeping.days:
        keep("runs of the last days", records.of_run_cache(since=time.time() - keeping.days * 24 * 3600))
    for version in _kept_versions(records.root, keeping.versions):
        md5s.add(version.md5)
        made_by = records.maker(version.path, version.md5)
        keep("registered versions", records.chain(made_by) if made_by is not None else ())
    md5s |= {out.md5 for record in kept.values() for out in record.outs.values()}
    md5s |= {dep.md5 for record in kept.values() for dep in record.deps.values()}
    return md5s


def _kept_versions(root: Path, keep_versions: int | None) -> list[ModelVersion]:
    tracking = Tracking(root)
    if tracking.problem:  # no store was ever made
        return []
    try:
        versions = tracking.all_versions()
    except Exception as error:  # a tracking server may fail in any way
        raise TunelineError(
            f"MLflow does not answer ({type(error).__name__}), so that it is not known which models are registered; "
            "nothing was freed. Start its server, or unset MLFLOW_TRACKING_URI."
        ) from error
    if keep_versions is None:
        return versions
    by_model: dict[str, list[ModelVersion]] = {}
    for version in sorted(versions, key=lambda one: -int(one.version)):
        by_model.setdefault(version.name, []).append(version)
    return [
        one for ones in by_model.values() for number, one in enumerate(ones) if number < keep_versions or one.aliases
    ]


def _with_members(records: Records, md5s: set[str]) -> set[str]:
    """These objects, and the files of those that are folders."""
    return md5s | {inner for md5 in md5s if md5.endswith(".dir") for inner in (records.cache.tree(md5) or {}).values()}


def _run_cache(records: Records, objects: set[str]) -> Iterator[Garbage]:
    """Entries that lead to what is no longer there, or goes now. All others stay: they spare a run."""
    for place in sorted(records.cache.runs.glob("*/*/*")):
        try:
            entry = load_yaml(place.read_bytes())
            gone = [out["path"] for out in entry.get("outs", []) if out["md5"] not in objects]
        except (OSError, yaml.YAMLError, KeyError, TypeError, AttributeError):
            yield Garbage("run cache", place, place.stat().st_size, "cannot be read")
            continue
        if gone:
            yield Garbage("run cache", place, place.stat().st_size, f"{', '.join(gone)} is kept by nothing")


def _work(root: Path) -> Iterator[Garbage]:
    """Work folders of runs that nothing will go on with, and clones of sweeps and reproductions that are over."""
    from stages.run import DONE
    from stages.tracking import StageRun
    from tasks.promotion_results import PROMOTION_WORK

    for stage in sorted(path for path in (root / ".work").glob("*") if (path / "lock").is_file()):
        current = _identity(stage.name, root)
        for folder in sorted(path for path in stage.iterdir() if path.is_dir()):
            if folder.name in (current, "manual") or StageRun.is_pending(folder):
                continue
            why = "a finished run, which DVC has" if (folder / DONE).exists() else "a run under other settings, cut off"
            yield Garbage("work folder", folder, _freed_by(folder), why)
    for folder in sorted((root / PROMOTION_WORK).glob("*.model*")):
        yield Garbage("work folder", folder, _freed_by(folder), "a champion that was to be evaluated, cut off")
    for clone in _clones(root):
        if not _is_in_use(clone):
            yield Garbage("clone", clone, _freed_by(clone), "a checkout for a sweep or reproduction that is over")


def _old_logs(root: Path) -> Iterator[Garbage]:
    for place in sorted([*(root / ".prefect").glob("*.log"), *(root / ".work").glob("*.log")]):
        if time.time() - place.stat().st_mtime > _LOG_SECONDS:
            yield Garbage("log", place, place.stat().st_size, "not written to for 30 days")


def _identity(stage: str, root: Path) -> str:
    """Of the run that the stage would do now; empty where it cannot run."""
    from stages.identity import stage_identity

    try:
        return stage_identity(stage, root).key
    except (StageError, KeyError):
        return ""


def _clones(root: Path) -> list[Path]:
    """Scratch checkouts below .work."""
    marks = (root / ".work").glob("**/.git/scratch_checkout")
    return sorted(mark.parent.parent for mark in marks)


def _is_in_use(clone: Path) -> bool:
    lock = clone / ".work" / "run.lock"
    locks = [lock, *(clone / ".work").glob("*/lock")]
    for path in locks:
        if not path.is_file():
            continue
        with path.open() as file:
            try:
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except BlockingIOError:
                return True
    return False


def _freed_by(folder: Path) -> int:
    """Bytes that removing a folder frees: of files whose every name lies in it."""
    names: dict[tuple[int, int], int] = {}
    sizes: dict[tuple[int, int], tuple[int, int]] = {}
    for place in folder.rglob("*"):
        if place.is_file() and not place.is_symlink():
            status = place.stat()
            inode = (status.st_dev, status.st_ino)
            names[inode] = names.get(inode, 0) + 1
            sizes[inode] = (status.st_size, status.st_nlink)
    return sum(size for inode, (size, num_links) in sizes.items() if names[inode] >= num_links)


def _locks_of_history(root: Path, history: History) -> list[bytes]:
    """Each dvc.lock and .dvc file of the chosen commits once; none where the checkout is in no git repository.

    Raises:
        TunelineError: git fails, so that nobody knows them.
    """
    if not any((folder / ".git").exists() for folder in (root.absolute(), *root.absolute().parents)):
        return []
    asked = ["rev-list", "--all"] if history == "all" else ["for-each-ref", "--format=%(objectname)"]
    try:
        commits = run_git(root, *asked).decode().split()
        lock = run_git(root, "rev-parse", "--show-prefix").strip() + LOCK_FILE.encode()
        blobs: dict[str, None] = {}
        for commit in dict.fromkeys(commits):
            listed = run_git(root, "ls-tree", "-r", "-z", "--full-tree", f"{commit}^{{commit}}")
            for about, _, name in (line.partition(b"\t") for line in listed.split(b"\0") if line):
                if name == lock or name.endswith(b".dvc"):
                    blobs[about.split()[2].decode()] = None
        return [run_git(root, "cat-file", "blob", blob) for blob in blobs]
    except TunelineError as error:
        raise TunelineError(
            f"{error}\nSo it is not known what its branches and tags need; nothing was freed. Mend that, or keep none "
            "of them: `tuneline gc --history none`."
        ) from error


def _read(text: bytes) -> list[StageRecord]:
    try:
        return read_lock(text, "git")
    except (yaml.YAMLError, ValueError, KeyError, TypeError, AttributeError):
        return []  # a .dvc file, or of another format of DVC's


def _remove_empty_folders(folder: Path) -> None:
    for path in sorted(folder.rglob("*"), key=lambda one: -len(one.parts)):
        if path.is_dir() and not any(path.iterdir()):
            path.rmdir()
