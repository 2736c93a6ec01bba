"""`tuneline reproduce`: the commit, the recorded changes and the inputs of a version in a scratch checkout, every stage
from source again, and what came of it compared with what was recorded, bit for bit.

The scratch checkout reads DVC's cache and adds nothing to it; MLflow's runs of the reproduction stay in it.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from stages.git import git_text, run_git
from stages.hashes import file_hash
from stages.start import START, START_RECORD
from stages.supervise import owner_env, run_guarded, stage_lock
from stages.yaml_files import load_yaml
from tasks.checkouts import checkout_environment, scratch_checkout
from tasks.lineage import Target, find_target
from tasks.lineage_records import PACKAGE_LOCK, Records, StageRecord, is_code
from tasks.lineage_runs import Tracking, commits_with
from tasks.reproduction_compare import Difference, differences_of
from tasks.verification import changed_inputs
from tuneline.errors import StageError, TunelineError

REPRODUCTIONS = Path(".work/reproductions")
_SHOWN = 20


@dataclass
class Reproduction:
    """What came of making something again."""

    target: str
    stages: tuple[str, ...]
    commit: str
    patched: bool
    """Whether recorded changes were put on top of the commit."""
    obstacles: list[str] = field(default_factory=list)
    """Why it cannot be exactly what ran; then nothing was run, unless that was asked for."""
    num_files: int = 0
    differences: list[Difference] = field(default_factory=list)
    checkout: Path | None = None
    """Where it lies, if it was kept."""

    @property
    def is_equal(self) -> bool:
        return self.num_files > 0 and not self.differences


def reproduce(
    root: Path, text: str, *, anyway: bool = False, keep: bool = False, say: Callable[[str], None] = print
) -> Reproduction:
    """Make a version again, from source, and compare.

    Args:
        root: The checkout.
        text: A model version, or another target of `tuneline lineage`.
        anyway: run it though it cannot be exactly what ran.
        keep: leave the scratch checkout.
        say: told of each step.

    Raises:
        TunelineError: there is no such target, its commit is gone, or a stage failed.
    """
    records, tracking = Records(root), Tracking(root)
    target = find_target(records, tracking, text)
    if target.record is None:
        raise TunelineError(f"{text} was made by no stage: there is nothing to run.")
    if target.record.origin == "MLflow":
        raise TunelineError(
            f"{text} cannot be reproduced: only MLflow knows its run, and neither its code nor its inputs' runs. Its "
            "dvc.lock or DVC's run cache has them: `tuneline pull`, or fetch the branch that it was committed to."
        )
    chain = records.chain(target.record, beyond_start=False)
    folder = root / REPRODUCTIONS / "".join(c if c.isalnum() or c in "-_." else "-" for c in target.name)
    with stage_lock(folder / "lock", say):
        made, patched, commit = _checkout(records, tracking, target, chain, folder / "checkout", say)
        _write_settings(made, target, chain)
        _put_sources(records, made, chain)
        result = Reproduction(target.name, tuple(one.stage for one in chain), commit, patched)
        found = [one for record in chain for one in changed_inputs(made, record, chain)]
        result.obstacles = list(dict.fromkeys(f"{one.what}: {one.problem}" for one in found))
        if not result.obstacles or anyway:
            for record in chain:
                _run(root, made, record, say)
            for record in chain:
                num_files, differences = differences_of(records, record, made)
                result.num_files += num_files
                result.differences += differences
        if keep:
            result.checkout = made
        else:  # within the lock: who waits for it makes another one in this place
            shutil.rmtree(folder, ignore_errors=True)
    return result


def _checkout(
    records: Records,
    tracking: Tracking,
    target: Target,
    chain: list[StageRecord],
    folder: Path,
    say: Callable[[str], None],
) -> tuple[Path, bool, str]:
    """The scratch checkout, whether recorded changes are on top, and its commit."""
    root, record = records.root, chain[-1]
    run = tracking.run_of(record)
    content = record.outs.get(target.path) or next(iter(record.outs.values()))
    recorded_in = commits_with(root, content.md5)
    commit = run.commit if run is not None and run.commit else recorded_in[-1] if recorded_in else ""
    if not commit:
        raise TunelineError(
            f"{target.name} cannot be reproduced: no commit is known that it was made at (MLflow has no run of it, and "
            "no commit's dvc.lock names it)."
        )
    if git_text(root, "rev-parse", "--verify", "--quiet", f"{commit}^{{commit}}") is None:
        raise TunelineError(
            f"{target.name} was made at the commit {commit}, which this repository lacks; `git fetch` it."
        )
    shutil.rmtree(folder, ignore_errors=True)
    say(f"Checking out {commit[:10]} ...")
    made = scratch_checkout(root, folder, commit, files=_sources(chain))
    patch = tracking.patch_of(run, folder) if run is not None else None
    if patch is not None:
        say(f"Putting the recorded changes on top ({patch.stat().st_size:,} bytes) ...")
        top = Path(run_git(made, "rev-parse", "--show-toplevel").decode().strip())
        inner = made.resolve().relative_to(top.resolve())
        command = [
            "git",
            "apply",
            "--whitespace=nowarn",
            *([f"--directory={inner}"] if inner.parts else []),
            str(patch),
        ]
        done = subprocess.run(command, cwd=top, capture_output=True, text=True, check=False)
        if done.returncode:
            raise TunelineError(f"The recorded changes do not apply to {commit[:10]}: {done.stderr.strip()}")
    return made, patch is not None, commit


def _sources(chain: list[StageRecord]) -> list[str]:
    """What the stages read that none of them makes, besides code."""
    made = {out for one in chain for out in one.outs}
    paths = [path for one in chain for path in one.deps if not is_code(path) and path != PACKAGE_LOCK]
    return [
        path for path in paths if path != START and not any(path == out or path.startswith(f"{out}/") for out in made)
    ]


def _write_settings(made: Path, target: Target, chain: list[StageRecord]) -> None:
    """params.yaml as it was for these stages, completed and written by the code of the commit."""
    name = target.version.name if target.version else "reproduction"
    settings: dict[str, Any] = {"name": name.rpartition("-")[0] or name}  # of NAME-STAGE, or of the line's own model
    before = made / "params.yaml"
    if before.is_file():
        settings |= load_yaml(before.read_bytes()) or {}
    settings.pop("files", None)
    for record in chain:
        for name, value in record.params.items():
            *above, last = name.split(".")
            place = settings
            for part in above:
                place = place.setdefault(part, {})
            place[last] = value
    asked = made / ".work" / "recorded.yaml"
    asked.parent.mkdir(exist_ok=True)
    asked.write_text(yaml.safe_dump(settings, sort_keys=False), encoding="utf-8")
    write = (
        "import sys; from pathlib import Path; from stages.loading import load_params, write_params; "
        "write_params(load_params(Path(sys.argv[1])), Path('params.yaml'))"
    )
    env = _environment(made, made)
    done = subprocess.run(
        [sys.executable, "-c", write, str(asked)], cwd=made, env=env, capture_output=True, text=True, check=False
    )
    if done.returncode:
        reason = (done.stderr.strip().splitlines() or ["?"])[-1]
        raise TunelineError(f"The recorded settings are no longer valid for the code of that commit: {reason}")


def _put_sources(records: Records, made: Path, chain: list[StageRecord]) -> None:
    """Data that `dvc add` tracks comes from the cache, where what lies in the checkout is another version."""
    for record in chain:
        for path, content in record.deps.items():
            place, cached = made / path, records.cache.path(content.md5)
            if path == START:
                _put_start(records, made, content.md5)
                continue
            if is_code(path) or content.is_folder or os.path.isabs(path) or not cached.is_file():
                continue
            if records.maker(path, content.md5) is None and not (place.is_file() and file_hash(place) == content.md5):
                place.parent.mkdir(parents=True, exist_ok=True)
                place.unlink(missing_ok=True)
                shutil.copyfile(cached, place)


def _put_start(records: Records, made: Path, md5: str) -> None:
    """The version of the registry that the line starts from, by its content: an alias may mean another one today."""
    for inner, file in (records.cache.tree(md5) or {}).items():
        place = made / START / inner
        if records.cache.path(file).is_file() and not place.is_file():
            place.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(records.cache.path(file), place)
    known = {"uri": "the recorded version", "model": "", "version": "", "md5": md5}
    (made / START_RECORD).parent.mkdir(exist_ok=True)
    (made / START_RECORD).write_text(json.dumps(known))


def _run(root: Path, made: Path, record: StageRecord, say: Callable[[str], None]) -> None:
    """One stage, from what the stages before it have made here; DVC brings nothing back and keeps nothing."""
    say(f"Running {record.stage} ...")
    lines: list[str] = []
    command = [sys.executable, "-m", "dvc", "--cd", str(made), "--wait-for-lock", "repro", "--single-item"]
    command += ["--force", "--no-commit", record.stage]
    code = run_guarded(command, env=_environment(root, made), on_line=lines.append)
    if code:
        shown = "\n".join(f"  | {line}" for line in lines[-_SHOWN:])
        raise StageError(f"Stage {record.stage} of the reproduction in {made} failed (exit code {code}):\n{shown}")


def _environment(root: Path, made: Path) -> dict[str, str]:
    """The scratch checkout's code and its own MLflow store: a reproduction is no new run of the line."""
    ours = ("TUNELINE_PARENT_RUN", "TUNELINE_FLOW_RUN", "TUNELINE_WORK")
    env = {name: value for name, value in checkout_environment(root, made).items() if name not in ours}
    path = [str(Path(sys.executable).parent), env.get("PATH", os.defpath)]  # stages are run as `python`, by a shell
    env |= {
        "PATH": os.pathsep.join(path),
        "MLFLOW_TRACKING_URI": f"sqlite:///{made / 'mlflow.db'}",
        "PYTHONUNBUFFERED": "1",
    }
    return {**env, **owner_env()}
