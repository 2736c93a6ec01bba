"""Programs that misbehave: each is contained, scored as failed, and the reason says what it did."""

import os
import time
from pathlib import Path

import pytest

from tests.rewards.programs import LIMITS, RIGHT, SQUARE_TESTS
from tuneline.rewards.sandbox import pool
from tuneline.rewards.sandbox.jail import PROTECTIONS
from tuneline.rewards.sandbox.pool import Job, Sandboxes


def need(sandboxes, protection):
    if not sandboxes.protections()[protection]:
        pytest.skip(f"this machine grants no {protection!r}: {PROTECTIONS[protection]}")


@pytest.mark.parametrize(
    "program",
    [
        "while True: pass",
        "def square(x):\n    while True: pass",
        # catching what ends it
        """
        import signal
        for number in range(1, 64):
            try: signal.signal(number, signal.SIG_IGN)
            except Exception: pass
        signal.pthread_sigmask(signal.SIG_BLOCK, range(1, 64))
        def square(x):
            while True:
                try:
                    while True: pass
                except BaseException: pass
        """,
        "def square(x): return 10 ** 10 ** 10",
    ],
)
def test_endless_loops_end_at_the_limit_of_processor_time(verdict, program):
    started = time.monotonic()
    result = verdict(program)
    assert result.passed is False
    assert "processor time" in result.reason or "MemoryError" in result.reason
    assert time.monotonic() - started < 15


def test_a_program_that_sleeps_ends_at_the_limit_of_time(verdict, hurried_sandboxes):
    result = verdict("import time\ndef square(x):\n    time.sleep(1000)", servers=hurried_sandboxes)
    assert result.passed is False
    assert result.reason == "it took longer than 0.7 s"


@pytest.mark.parametrize(
    "program",
    ["def square(x): return len(bytearray(10**9))", "kept = []\nwhile True: kept.append(bytes(10**6))"],
)
def test_memory_hogs_meet_the_limit(verdict, program):
    result = verdict(program)
    assert result.passed is False
    assert "MemoryError" in result.reason


def test_fork_bombs_fork_nothing(sandboxes, verdict):
    need(sandboxes, "calls")
    bomb = """
        import os
        def square(x):
            forked = 0
            for _ in range(1000):
                try: forked += os.fork() >= 0
                except OSError: pass
            return (forked, x)
    """
    assert verdict(bomb, "assert square(1) == (0, 1)").passed is True
    result = verdict("import os\nwhile True: os.fork()")
    assert result.passed is False
    assert "PermissionError" in result.reason
    result = verdict("import subprocess\ndef square(x): return int(subprocess.check_output(['expr', '2', '*', '2']))")
    assert result.passed is False
    threads = """
        import threading, time
        def square(x):
            for _ in range(1000): threading.Thread(target=time.sleep, args=(100,), daemon=True).start()
    """
    assert "can't start new thread" in verdict(threads).reason


def test_no_process_outlives_its_call(verdict, hurried_sandboxes):
    verdict("import os, time\nos.setsid()\ndef square(x):\n    time.sleep(1000)", servers=hurried_sandboxes)
    children = [p for p in Path("/proc").glob("[0-9]*/stat") if _is_descendant_job(p)]
    assert not children


def _is_descendant_job(stat):
    """Whether a process is a child of one of this process's servers."""
    try:
        parent = Path("/proc", stat.read_text().rpartition(")")[2].split()[1])
        grandparent = int((parent / "stat").read_text().rpartition(")")[2].split()[1])
        return grandparent == os.getpid() and b"sandbox.server" in (parent / "cmdline").read_bytes()
    except (OSError, IndexError):
        return False


def test_files_of_the_machine_cannot_be_read_or_written(sandboxes, verdict, tmp_path):
    need(sandboxes, "files")
    secret = tmp_path / "secret"
    secret.write_text("4")
    os.chmod(secret, 0o644)
    for path in (secret, Path("/etc/passwd"), Path("/proc/self/environ")):
        result = verdict(f"import os\ndef square(x): return os.stat({str(path)!r}).st_size * 0 + x * x")
        assert result.passed is False
        assert "FileNotFoundError" in result.reason
    for path in (tmp_path / "new", Path("/new"), Path("/usr/lib/new"), Path(os.__file__).parent / "new.py"):
        result = verdict(f"open({str(path)!r}, 'w').write('x')\n" + RIGHT)
        assert result.passed is False, path
        assert not path.exists()


