"""To and from a DVC remote: a local folder, SSH or S3. Results, and the run cache that spares others the work.

`dvc push` believes a folder's list: where that is on the remote, it does not look for the files again. One that was
lost, or that a broken connection left half, would be missed by the next `dvc pull` only. So what is there is compared
with what should be, by name and size, and sent again.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

from stages.hashes import file_hash
from stages.secrets import without_secrets
from stages.supervise import run_guarded
from tasks.display import display
from tasks.lineage_records import Cache, Records, tracked_by_hand
from tuneline.errors import TunelineError

_SHOWN_LINES = 6
_RIGHT_KEY = "see that the key or password in the environment or in .dvc/config.local is that of the remote"
_HINTS = {
    "Unable to locate credentials": "give them by the environment (AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY), or by "
    "`dvc remote modify --local`",
    "NoCredentials": "give them by the environment (AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY)",
    "Permission denied": _RIGHT_KEY,
    "authentication": _RIGHT_KEY,
    "Forbidden": "the credentials of the environment have no right to it",
    "does not exist": "make the bucket or folder first",
    "Connect": "see that the address is right and the machine can be reached",
}


class StorageError(TunelineError):
    """A remote that is missing, does not answer, or refused; what was made lies in the checkout as it was."""


@dataclass(frozen=True)
class Transfer:
    """What a push or pull has done."""

    remote: str
    num_objects: int
    """Objects that the checkout's dvc.lock needs."""
    num_mended: int = 0
    """Of these, how many were lost or half on the remote though DVC took them for being there."""


def push(root: Path, remote: str = "", *, every: bool = False) -> Transfer:
    """Send what dvc.lock names, and the run cache, to a remote; one that was cut off goes on.

    Args:
        root: The checkout.
        remote: Its name; empty takes DVC's default.
        every: send the results of all branches and tags too.

    Raises:
        StorageError: there is no remote, it does not answer, or refuses.
    """
    name = remote_name(root, remote)
    needed = _needed(root)
    more = ["--all-branches", "--all-tags"] if every else []
    _dvc(root, name, ["push", "--run-cache", "--remote", name, *more], "push")
    with _refusals(name, "push"):
        num_mended = _mend(root, name, needed)
    return Transfer(name, len(needed), num_mended)


def push_after_run(root: Path, console: Console | None = None) -> None:
    """`push` at the end of a run, told where the run is shown.

    Raises:
        StorageError: it failed; what the run made is whole.
    """
    done = push(root)
    text = f"{done.num_objects:,} objects are on {done.remote}."
    if console is None:
        display.say(text)
    else:
        console.print(text)


def pull(root: Path, remote: str = "") -> Transfer:
    """Bring what dvc.lock names, and the run cache, from a remote; what arrives is hashed before it is checked out.

    Raises:
        StorageError: there is no remote, it does not answer, or does not have all; or has other bytes than it should.
    """
    name = remote_name(root, remote)
    before = {path for path in _needed(root) if Cache(root).path(path).is_file()}
    _dvc(root, name, ["fetch", "--run-cache", "--remote", name], "pull")
    cache, needed = Cache(root), _needed(root)
    wrong = []
    for md5 in needed - before:
        place = cache.path(md5)
        if place.is_file() and file_hash(place) != md5.removesuffix(".dir"):
            wrong.append(md5)
            place.unlink()
    if wrong:
        raise StorageError(
            f"The remote {name} holds other bytes than it should for {len(wrong)} objects "
            f"({', '.join(sorted(wrong)[:3])}); they were taken out of DVC's cache again. Delete them on the remote, "
            "and `tuneline push` from a checkout that has them; `tuneline verify` there says whether it does."
        )
    _dvc(root, name, ["checkout"], "pull")
    return Transfer(name, len(needed))


def remote_name(root: Path, remote: str = "") -> str:
    """The remote by that name, or the default one.

    Raises:
        StorageError: there is none such.
    """
    from dvc.config import Config

    config = Config(str(root / ".dvc"))
    known, name = sorted(config["remote"]), remote or config["core"].get("remote", "")
    if not name:
        also = f" (there are {', '.join(known)}: `dvc remote default NAME`)" if known else ""
        raise StorageError(
            f"No DVC remote is the default one{also}; `dvc remote add -d store /path`, or ssh://host/path, or s3://bucket/path."
        )
    if name not in known:
        raise StorageError(
            f"There is no DVC remote {name}; there are {', '.join(known) or 'none'}. `dvc remote add` makes one."
        )
    return name


