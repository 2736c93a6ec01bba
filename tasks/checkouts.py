"""Scratch checkouts: the pipeline once more in another folder, with the same DVC cache: what is known is restored.

A scratch checkout borrows git's objects from the checkout that it was made of, keeps DVC's state in its own folder, and
is gone without a trace when that folder is removed.
"""

import hashlib
import os
import shutil
from collections.abc import Iterable
from pathlib import Path, PurePosixPath

from stages.git import run_git
from stages.start import START
from stages.storage import write_whole
from stages.uncommitted import is_made
from stages.yaml_files import load_yaml
from tasks.tracking import tracking_uri
from tuneline.errors import TunelineError

_STAMP = "scratch_checkout"


def scratch_checkout(root: Path, folder: Path, revision: str | None = None, *, files: Iterable[str] = ()) -> Path:
    """A clone below `folder` that shares the DVC cache of the checkout `root`, run cache included.

    Idempotent: one that is there already is brought to the same commit and changes. What git does not track in it (work
    folders, DVC's outputs, its lock if that is untracked) stays, so that a run that was killed goes on in it.

    Args:
        root: The checkout; DVC must be able to open it.
        folder: Where it is made; removing this folder takes all of it away.
        revision: A commit, branch, tag or experiment; None takes HEAD and the changes to tracked files on top of it.
        files: Paths that the pipeline reads and git may not track, as the config names them (`PipelineConfig.files`
            has them): links to those of `root` stand in for the ones that the clone lacks. What stages make, and a
            model that is fetched, are not linked: the clone makes its own, and would write through the link.

    Returns:
        The new checkout's root, somewhere below `folder`.

    Raises:
        TunelineError: `root` is in no git repository, has no commit, or knows no such revision.
    """
    root, folder, files = root.absolute(), folder.absolute(), tuple(files)
    top = Path(_git(root, "rev-parse", "--show-toplevel"))
    commit = _commit(root, revision)
    changes = b"" if revision is not None else run_git(top, "diff", "--binary", "--no-ext-diff", "HEAD")
    clone = folder / _place(top, root, files)
    stamp, wanted = clone / ".git" / _STAMP, f"{commit} {hashlib.sha256(changes).hexdigest()}\n"
    if not stamp.is_file():
        shutil.rmtree(clone, ignore_errors=True)  # one that was killed while it was made
        clone.parent.mkdir(parents=True, exist_ok=True)
        _git(folder, "clone", "--quiet", "--shared", "--no-checkout", str(top), str(clone))
    if not stamp.is_file() or stamp.read_text() != wanted:
        _git(clone, "checkout", "--quiet", "--force", "--detach", commit)
        if changes:  # to the index too, so that the next checkout takes away files that they add
            run_git(clone, "apply", "--index", "--whitespace=nowarn", "-", text=changes)
        write_whole(stamp, wanted)
    made = clone / root.resolve().relative_to(top.resolve())
    _share_cache(root, made, folder)
    _link(root, made, files)
    return made


def checkout_environment(root: Path, checkout: Path) -> dict[str, str]:
    """Variables for commands in a scratch checkout: its own code comes first; MLflow is that of `root`."""
    paths = [str(checkout), *filter(None, [os.environ.get("PYTHONPATH")])]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(paths), "MLFLOW_TRACKING_URI": tracking_uri(root)}


def _commit(root: Path, revision: str | None) -> str:
    name = revision or "HEAD"
    try:
        return _git(root, "rev-parse", "--verify", "--quiet", "--end-of-options", f"{name}^{{commit}}")
    except TunelineError:
        pass
    experiments = _git(root, "for-each-ref", "--format=%(objectname) %(refname)", "refs/exps").splitlines()
    found = {sha for sha, ref in (line.split(" ", 1) for line in experiments) if ref.endswith(f"/{name}")}
    if len(found) == 1:
        return found.pop()
    if revision is None:
        raise TunelineError(f"{root} has no commit yet; a scratch checkout is made of one: `git commit` first.")
    raise TunelineError(f"{root} knows no revision {revision}; `git log` and `dvc exp show` list those that it has.")


def _place(top: Path, root: Path, files: Iterable[str]) -> Path:
    """Where the clone lies in its folder: below as many folders as paths such as `../data` climb out."""
    depth = len(root.resolve().relative_to(top.resolve()).parts)
    climbs = [PurePosixPath(os.path.normpath(path)).parts.count("..") for path in files if not os.path.isabs(path)]
    return Path(*top.parts[1:][-max(1, 1 + max(climbs, default=0) - depth) :])


def _share_cache(root: Path, made: Path, folder: Path) -> None:
    from dvc.config import Config
    from dvc.exceptions import DvcException
    from dvc.repo import Repo

    try:
        with Repo(str(root)) as repo:
            cache, known = repo.cache.local_cache_dir, Config(repo.dvc_dir)
            levels = [known.load_one(level) for level in ("repo", "local")]
        (made / ".dvc" / "config.local").touch(mode=0o600)  # it may hold what opens a remote
        with Config(str(made / ".dvc")).edit("local") as config:
            for level in levels:  # a remote's relative path is one from `root`
                for name, remote in level["remote"].items():
                    plain = {key: str(value) if key == "url" else value for key, value in remote.items()}
                    config["remote"].setdefault(name, {}).update(plain)
            config["core"].update(levels[1]["core"])
            config["cache"].update({**levels[1]["cache"], "dir": cache})
            # Its tables of what it has hashed would lie in /var/tmp, and be left behind there.
            config["core"]["site_cache_dir"] = str(folder / ".dvc-site-cache")
    except DvcException as error:
        raise TunelineError(f"DVC cannot use {root}: {error}; a scratch checkout shares its cache.") from error


def _link(root: Path, made: Path, files: Iterable[str]) -> None:
    pipeline = load_yaml((made / "dvc.yaml").read_text(encoding="utf-8"))
    for path in files:
        source, target = root / path, made / path
        if os.path.isabs(path) or not source.exists() or target.exists() or path == START or is_made(path, pipeline):
            continue
        target.parent.mkdir(parents=True, exist_ok=True)
        target.unlink(missing_ok=True)  # a link to what is no longer there
        target.symlink_to(os.path.realpath(source))


def _git(folder: Path, *arguments: str) -> str:
    return run_git(folder, *arguments).decode().strip()
