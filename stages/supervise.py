"""Nothing outlives its owner, and two copies of one stage never run at once.

Launchers start their workers in sessions of their own, so that no signal to a process group reaches them all. Instead
each process asks the kernel for a signal when its parent ends (Linux), and watches its owners any number of levels up:
they are named in TUNELINE_OWNER as `pid:create_time,...`.
"""

from __future__ import annotations

import contextlib
import contextvars
import ctypes
import fcntl
import logging
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, NoReturn

import psutil

from tuneline.errors import StageError

OWNER = "TUNELINE_OWNER"
CRASH_AT = "TUNELINE_CRASH_AT"
_PR_SET_PDEATHSIG = 1
_POLL_SECONDS = 0.5

# Between fork and exec nothing may be run in a process with threads, so the child itself asks for the signal, and then
# becomes the command. Its parent may have ended before that, so it looks once.
_SHIM = """
import ctypes, os, signal, sys
if sys.platform == "linux":
    ctypes.CDLL(None).prctl(1, signal.SIGTERM, 0, 0, 0)
if os.getppid() != int(sys.argv[1]):
    sys.exit(143)
os.execvp(sys.argv[2], sys.argv[2:])
"""

_live: set[subprocess.Popen[str]] = set()
_stopping = threading.Event()


def crash_point(name: str) -> None:
    """Where TUNELINE_CRASH_AT names this point, the process is killed as by a power cut."""
    if os.environ.get(CRASH_AT) == name:
        os.kill(os.getpid(), signal.SIGKILL)


def die_with_parent(number: int = signal.SIGTERM) -> None:
    """From now on the end of the parent sends this process a signal (Linux; elsewhere only `watch_owner` does)."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, number, 0, 0, 0)


def leave(code: int) -> NoReturn:
    """End this process, whose work is done, at once: to take apart what MLflow has imported is a second's work."""
    with contextlib.suppress(OSError):  # nobody listens any more
        logging.shutdown()
        sys.stdout.flush()
        sys.stderr.flush()
    os._exit(code)


def owner_env() -> dict[str, str]:
    """The variable that makes this process, and whoever owns it, an owner of the children that get it."""
    me = _written(psutil.Process())
    owners = [owner for owner in os.environ.get(OWNER, "").split(",") if owner and owner != me]
    return {OWNER: ",".join([*owners, me])}


def own_by_dvc() -> None:
    """Make the `dvc` that started this process, through a shell or not, one of its owners."""
    owners = os.environ.get(OWNER, "").split(",")
    with contextlib.suppress(psutil.Error):
        between: list[str] = []
        for parent in psutil.Process().parents()[:3]:
            between.insert(0, _written(parent))
            if any("dvc" in word for word in parent.cmdline()):
                os.environ[OWNER] = ",".join([*(o for o in owners if o and o not in between), *between])
                return


def watch_owner(poll: float = _POLL_SECONDS) -> None:
    """End this process soon after any of its owners has ended: by SIGTERM, and if that is not heard by force."""
    owners = [owner for owner in os.environ.get(OWNER, "").split(",") if owner]
    if not owners:
        return

    def watch() -> None:
        while all(map(_is_alive, owners)):
            time.sleep(poll)
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(10)
        os._exit(143)

    threading.Thread(target=watch, name="watch-owner", daemon=True).start()


def _written(process: psutil.Process) -> str:
    return f"{process.pid}:{process.create_time()}"


def _is_alive(owner: str) -> bool:
    pid, _, created = owner.partition(":")
    try:
        process = psutil.Process(int(pid))
        return abs(process.create_time() - float(created)) < 1 and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def run_guarded(
    command: Sequence[str],
    *,
    env: Mapping[str, str] | None = None,
    on_line: Callable[[str], None] = print,
    timeout: float | None = None,
    grace: float = 15.0,
    pass_fds: Sequence[int] = (),
) -> int:
    """Run a command and hand on each line that it prints; on any exception its whole process tree is ended.

    Args:
        env: the child's environment; None: this one's, with this process as an owner.
        on_line: called in a thread of its own, with the caller's context variables.
        timeout: seconds, after which the tree is ended.
        grace: seconds between asking the tree to end and forcing it to.

    Returns:
        The exit code; negative for a signal.

    Raises:
        StageError: the time is over, or `stop_all` was called.
    """
    if _stopping.is_set():
        raise StageError(f"not started, as the run is being stopped: {' '.join(command)}")
    process = subprocess.Popen(
        [sys.executable, "-ISc", _SHIM, str(os.getpid()), *command],
        env={**os.environ, **owner_env()} if env is None else dict(env),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        bufsize=1,
        pass_fds=tuple(pass_fds),
    )
    _live.add(process)
    assert process.stdout is not None
    errors: list[Exception] = []
    reading = contextvars.copy_context().run
    reader = threading.Thread(target=reading, args=(_hand_on, process.stdout, on_line, errors), daemon=True)
    reader.start()
    try:
        code = process.wait(timeout)
    except subprocess.TimeoutExpired:
        end_tree(process.pid, grace)
        raise StageError(f"stopped after its time limit of {timeout:.0f} s: {' '.join(command)}") from None
    except BaseException:
        end_tree(process.pid, grace)
        raise
    finally:
        reader.join(timeout=5)  # whoever still holds the pipe has 5 s for last words
        process.poll()
        _live.discard(process)
    if errors:
        raise errors[0]
    return code


def _hand_on(output: IO[str], on_line: Callable[[str], None], errors: list[Exception]) -> None:
    for line in output:
        try:
            on_line(line.rstrip("\n"))
        except Exception as error:
            errors.append(error)
    output.close()


def end_tree(pid: int, grace: float) -> None:
    """Ask a process and all below it to end, and force those that are left after `grace` seconds."""
    try:
        top = psutil.Process(pid)
        tree = [top, *top.children(recursive=True)]
    except psutil.NoSuchProcess:
        return
    with contextlib.suppress(psutil.NoSuchProcess):
        top.terminate()
    _, left = psutil.wait_procs(tree, min(grace, 5.0))
    for process in left:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.terminate()
    _, left = psutil.wait_procs(left, max(grace - 5.0, 1.0))
    for process in left:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()
    psutil.wait_procs(left, 5)


def stop_all() -> None:
    """End what `run_guarded` started in any thread, and refuse to start more until `start_again`.

    A cancelled flow gets its signal in the main thread only; the children of other threads are ended by this.
    """
    _stopping.set()
    for process in list(_live):
        with contextlib.suppress(ProcessLookupError):
            process.terminate()


def start_again() -> None:
    """Take back what `stop_all` has refused, at the start of a new run in the same process."""
    _stopping.clear()


@contextlib.contextmanager
def stage_lock(path: Path, on_wait: Callable[[str], None] = print) -> Iterator[int]:
    """Hold the stage's lock; any death frees it. Yields its descriptor: a child that inherits it holds the lock too."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            on_wait(f"{path}: process {file.read().strip() or '?'} runs this stage; waiting until it has ended")
            fcntl.flock(file, fcntl.LOCK_EX)
        file.seek(0)
        file.truncate()
        file.write(str(os.getpid()))
        file.flush()
        yield file.fileno()


@contextlib.contextmanager
def lock_if_free(path: Path) -> Iterator[bool]:
    """Hold a lock that nobody else holds, and say so; False where another process has it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
        else:
            yield True
