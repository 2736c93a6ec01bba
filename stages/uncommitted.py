"""What differs from the commit, of all that stages read, as a patch: so that a run can be made again though it was not
committed.

Data is not in it (DVC has that), nor what looks like a secret: a file that holds one is left out, and that is said.
"""

from __future__ import annotations

import os
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from stages.git import run_git
from stages.secrets import holds_secret
from stages.yaml_files import load_yaml
from tuneline.errors import TunelineError

UNCOMMITTED = "uncommitted.patch"
LARGEST_PATCH = 256_000
"""Bytes."""
_KINDS = (".py", ".jinja", ".yaml", ".json", ".toml", ".lock")


@dataclass(frozen=True)
class Uncommitted:
    """The changes to what stages read, against HEAD."""

    patch: bytes = b""
    left_out: str = ""
    """Why the patch is missing or not whole; empty when it is whole."""

    @property
    def tag(self) -> str:
        """`none`, the name of the artefact that holds them, or why that is missing."""
        return self.left_out or (UNCOMMITTED if self.patch else "none")


def uncommitted(root: Path) -> Uncommitted:
    """The changes of the checkout, in files that git tracks or not; empty where there is no commit."""
    try:
        paths = _read_by_stages(root)
        changed = _changed(root, paths)
        kept: list[str] = []
        secret: list[str] = []
        for path in changed:
            is_secret = (root / path).is_file() and holds_secret((root / path).read_bytes())
            (secret if is_secret else kept).append(path)
        if not changed:
            return Uncommitted()
        if secret:
            return Uncommitted(left_out=f"left out: {', '.join(secret)} may hold a secret")
        size = sum((root / path).stat().st_size for path in kept if (root / path).is_file())
        patch = _patch(root, kept) if size <= 20 * LARGEST_PATCH else b""
        if size > 20 * LARGEST_PATCH or len(patch) > LARGEST_PATCH:
            return Uncommitted(left_out=f"left out: over {LARGEST_PATCH // 1000} kB in {len(kept)} files")
        return Uncommitted(patch)
    except (OSError, TunelineError, yaml.YAMLError) as error:
        return Uncommitted(left_out=f"left out: {(str(error).splitlines() or [type(error).__name__])[0][:200]}")


def _read_by_stages(root: Path) -> list[str]:
    """dvc.yaml, and every file of code or settings that a stage of it depends on."""
    pipeline = load_yaml((root / "dvc.yaml").read_text(encoding="utf-8"))
    params = root / "params.yaml"
    settings = load_yaml(params.read_text(encoding="utf-8")) if params.is_file() else {}
    named = {f"${{files.{name}}}": path for name, path in (settings.get("files") or {}).items()}
    deps = {named.get(dep, dep) for stage in pipeline["stages"].values() for dep in stage.get("deps", ())}
    deps = {dep for dep in deps if not is_made(dep, pipeline)}
    inside = {os.path.normpath(dep) for dep in deps if dep.endswith(_KINDS) and not os.path.isabs(dep)}
    return ["dvc.yaml", *sorted(path for path in inside if not path.startswith(".."))]


def is_made(path: str, pipeline: dict[str, Any]) -> bool:
    """Whether a stage of a dvc.yaml makes the file or folder."""
    for stage in pipeline["stages"].values():
        for out in (*stage.get("outs", ()), *stage.get("metrics", ()), *stage.get("plots", ())):
            name = out if isinstance(out, str) else next(iter(out))
            if path == name or path.startswith(f"{name}/"):
                return True
    return False


def _changed(root: Path, paths: list[str]) -> list[str]:
    """Those of the paths that differ from HEAD, tracked or not; ignored ones too, as a stage reads them."""
    tracked = run_git(root, "diff", "--name-only", "--relative", "-z", "HEAD", "--", *paths)
    known = set(run_git(root, "ls-files", "-z", "--", *paths).decode().split("\0"))
    new = [path for path in paths if path not in known and (root / path).is_file()]
    return sorted({*filter(None, tracked.decode().split("\0")), *new})


def _patch(root: Path, paths: list[str]) -> bytes:
    """Made with an index and an object store that are thrown away, so that nothing stays in the repository."""
    objects = run_git(root, "rev-parse", "--path-format=absolute", "--git-path", "objects").decode().strip()
    with tempfile.TemporaryDirectory(prefix="tuneline-") as folder:
        env = {
            "GIT_INDEX_FILE": f"{folder}/index",
            "GIT_OBJECT_DIRECTORY": folder,
            "GIT_ALTERNATE_OBJECT_DIRECTORIES": objects,
        }
        run_git(root, "read-tree", "HEAD", env=env)
        there = [path for path in paths if (root / path).is_file()]
        if there:
            run_git(root, "add", "--force", "--", *there, env=env)
        gone = [path for path in paths if path not in there]
        if gone:
            run_git(root, "rm", "--quiet", "--cached", "--ignore-unmatch", "--", *gone, env=env)
        return run_git(
            root, "diff", "--cached", "--binary", "--no-ext-diff", "--relative", "HEAD", "--", *paths, env=env
        )