def _needed(root: Path) -> set[str]:
    """Hashes of all objects that dvc.lock and .dvc files name, as far as folders' lists are here."""
    records = Records(root)
    named = {out.md5 for record in records.current.values() for out in record.outs.values()}
    named |= tracked_by_hand(root)
    inner = {md5 for one in named if one.endswith(".dir") for md5 in (records.cache.tree(one) or {}).values()}
    return named | inner


def _mend(root: Path, remote: str, needed: set[str]) -> int:
    """Send what is not on the remote, or not whole, though DVC believes it is; how many objects that were."""
    from dvc.repo import Repo

    cache = Cache(root)
    with Repo(str(root)) as repo:
        config = repo.config["remote"][remote]
        if config.get("version_aware") or config.get("worktree"):
            return 0  # there files have their own names
        odb = repo.cloud.get_remote_odb(remote)
        sizes = _sizes(odb)
        num_mended = 0
        for md5 in sorted(needed):
            place = cache.path(md5)
            if place.is_file() and sizes.get(md5) != place.stat().st_size:
                _send(odb, place, md5)
                num_mended += 1
        return num_mended


def _sizes(odb: Any) -> dict[str, int]:
    """Bytes of every object on the remote, by its hash."""
    if not odb.fs.exists(odb.path):
        return {}
    if odb.fs.protocol == "local":
        found = {path: os.path.getsize(path) for path in odb.fs.find(odb.path)}
    else:
        odb.fs.fs.invalidate_cache()
        listed = odb.fs.fs.find(odb.path, detail=True)
        found = {path: int(known.get("size") or 0) for path, known in listed.items()}
    parts = {path: path.replace("\\", "/").rsplit("/", 2) for path in found}
    return {"".join(part[1:]): found[path] for path, part in parts.items() if len(part) == 3}


def _send(odb: Any, place: Path, md5: str) -> None:
    """Aside first, so that it is whole or not there; what is half there makes room."""
    target = odb.oid_to_path(md5)
    odb.fs.makedirs(odb.fs.parent(target))
    if odb.fs.exists(target):
        odb.fs.remove(target)
    if odb.fs.protocol in ("s3", "gs", "azure"):  # there an upload is whole or not there, and a rename is a copy
        odb.fs.put_file(str(place), target)
        return
    aside = f"{target}.new"
    odb.fs.put_file(str(place), aside)
    odb.fs.move(aside, target)


def _dvc(root: Path, remote: str, arguments: Sequence[str], what: str) -> None:
    """Run DVC in the checkout; what it said last is the reason, where it fails."""
    lines: list[str] = []
    command = [sys.executable, "-m", "dvc", "--cd", str(root), "--wait-for-lock", *arguments]
    try:
        code = run_guarded(command, on_line=lambda line: lines.append(without_secrets(line.rsplit("\r", 1)[-1])))
    except OSError as error:
        raise StorageError(f"DVC cannot be started: {error}") from error
    if code:
        raise StorageError(_reason(remote, what, "\n".join(lines)))


@contextmanager
def _refusals(remote: str, what: str) -> Iterator[None]:
    """Whatever a file system raises becomes one message."""
    try:
        yield
    except TunelineError:
        raise
    except Exception as error:  # each kind of remote has errors of its own
        raise StorageError(_reason(remote, what, f"{type(error).__name__}: {error}")) from error


def _reason(remote: str, what: str, text: str) -> str:
    said = [
        line
        for line in text.splitlines()
        if line.strip() and not line.startswith(("Collecting", "Pushing", "Fetching"))
    ]
    shown = "\n".join(f"  | {without_secrets(line)}" for line in said[-_SHOWN_LINES:])
    hint = next((hint for sign, hint in _HINTS.items() if sign.lower() in text.lower()), "")
    whole = {
        "push": "What the run made lies whole in the checkout and in DVC's cache; `tuneline push` goes on with what is "
        "not there yet.",
        "pull": "`tuneline pull` goes on with what is not here yet; what the remote lacks, `tuneline run` makes again.",
    }[what]
    return f"DVC could not {what} with the remote {remote}:\n{shown}\n{f'Try this: {hint}. ' if hint else ''}{whole}"
