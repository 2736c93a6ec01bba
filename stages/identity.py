"""What a stage's run is: its command, the bytes that it reads and its settings, as DVC sees them."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tuneline.errors import StageError


@dataclass(frozen=True)
class Identity:
    """Runs with the same identity make the same outputs; one that was cut off goes on in the same work folder."""

    key: str
    """32 hexadecimal digits. Limits of gates have no part in it: they change nothing that a stage makes."""
    inputs: dict[str, str]
    """Content hash of each dependency, by its path; a folder's hash ends in `.dir`."""
    params: dict[str, Any]
    """Settings by their dotted names."""
    is_forced: bool
    """Whether DVC has a result of this identity already, so that it runs only because it was told to."""


def stage_identity(name: str, root: Path) -> Identity:
    """The identity of the run that `dvc repro` would do now; safe while `dvc repro` runs the stage.

    Raises:
        StageError: there is no such stage, or something that it reads is missing.
    """
    from dvc.exceptions import DvcException
    from dvc.repo import Repo

    try:
        with Repo(str(root)) as repo:
            stage = repo.stage.load_one(str(root / "dvc.yaml"), name)
            settings = [dep for dep in stage.deps if type(dep).__name__ == "ParamsDependency"]
            files = [dep for dep in stage.deps if type(dep).__name__ != "ParamsDependency"]
            missing = [dep.def_path for dep in files if not dep.exists]
            if missing:
                raise StageError(f"{name} reads what is not there: {', '.join(missing)}; run the stages before it.")
            hashes = {dep.def_path: dep.get_hash() for dep in files}
            values = {dep.def_path: dep.read_params(flatten=True) for dep in settings}
            is_recorded = not stage.cmd_changed and not any(dep.status() for dep in stage.deps)
            is_forced = is_recorded and not any(out.use_cache and out.changed_cache() for out in stage.outs)
            cmd = stage.cmd
    except DvcException as error:
        raise StageError(f"DVC cannot read the stage {name}: {error}; check dvc.yaml.") from error
    inputs = {path: str(found.value) for path, found in hashes.items()}
    params = {key: value for of_file in values.values() for key, value in of_file.items()}
    deciding = {key: value for key, value in params.items() if not key.startswith("gates.")}
    text = json.dumps([cmd, inputs, deciding], sort_keys=True, default=str)
    return Identity(hashlib.sha256(text.encode()).hexdigest()[:32], inputs, params, is_forced)


def output_hashes(name: str, root: Path) -> dict[str, str]:
    """Content hash of each output as it lies in the checkout, by its path: what dvc.lock will hold."""
    from dvc.repo import Repo

    with Repo(str(root)) as repo:
        stage = repo.stage.load_one(str(root / "dvc.yaml"), name)
        return {out.def_path: str(out.get_hash().value) for out in stage.outs if out.exists}
