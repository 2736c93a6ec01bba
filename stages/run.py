"""`python -m stages.run NAME`: the command of every stage in dvc.yaml.

Lock, identity, work folder, launch, publish. The work folder `.work/NAME/IDENTITY` outlives any death: the next run of
the same identity goes on from its last whole checkpoint, or publishes what is finished already.

Exit codes: 0 done; 2 an error that the user has to mend, which no retry helps; 1 anything else.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TextIO

from stages.context import USER_ERROR_FILE, WORK
from stages.costs import held_gpus, noted_cost
from stages.gates import GateError, judge_again
from stages.identity import Identity, output_hashes, stage_identity
from stages.launch import launch_command
from stages.loading import load_params
from stages.off import write_nothing
from stages.schema import STAGES, TRAINING_STAGES, Launch, PipelineConfig, TrainingSection
from stages.storage import sync_tree, write_whole
from stages.supervise import (
    crash_point,
    die_with_parent,
    leave,
    own_by_dvc,
    owner_env,
    run_guarded,
    stage_lock,
    watch_owner,
)
from stages.tracking import StageRun, replay_pending
from tuneline.errors import StageError, TunelineError

DONE = "DONE"
NUM_UNFINISHED_KEPT = 2
_MODEL_OUT = {name: {".": f"models/{name}"} for name in TRAINING_STAGES}
OUTS = {"prepare": {"prepared": "data/prepared", "base": "models/base"}, **_MODEL_OUT, "evaluate": {}}
OUTS["collect"] = {".": "data/collected"}


def main(arguments: list[str]) -> int:
    if len(arguments) != 1 or arguments[0] not in STAGES:
        print(f"usage: python -m stages.run NAME, where NAME is one of {', '.join(STAGES)}", file=sys.stderr)
        return 2
    own_by_dvc()
    die_with_parent()
    watch_owner()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    name, root = arguments[0], Path.cwd()
    waited: list[str] = []

    def on_wait(line: str) -> None:
        _say(line)
        waited.append(line)

    try:
        with stage_lock(Path(".work") / name / "lock", on_wait) as lock:
            return run_stage(name, root, load_params(root / "params.yaml"), lock, may_force=not waited)
    except TunelineError as error:
        _say(f"error: {error}")
        return 2


def run_stage(name: str, root: Path, config: PipelineConfig, lock: int, *, may_force: bool = True) -> int:
    """Bring the outputs of one stage about; the exit code.

    Args:
        lock: descriptor of the stage's lock.
        may_force: whether a result that DVC has already is made anew; not if another process made it just now.
    """
    identity = stage_identity(name, root)
    if not may_force:
        identity = replace(identity, is_forced=False)
    work = _work_folder(name, config, identity)
    reason = config.why_off(name)
    if reason is not None:
        write_nothing(name, work, reason)
        _mark_done(work)
        publish(name, work)
        _clean_up(work)
        _say(f"{name} is {reason}")
        return 0
    tracked = StageRun(name, config, identity, work)
    with tracked.live():
        if _is_done(work):
            _judge_again(name, work, config, tracked)
        else:
            num_gpus = 0 if name == "prepare" else held_gpus(_launch_options(name, config), root)
            with noted_cost(work.parent, identity.key, num_gpus) as this_try:
                code = this_try.exit_code = _launch(name, config, work, lock)
            if code != 0:
                tracked.fail()
                return 2 if (work / USER_ERROR_FILE).is_file() else 1
            crash_point("launched")
            _mark_done(work)
        crash_point("done")
        publish(name, work)
        crash_point("published")
    tracked.finish(output_hashes(name, root))
    crash_point("tracked")
    _clean_up(work)
    replay_pending(Path(".work"), besides=work)
    return 0


def _judge_again(name: str, work: Path, config: PipelineConfig, tracked: StageRun) -> None:
    """Gates of a run that is done already may have other limits by now."""
    try:
        unknown = judge_again(name, work, config.gates)
    except GateError as error:
        (work / USER_ERROR_FILE).write_text(str(error), encoding="utf-8")
        tracked.fail()
        raise
    if unknown:
        _say(unknown)


def _work_folder(name: str, config: PipelineConfig, identity: Identity) -> Path:
    work = Path(".work") / name / identity.key
    forced = work / "FORCED"
    work.mkdir(parents=True, exist_ok=True)
    if identity.is_forced and ((work / DONE).exists() or not forced.exists()):
        shutil.rmtree(work)  # it has to be done anew, once; if that is cut off, it goes on
        work.mkdir()
        forced.touch()
    write_whole(work / "config.json", json.dumps(config.model_dump(mode="json"), indent=1))
    (work / USER_ERROR_FILE).unlink(missing_ok=True)
    return work


def _launch(name: str, config: PipelineConfig, work: Path, lock: int) -> int:
    launch = _launch_options(name, config)
    if launch is None:  # goes on from nothing; what a killed run left is no use
        for folder in ("final", "report"):
            shutil.rmtree(work / folder, ignore_errors=True)
    for checkpoint in work.glob("checkpoint-*"):
        if not (checkpoint / "COMPLETE").is_file():
            shutil.rmtree(checkpoint)
    command, more = launch_command(name, launch)
    env = {
        **_YIELDING,
        **os.environ,
        **owner_env(),
        **_QUIET,
        **more,
        WORK: str(work.absolute()),
        "PYTHONUNBUFFERED": "1",
    }
    env["PYTHONPATH"] = os.pathsep.join(filter(None, [str(Path.cwd()), os.environ.get("PYTHONPATH")]))
    timeout = None if launch is None else launch.timeout_hours * 3600
    with _log(work / "log.txt") as log:

        def on_line(line: str) -> None:
            log.write(line + "\n")
            _say(line)

        try:
            # The launcher holds the lock too: should this process be killed, no other starts before its children ended.
            return run_guarded(command, env=env, on_line=on_line, timeout=timeout, pass_fds=(lock,))
        except StageError as error:  # over its time: a retry goes on from the last checkpoint
            on_line(f"error: {error}")
            return 1


def _launch_options(name: str, config: PipelineConfig) -> Launch | None:
    section = getattr(config, name)
    return section.launch if isinstance(section, TrainingSection) else None


_QUIET = {
    "DO_NOT_TRACK": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "HF_DATASETS_DISABLE_PROGRESS_BARS": "1",
    "TOKENIZERS_PARALLELISM": "false",
}


# Threads that wait for one another let others have the processor. Where neighbours are busy, spinning makes two
# threads ten times slower on small models (measured: 3 against 30 steps a second); what the user has set stays.
_YIELDING = {"OMP_WAIT_POLICY": "passive"}


@contextmanager
def _log(path: Path) -> Iterator[TextIO]:
    """The log of all tries of this run."""
    with path.open("a", encoding="utf-8", buffering=1) as log:
        log.write(f"--- {time.strftime('%Y-%m-%d %H:%M:%S')}\n")
        yield log


def _mark_done(work: Path) -> None:
    """Remember what the finished files look like: links to them lie in the checkout, where they may be written to."""
    final = work / "final"
    files = {str(path.relative_to(final)): _stamp(path) for path in sorted(final.rglob("*")) if path.is_file()}
    aside = work / "done.new"
    aside.write_text(json.dumps(files))
    sync_tree(aside)
    os.replace(aside, work / DONE)


def _is_done(work: Path) -> bool:
    if not (work / DONE).is_file():
        return False
    files = json.loads((work / DONE).read_text())
    final = work / "final"
    if all((final / path).is_file() and _stamp(final / path) == stamp for path, stamp in files.items()):
        return True
    (work / DONE).unlink()
    return False


def _stamp(path: Path) -> list[int]:
    status = path.stat()
    return [status.st_size, status.st_mtime_ns]


def publish(name: str, work: Path) -> None:
    """Put hard links to the finished files where dvc.yaml expects the outputs; no bytes are copied."""
    for inner, out in OUTS[name].items():
        _put(work / "final" / inner, Path(out))
    crash_point("outputs")
    _put(work / "report", Path("reports") / name)


def _put(source: Path, target: Path) -> None:
    aside = target.with_name(f".{target.name}.new")
    shutil.rmtree(aside, ignore_errors=True)
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copytree(source, aside, copy_function=_link_or_copy)
    if target.is_symlink():
        target.unlink()
    shutil.rmtree(target, ignore_errors=True)
    os.replace(aside, target)


def _link_or_copy(source: str, target: str) -> str:
    try:
        os.link(source, target)
    except OSError:  # another file system
        shutil.copy2(source, target)
    return target


def _clean_up(work: Path) -> None:
    """Keep the result of this run, and the newest runs that were cut off; the results of others are in DVC's cache."""
    for checkpoint in work.glob("checkpoint-*"):
        shutil.rmtree(checkpoint)
    others = [path for path in work.parent.iterdir() if path.is_dir() and path != work and path.name != "manual"]
    unfinished = [path for path in others if not (path / DONE).exists()]
    unfinished.sort(key=lambda path: path.stat().st_mtime, reverse=True)
    for path in others:
        if path not in unfinished[:NUM_UNFINISHED_KEPT] and not StageRun.is_pending(path):
            shutil.rmtree(path)


def _say(line: str) -> None:
    print(line, flush=True)


if __name__ == "__main__":
    leave(main(sys.argv[1:]))
