"""A line may start from a version of MLflow's registry: `models:/NAME@ALIAS` or `models:/NAME/VERSION`.

`tuneline run` looks up what the alias means and puts that content into models/start, which dvc.yaml depends on: an
alias that moved makes prepare and sft out of date, one that did not makes nothing so. What loads it hashes it first.
"""

from __future__ import annotations

import json
from pathlib import Path

from stages.hashes import file_hash, folder_md5
from tuneline.errors import ModelError

START = "models/start"
START_RECORD = Path(".work/start.json")
"""Which version that is, and DVC's hash of it."""


def is_of_registry(name: str | None) -> bool:
    return name is not None and name.startswith("models:/")


def registry_place(uri: str) -> tuple[str, str, str]:
    """Name, version and alias of such an address; the version or the alias is empty.

    Raises:
        ValueError: it is no such address.
    """
    rest = uri.removeprefix("models:/").strip("/")
    name, at, alias = rest.partition("@")
    if at and name and alias and "/" not in rest:
        return name, "", alias
    name, slash, version = rest.partition("/")
    if slash and name and version.isdecimal() and "@" not in rest:
        return name, version, ""
    raise ValueError(
        f"{uri!r} names no version of a registered model: write models:/NAME@ALIAS or models:/NAME/VERSION"
    )


def verify_start(root: Path) -> None:
    """Hash what lies in models/start, and hold it against what the registry's version refers to.

    Raises:
        ModelError: it is something else, or nobody has looked it up.
    """
    record = root / START_RECORD
    if not record.is_file() or not (root / START).is_dir():
        raise ModelError(
            f"{START} was not looked up in MLflow's registry yet: `tuneline run CONFIG` does it, for `dvc repro` too."
        )
    known = json.loads(record.read_text())
    found = folder_hash(root / START)
    if found != known["md5"]:
        raise ModelError(
            f"{START} has the hash {found}, and {known['uri']} (version {known['version']} of {known['model']}) refers "
            f"to {known['md5']}: it was changed or is damaged. Delete it, and `tuneline run CONFIG` fetches it again."
        )


def folder_hash(folder: Path) -> str:
    """DVC's hash of a folder as it lies there."""
    files = (path for path in folder.rglob("*") if path.is_file())
    return folder_md5({path.relative_to(folder).as_posix(): file_hash(path) for path in files})
