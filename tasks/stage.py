"""One stage as a Prefect task: DVC decides whether it runs, Prefect how often it is tried and who sees it."""

import contextvars
import os
import re
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from uuid import UUID

from prefect import get_run_logger, task
from prefect.artifacts import create_progress_artifact, update_progress_artifact
from prefect.cache_policies import NO_CACHE
from prefect.runtime import task_run
from prefect.states import Completed

from stages.supervise import owner_env, run_guarded
from tasks.display import display, in_words
from tasks.gpus import check_gpus, gpu_slots
from tasks.progress import Progress, log_file, read_progress, user_error
from tasks.summary import StageSummary, headline, read_metrics, read_off
from tasks.sweep_sharing import computed_once
from tuneline.errors import StageError, TunelineError

USER_ERROR = 2
"""Exit code of a stage whose settings or data must be mended; no retry helps."""
_SHOWN_LINES = 30
_SHOWN_BETWEEN_TRIES = 5
_POLL_SECONDS = 0.5
_ARTIFACT_SECONDS = 3.0


class StageFailure(StageError):
    """A stage that failed: which one, the end of its log, and whether trying again may help."""

    def __init__(self, stage: str, message: str, *, retriable: bool) -> None:
        super().__init__(message)
        self.stage = stage
        self.seconds = 0.0
        self.retriable = retriable


def retry_helps(task: Any, task_run: Any, state: Any) -> bool:
    """Whether Prefect tries again: not after an error that the user has to mend."""
    try:
        state.result()
    except StageFailure as failure:
        return failure.retriable
    except TunelineError:  # the run is being stopped
        return False
    except Exception:
        return True
    return False


@task(cache_policy=NO_CACHE, persist_result=False, retry_condition_fn=retry_helps, task_run_name="{name}")
def run_stage(
    name: str,
    root: str,
    up_to_date: bool = False,
    force: bool = False,
    tries: int = 1,
    parent_run: str = "",
    flow_run: str = "",
    gpus: int = 0,
) -> Any:
    """Brings one stage up to date and returns its StageSummary. `with_options` sets the retries and their delays.

    Args:
        name: The stage, as in dvc.yaml.
        root: The checkout.
        up_to_date: DVC was asked already, and has nothing to do.
        force: Run it even if it is up to date.
        tries: How often it is tried at most, for the messages.
        parent_run: MLflow's run of the whole line, which the stage's own run becomes a child of.
        flow_run: Prefect's id of the run of the whole line.
        gpus: Slots of the server's limit `gpus` that it holds while it runs, and waits for.

    Raises:
        StageFailure: it failed; the message shows the end of its log.
    """
    if up_to_date:
        off = read_off(Path(root), name)
        display.end(name, "=", off or "up to date", "dim")
        summary = StageSummary(name, "cached", 0.0, read_metrics(Path(root), name), off)
        return Completed(name="Cached", message="DVC has it up to date", data=summary)
    try:
        check_gpus(name, gpus)
    except StageError as error:
        raise StageFailure(name, str(error), retriable=False) from None
    attempt = task_run.run_count or 1
    began, started = time.monotonic(), time.time()
    display.start(name, f"try {attempt}" if attempt > 1 else "")
    output = StageOutput(get_run_logger().info)
    command = [sys.executable, "-m", "dvc", "--wait-for-lock", "repro", "--single-item", *["--force"] * force, name]
    env = {**os.environ, **owner_env(), "PYTHONUNBUFFERED": "1"}
    env |= {"TUNELINE_FLOW_RUN": flow_run, "TUNELINE_PARENT_RUN": parent_run}

    def tell(words: str) -> None:
        display.say(f"  {name:<9} {words}", "yellow")

    with computed_once(name, Path(root), tell), gpu_slots(gpus), _watched(Path(root), name, started, output):
        code = run_guarded(command, env=env, on_line=output.take)
    seconds = time.monotonic() - began
    if code != 0:
        failure = _failure(name, Path(root), started, code, output)
        failure.seconds = round(seconds, 2)
        again = failure.retriable and attempt < tries
        display.end(
            name, "✗", f"failed after {in_words(seconds)}{f', try {attempt} of {tries}' if again else ''}", "red"
        )
        if again:
            display.say("\n".join(f"  | {line}" for line in list(output.end)[-_SHOWN_BETWEEN_TRIES:]), "dim")
        raise failure
    metrics, off = read_metrics(Path(root), name), read_off(Path(root), name)
    if not output.did_run:
        text = "restored from DVC's cache" if output.was_restored else "up to date"
        display.end(name, "=", off or text, "dim")
        summary = StageSummary(name, "cached", round(seconds, 2), metrics, off)
        return Completed(name="Cached", message="DVC had it already", data=summary)
    summary = StageSummary(name, "ran", round(seconds, 2), metrics, off)
    if off:
        display.end(name, "=", off, "dim")
        return Completed(name="Off", message=off, data=summary)
    display.end(name, "✓", f"{in_words(seconds):<8} {headline(summary)}", "green")
    return summary