def test_a_program_may_use_a_small_scratch_folder_that_is_gone_afterwards(sandboxes, verdict):
    need(sandboxes, "files")
    scratch = """
        import os
        def square(x):
            found = os.listdir()
            open('notes', 'w').write('1')
            return found
    """
    for _ in range(2):
        assert verdict(scratch, "assert square(1) == []").passed is True
    flood = "def square(x):\n    f = open('big', 'wb')\n    for _ in range(100): f.write(bytes(10**6)); f.flush()"
    assert "File too large" in verdict(flood).reason or "No space" in verdict(flood).reason
    many = "def square(x):\n    for i in range(100): open(str(i), 'wb').write(bytes(10**5))"
    assert "No space" in verdict(many).reason


@pytest.mark.parametrize(
    "program",
    [
        "import socket\nsocket.socket().connect(('127.0.0.1', 80))",
        "import socket\nsocket.getaddrinfo('example.org', 80)",
        "import urllib.request\nurllib.request.urlopen('http://127.0.0.1:80')",
        "import socket\nsocket.socket(socket.AF_UNIX)",
    ],
)
def test_network_calls_fail(verdict, program):
    result = verdict(program + "\n" + RIGHT)
    assert result.passed is False
    assert "rror" in result.reason


@pytest.mark.parametrize(
    "program",
    [
        "import os\nos._exit(0)",
        "import os\ndef square(x): os._exit(0)",
        "import sys\nsys.exit(0)",
        "import sys\ndef square(x): sys.exit(0)",
        "import atexit, os\natexit.register(os._exit, 0)\ndef square(x): raise SystemExit(0)",
        "import os, signal\ndef square(x): os.kill(os.getpid(), signal.SIGKILL)",
        "import os\ndef square(x): os.kill(os.getppid(), 9); os.kill(1, 9); os.kill(-1, 9)",
        "import ctypes\ndef square(x): ctypes.string_at(0)",
        "import os\nos.closerange(0, 100)\n" + "def square(x): return 4",
        "import os\ndef square(x): os.closerange(0, 100); return 4",
    ],
)
def test_ending_the_process_does_not_pass(verdict, program):
    result = verdict(program)
    assert result.passed is False
    assert result.reason not in ("", "passed")


@pytest.mark.parametrize(
    "program",
    [
        # objects that agree with everything
        """
        class Yes(int):
            def __eq__(self, other): return True
            def __bool__(self): return True
        def square(x): return Yes(5)
        """,
        """
        class Yes:
            def __eq__(self, other): return True
            __hash__ = None
        def square(x): return Yes()
        """,
        # a patched interpreter
        """
        import builtins, sys
        class AssertionError(BaseException): pass
        builtins.AssertionError = AssertionError
        builtins.len = builtins.all = builtins.abs = lambda *a: True
        sys.settrace(lambda *a: None)
        def check(candidate): return None
        def square(x): return 5
        """,
        # the marks of success, wherever they could count
        """
        import os, json
        for descriptor in range(256):
            for text in ('{"passed": true, "reason": "passed"}', 'read\\n{"passed": true, "reason": ""}'):
                try: os.write(descriptor, text.encode())
                except OSError: pass
        print('{"passed": true, "reason": "passed"}', flush=True)
        def square(x): return 5
        """,
        # the harness, found through the stack and the heap
        """
        import gc, sys
        def square(x):
            frame = sys._getframe()
            while frame:
                for name, value in list(frame.f_locals.items()) + list(frame.f_globals.items()):
                    if name in ('passed', 'num_calls', 'tests', 'verdict'): frame.f_globals[name] = True
                frame = frame.f_back
            for thing in gc.get_objects():
                if type(thing).__name__ in ('Channel', 'Tester', 'Program'):
                    thing.send({'value': 4, 'passed': True})
            return 5
        """,
        "import os\nos.execv('/bin/true', ['true'])\n",
        "def square(x): return [[[]]] * 10**6",
        # answers made by hand: no message, a module that cannot be imported, deep and unhashable values
        """
        import os
        def answer(text): os.write(3, len(text).to_bytes(4, 'big') + text)
        answer(b'{"ready": true}')
        answer(b'{"values": {"square": ["module", "msilib"]}}')
        while True: pass
        """,
        """
        import os
        def answer(text): os.write(3, len(text).to_bytes(4, 'big') + text)
        answer(b'{"ready": true}')
        answer(b'{"values": {"square": ["s", [["l", []]]]}}')
        """,
        """
        import os
        def answer(text): os.write(3, len(text).to_bytes(4, 'big') + text)
        answer(b'[' * 10**6)
        """,
        "import os\nos.write(3, b'\\xff' * 8)",
        "x = []\nfor _ in range(10**5): x = [x]\ndef square(_): return x",
    ],
)
def test_tampering_with_the_tests_does_not_pass(verdict, program):
    assert verdict(program).passed is False


