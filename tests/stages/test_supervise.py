"""Nothing outlives its owner; two copies of one stage never run at once."""

import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from pathlib import Path

import psutil
import pytest

from stages.supervise import crash_point, owner_env, run_guarded, stage_lock, start_again, stop_all
from tuneline.errors import StageError

ROOT = Path(__file__).parents[2]
SLEEP = [sys.executable, "-c", "import time; print('up', flush=True); time.sleep(60)"]


def python(code, *arguments, **kwargs):
    command = [sys.executable, "-c", textwrap.dedent(code), *map(str, arguments)]
    return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, **kwargs)


def wait_until(condition, seconds=10.0):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def is_gone(pid):
    return not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE


def test_lines_and_exit_code_are_handed_on():
    lines = []
    code = run_guarded(
        [sys.executable, "-c", "print('a'); print('b', end=''); raise SystemExit(7)"], on_line=lines.append
    )
    assert (code, lines) == (7, ["a", "b"])
    assert run_guarded([sys.executable, "-c", "import os; os.kill(os.getpid(), 9)"]) == -signal.SIGKILL


def test_an_error_while_a_line_is_taken_is_raised_here():
    with pytest.raises(ZeroDivisionError):
        run_guarded([sys.executable, "-c", "print(1)"], on_line=lambda line: 1 / 0)


def test_a_command_that_takes_too_long_is_ended_with_its_children(tmp_path):
    child = f"p = subprocess.Popen({SLEEP}, start_new_session=True)"
    spawn = f"import subprocess, sys; {child}; print(p.pid, flush=True); p.wait()"
    lines = []
    with pytest.raises(StageError, match="time limit"):
        run_guarded([sys.executable, "-c", spawn], on_line=lines.append, timeout=2, grace=1)
    wait_until(lambda: is_gone(int(lines[0])))


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_a_child_dies_with_its_owner(number):
    """The owner runs a child in a session of its own, which no signal to a group would reach."""
    owner = python(
        """
        import signal, sys
        from stages.supervise import run_guarded
        signal.signal(signal.SIGINT, signal.default_int_handler)  # a background job of a shell is started without it
        child = "import os, time; print(os.getpid(), flush=True); time.sleep(60)"
        run_guarded([sys.executable, "-c", child], on_line=lambda line: print(line, flush=True), grace=2)
        """,
        stderr=subprocess.DEVNULL,
    )
    child = int(owner.stdout.readline())
    owner.send_signal(number)
    wait_until(lambda: is_gone(child))
    owner.communicate()


def test_a_grandchild_that_watches_dies_with_an_owner_two_levels_up():
    """Between them lies a process that knows nothing of owners, as a shell does."""
    watching = "import os, time; from stages.supervise import watch_owner; watch_owner()"
    watching += "; print(os.getpid(), flush=True); time.sleep(60)"
    between = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {watching!r}])"
    owner = python(
        f"""
        import os, subprocess, sys
        from stages.supervise import owner_env
        subprocess.run([sys.executable, "-c", {between!r}], env={{**os.environ, **owner_env()}})
        """
    )
    grandchild = int(owner.stdout.readline())
    owner.kill()
    wait_until(lambda: is_gone(grandchild))
    owner.communicate()


def test_a_process_number_that_was_given_anew_is_no_owner():
    env = {**os.environ, "TUNELINE_OWNER": f"{os.getpid()}:1.0"}  # this process, but it was not made in 1970
    code = "import time; from stages.supervise import watch_owner; watch_owner(); time.sleep(60)"
    watcher = python(code, env=env)
    assert watcher.wait(timeout=10) == -signal.SIGTERM
    watcher.communicate()


def test_owners_add_up():
    one = owner_env()["TUNELINE_OWNER"]
    child = python(
        "from stages.supervise import owner_env; print(owner_env()['TUNELINE_OWNER'])",
        env={**os.environ, **owner_env()},
    )
    owners = child.communicate()[0].strip().split(",")
    assert owners[0] == one
    assert len(owners) == 2


def test_stop_all_ends_what_other_threads_started_and_refuses_more():
    codes, lines = [], []
    thread = threading.Thread(target=lambda: codes.append(run_guarded(SLEEP, on_line=lines.append)))
    thread.start()
    wait_until(lambda: lines)
    try:
        stop_all()
        thread.join(timeout=10)
        assert codes == [-signal.SIGTERM]
        with pytest.raises(StageError, match="being stopped"):
            run_guarded(SLEEP)
    finally:
        start_again()
    assert run_guarded([sys.executable, "-c", ""]) == 0


def test_a_lock_is_freed_by_death_and_held_by_heirs(tmp_path):
    path = tmp_path / "stage" / "lock"
    holder = python(
        f"""
        import subprocess, sys, time
        from pathlib import Path
        from stages.supervise import stage_lock
        with stage_lock(Path({str(path)!r})) as lock:
            heir = subprocess.Popen({SLEEP}, pass_fds=(lock,), stdout=subprocess.DEVNULL)
            print(heir.pid, flush=True)
            time.sleep(60)
        """
    )
    heir = int(holder.stdout.readline())
    waiting, held = [], threading.Event()

    def take():
        with stage_lock(path, on_wait=waiting.append):
            held.set()

    taker = threading.Thread(target=take)
    taker.start()
    wait_until(lambda: waiting)
    assert f"process {holder.pid} runs this stage" in waiting[0]
    holder.kill()
    holder.communicate()
    assert not held.wait(0.5)  # what the killed process started still runs
    os.kill(heir, signal.SIGKILL)
    assert held.wait(10)
    taker.join()


def test_a_crash_point_kills_where_it_is_named(monkeypatch):
    monkeypatch.setenv("TUNELINE_CRASH_AT", "here")
    crash_point("elsewhere")
    code = "from stages.supervise import crash_point; crash_point('elsewhere'); crash_point('here')"
    assert run_guarded([sys.executable, "-c", code], env={**os.environ, "PYTHONPATH": str(ROOT)}) == -signal.SIGKILL