class StageOutput:
    """Reads what DVC and the stage print: passes it on, keeps its end, and notices what DVC did."""

    def __init__(self, log: Callable[[str], None]) -> None:
        self._log = log
        self.end: deque[str] = deque(maxlen=_SHOWN_LINES)
        self.did_run = False
        self.was_restored = False
        self.exit_code: int | None = None
        """That of the stage itself; None when DVC did not start it or when it did not fail."""
        self.dvc_error = ""
        self._command_follows = False

    def take(self, line: str) -> None:
        line = _ESCAPES.sub("", line.rstrip().rsplit("\r", 1)[-1])
        if not line:
            return
        self._log(line)
        self.did_run |= line.startswith("Running stage '")
        self.was_restored |= line.startswith("Stage '") and " is cached - " in line
        failed = re.search(r"^ERROR: failed to reproduce .*?: (failed to run: .*, exited with (-?\d+)|.*)", line)
        if failed:
            self.exit_code = int(failed[2]) if failed[2] else None
            self.dvc_error = failed[1]
        elif line.startswith("ERROR: "):
            self.dvc_error = self.dvc_error or line.removeprefix("ERROR: ")
        elif not line.startswith(_DVC_CHATTER) and not self._command_follows:
            self.end.append(line)
        self._command_follows = line.startswith("Running stage '")


_ESCAPES = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")
_DVC_CHATTER = (
    "Running stage '",
    "To track the changes",
    "To enable auto staging",
    "Use `dvc push`",
    "\tgit add ",
    "\tdvc config ",
    "WARNING: Process '",  # a killed run's lock, which DVC removes
)


def _failure(name: str, root: Path, started: float, code: int, output: StageOutput) -> StageFailure:
    """What the user reads, and Prefect records, about a stage that ended with an error."""
    shown = "\n".join(f"  | {line}" for line in output.end)
    log = log_file(root, name, started)
    whole = f"\nThe whole log: {log.relative_to(root)}" if log else ""
    if output.exit_code == USER_ERROR:
        told = user_error(root, name, started) or shown
        return StageFailure(name, f"Stage {name} cannot run as it is:\n{told}", retriable=False)
    if output.exit_code is None:
        # DVC itself refused: only a file that another process holds is worth waiting for.
        retriable = "busy" in output.dvc_error or "lock" in output.dvc_error
        reason = output.dvc_error or f"DVC ended with exit code {code}"
        return StageFailure(
            name, f"Stage {name} was not run: {reason}" + (f"\n{shown}" if shown else ""), retriable=retriable
        )
    ended = f"was killed by signal {-output.exit_code}" if output.exit_code < 0 else f"exit code {output.exit_code}"
    message = f"Stage {name} failed ({ended}). The end of its log:\n{shown or '  (it wrote nothing)'}{whole}"
    return StageFailure(name, message, retriable=True)


@contextmanager
def _watched(root: Path, name: str, started: float, output: StageOutput) -> Iterator[None]:
    """Shows the stage's progress on the terminal and in Prefect until it ends."""
    ended = threading.Event()
    artifact = _ProgressArtifact(name)

    def watch() -> None:
        told = 0.0
        while not ended.wait(_POLL_SECONDS):
            progress = read_progress(root, name, started)
            display.update(name, progress, output.end[-1] if output.end else "")
            if progress is not None and time.monotonic() - told >= _ARTIFACT_SECONDS:
                told = time.monotonic()
                artifact.tell(progress)

    # Prefect finds the task run that an artifact belongs to in context variables.
    thread = threading.Thread(target=contextvars.copy_context().run, args=(watch,), daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join(timeout=5)
    artifact.complete()


class _ProgressArtifact:
    """The stage's progress bar in Prefect; a server that does not answer stops nothing."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._id: UUID | None = None
        self._broken = False

    def tell(self, progress: Progress) -> None:
        if progress.share is None or self._broken:
            return
        try:
            if self._id is None:
                created = create_progress_artifact(0.0, key=f"{self._name}-progress", description=progress.describe())
                self._id = created if isinstance(created, UUID) else None
            if self._id is not None:
                update_progress_artifact(self._id, progress=100 * progress.share, description=progress.describe())
        except Exception as error:
            self._broken = True
            get_run_logger().warning("No more progress is shown here: %s", error)

    def complete(self) -> None:
        if self._id is not None and not self._broken:
            self.tell(Progress(1, 1))