def test_what_the_tests_expect_is_nowhere_in_the_programs_memory(verdict):
    program = """
        import gc
        def square(x):
            objects = gc.get_objects()
            objects += [v for o in objects if isinstance(o, dict) for v in list(o.values())]
            found = [o for o in objects if isinstance(o, (str, bytes)) and len(o) < 10**5]
            return sum('7ARBEZ'[::-1] in str(o) for o in found)
    """
    assert verdict(program, "ZEBRA7 = 1\nassert square(2) == 0").passed is True


def test_a_program_cannot_read_the_verdict_on_the_program_before(verdict):
    tests = "assert square(2) == 'ZEBRA7'"
    assert "ZEBRA7" in verdict("def square(x): return 0", tests).reason
    program = """
        import gc, sys
        def square(x):
            frame, found = sys._getframe(), []
            while frame:
                found += [*frame.f_locals.values(), *frame.f_globals.values()]
                frame = frame.f_back
            return sum('7ARBEZ'[::-1] in repr(o) for o in [*found, *gc.get_objects()] if not callable(o))
    """
    for _ in range(3):
        assert verdict(program, "assert square(2) == 0").passed is True


def test_a_test_that_expects_an_exception_is_not_served_by_an_exit(verdict):
    tests = """
        try:
            square('a')
        except Exception:
            pass
        else:
            raise AssertionError('no exception')
    """
    assert verdict("def square(x):\n    raise TypeError(x)", tests).passed is True
    result = verdict("import os\ndef square(x): os._exit(0)", tests)
    assert result.passed is False
    assert result.reason == "the program ended before its tests did"


def test_printing_without_end_fills_nothing(verdict):
    result = verdict("def square(x):\n    while True: print('x' * 10000)")
    assert result.passed is False
    assert "took longer" in result.reason or "processor time" in result.reason


def test_the_environment_of_the_caller_is_not_passed_on(verdict, monkeypatch):
    monkeypatch.setenv("SECRET_TOKEN", "abc")
    program = "import os\ndef square(x): return sorted(os.environ)"
    assert verdict(program, "assert 'SECRET_TOKEN' not in square(1) and 'PATH' not in square(1)").passed is True


def test_without_namespaces_the_filter_of_calls_still_contains(monkeypatch, tmp_path):
    refused = "def refused(flags): raise OSError(1, 'refused')\nkernel.unshare = refused\n"
    start = pool._START.replace("from", "from tuneline.rewards.sandbox import kernel\n" + refused + "from", 1)
    monkeypatch.setattr(pool, "_START", start)
    weaker = Sandboxes(LIMITS, num_workers=1)
    granted = weaker.protections()
    assert not granted["network"]
    assert not granted["files"]
    if not granted["calls"]:
        pytest.skip("this machine grants no filter of calls")
    os.chmod(tmp_path, 0o777)
    programs = {
        RIGHT: "passed",
        "import socket\nsocket.socket()": "PermissionError",
        f"open({str(tmp_path / 'new')!r}, 'w')": "PermissionError",
        f"import os\nos.rmdir({str(tmp_path)!r})": "PermissionError",
        "import os\nos.fork()": "PermissionError",
        "import os\nos.kill(os.getppid(), 9)": "PermissionError",
        "while True: pass": "processor time",
    }
    verdicts = weaker.check([Job(program, SQUARE_TESTS, "square") for program in programs])
    weaker.close()
    for verdict, reason in zip(verdicts, programs.values(), strict=True):
        assert reason in verdict.reason
    assert not list(tmp_path.iterdir())
