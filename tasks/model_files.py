"""Models by their content: from DVC's cache into a folder, every file hashed on the way."""

from __future__ import annotations

import hashlib
import os
import shutil
from pathlib import Path

from stages.hashes import CHUNK
from tasks.lineage_records import Cache
from tuneline.errors import ModelError


def has_model(root: Path, md5: str) -> bool:
    """Whether DVC's cache holds every file of a folder."""
    cache = Cache(root)
    files = cache.tree(md5)
    return files is not None and all(cache.path(of_file).is_file() for of_file in files.values())


def fetch_model(root: Path, md5: str, folder: Path) -> None:
    """Put what DVC's cache holds under this hash into a folder: a copy, as links could be written through.

    Args:
        root: the checkout whose cache it is.
        md5: of a folder, ending in `.dir`.
        folder: replaced as a whole, once all is there.

    Raises:
        ModelError: the cache and the default remote do not have it, or have other bytes.
    """
    if not has_model(root, md5):
        _pull(root, md5)
    cache = Cache(root)
    files = cache.tree(md5)
    missing = [path for path, of_file in (files or {}).items() if not cache.path(of_file).is_file()]
    if files is None or missing:
        what = f"{len(missing)} of its {len(files)} files" if files else "the list of its files"
        raise ModelError(
            f"DVC's cache lacks {what} of the model with hash {md5}. Where it was made, `dvc push --run-cache`; here "
            "`dvc pull`, or name a remote that has it (`dvc remote add -d NAME URL`)."
        )
    aside = folder.with_name(f".{folder.name}.{os.getpid()}.new")
    try:
        for path, of_file in files.items():
            _copy(cache.path(of_file), _within(aside, path), of_file)
        shutil.rmtree(folder, ignore_errors=True)
        os.replace(aside, folder)
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def _within(folder: Path, path: str) -> Path:
    place = Path(os.path.normpath(folder / path))
    if not place.is_relative_to(os.path.normpath(folder)):
        raise ModelError(f"A file of the model is named {path!r}, which lies outside its folder: it is not fetched.")
    return place


def _copy(source: Path, target: Path, md5: str) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    digest = hashlib.md5()
    with source.open("rb") as read, target.open("wb") as write:
        while chunk := read.read(CHUNK):
            digest.update(chunk)
            write.write(chunk)
    if digest.hexdigest() != md5:
        raise ModelError(
            f"{source} is damaged: DVC's cache has other bytes there than its name says. Remove that file, and `dvc "
            "pull` it again, or `tuneline verify` to see what else is."
        )


def _pull(root: Path, md5: str) -> None:
    """From the default remote, if there is one; what is then missing is told by the caller."""
    from dvc.exceptions import DvcException
    from dvc.repo import Repo
    from dvc_data.hashfile.hash_info import HashInfo

    try:
        with Repo(str(root)) as repo:
            if repo.config["core"].get("remote"):
                repo.cloud.pull([HashInfo("md5", md5)])  # the list of files alone
                files = Cache(root).tree(md5) or {}
                repo.cloud.pull([HashInfo("md5", of_file) for of_file in set(files.values())])
    except (DvcException, OSError) as error:
        raise ModelError(f"DVC's remote did not give the model with hash {md5}: {error}") from error
