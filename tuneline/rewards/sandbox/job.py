"""One job: a program in a process of its own, and beside it the tests, which alone can say that it passed.

Three processes: a keeper that stands between the server and the job, the tests' process (the first of the job's own
process numbers, so that all die with it), and the program's, forked before the tests are read: they are nowhere in
its memory. The verdict goes through a pipe that the program does not have; exit codes and printed text prove nothing.
"""

from __future__ import annotations

import ast
import builtins
import contextlib
import json
import os
import resource
import select
import signal
import socket
import sys
import time
import traceback
from dataclasses import replace
from typing import Any

from tuneline.rewards.sandbox import jail, kernel
from tuneline.rewards.sandbox.exchange import Channel, Program, ProgramFault, Tester, described, read_exactly
from tuneline.rewards.sandbox.jail import Limits

HAS_READ, ANSWERS = b"r", b"a"  # what the server is told
Verdict = tuple[bool | None, str]  # passed, or None where the tests are at fault; and why


def keep(job: dict[str, Any], number: int, on: dict[str, bool], folder: str, report: int) -> None:
    """The keeper: starts the tests' process and waits; never returns."""
    os.setpgid(0, 0)
    try:
        if on["files"]:
            kernel.unshare(kernel.CLONE_NEWNS)
        if on["processes"]:
            kernel.unshare(kernel.CLONE_NEWPID)
        tests = os.fork()
    except OSError as error:  # the machine has no more of what it granted
        _answer((None, f"no process for the program: {error}"), report, 1)
        os._exit(0)
    if tests == 0:
        kernel.prctl(kernel.PR_SET_PDEATHSIG, signal.SIGKILL)
        _run(job, number, on, folder, report)
    os.waitpid(tests, 0)
    os._exit(0)


def _run(job: dict[str, Any], number: int, on: dict[str, bool], folder: str, report: int) -> None:
    """The tests' process; never returns. It reports to the server that it has read the tests, then that it answers."""
    limits = Limits(**job["limits"])
    owner = os.dup(1)
    null = os.open("/dev/null", os.O_RDWR)
    for descriptor in (1, 2):  # what tests print is not the server's answer
        os.dup2(null, descriptor)
    try:
        place = jail.scratch(limits, number, on, folder)
        if job["num_cases"]:
            verdict = _run_cases(job, number, on, place, report, limits)
        else:
            verdict = _run_tests(job, number, on, place, report, limits)
    except ProgramFault as fault:
        verdict = (False, str(fault))
    except BaseException as error:
        verdict = (None, f"the tests cannot run: {type(error).__name__}: {error}")
    _answer(verdict, report, owner)
    os._exit(0)


def _answer(verdict: Verdict, report: int, owner: int) -> None:
    """Give the verdict to the owner. It shows of the tests what failed, and so does not pass through the server, from
    whose memory the next program is forked."""
    line = json.dumps({"passed": verdict[0], "reason": verdict[1][:300]}) + "\n"
    assert len(line) < select.PIPE_BUF  # one write is whole or not at all
    os.write(report, ANSWERS)
    os.write(owner, line.encode())


def _read_tests(job: dict[str, Any], report: int) -> Any:
    tests = json.loads(read_exactly(0, job["tests_length"]))
    os.dup2(1, 0)
    os.write(report, HAS_READ)
    return tests


def _run_tests(
    job: dict[str, Any], number: int, on: dict[str, bool], place: str, report: int, limits: Limits
) -> Verdict:
    ours, theirs = socket.socketpair()
    program = os.fork()
    if program == 0:
        null = os.open("/dev/null", os.O_RDWR)
        _become_program(theirs.fileno(), null, null, number, on, place, limits)
        _serve_functions(job["program"])
    theirs.close()
    tests = _read_tests(job, report)
    jail.confine(replace(limits, memory=2 * limits.memory, cpu_time=4 * limits.cpu_time), number + 1, on)
    sys.set_int_max_str_digits(0)
    channel = Channel(ours.fileno())
    try:
        answer = channel.receive()
        if "raised" in answer:
            raised = answer["raised"]
            return False, f"the program raised {raised['types'][0]}: {raised['text']}"
        return _test(Tester(channel), tests)
    except ProgramFault as fault:
        return False, _how_it_ended(program, limits, patience=0.2) or str(fault)


def _test(tester: Tester, tests: dict[str, Any]) -> Verdict:
    """Run the tests against the program's functions.

    What the context defines (the imports and helpers of a prompt) is trusted; of the program comes the entry point,
    and what tests name and neither context nor Python defines.
    """
    namespace: dict[str, Any] = {"__name__": "tests"}
    context = _complete(tests["context"])
    if context:
        exec(context, namespace)
    entry_point = tests["entry_point"]
    try:
        tree = ast.parse(tests["tests"])
        code = compile(tree, "<tests>", "exec")
    except SyntaxError as error:
        return None, f"the tests are no Python: {error}"
    used = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)}
    wanted = sorted(used - set(dir(builtins)) - set(namespace))
    if entry_point:
        wanted = [entry_point, *(name for name in wanted if name != entry_point)]
        namespace.pop(entry_point, None)
    namespace.update(tester.look_up(wanted))
    if entry_point and entry_point not in namespace:
        return False, f"the program defines no {entry_point!r}"
    try:
        exec(code, namespace)
        if entry_point and callable(namespace.get("check")):
            namespace["check"](namespace[entry_point])
    except Exception as error:
        if not tester.channel.fault:
            return False, _why(error, tests["tests"])
    if tester.channel.fault:  # also where the tests took it for an exception that they expect
        raise ProgramFault(tester.channel.fault)
    if not tester.num_calls:
        return None, "the tests called nothing of the program; name its entry point"
    return True, "passed"


def _complete(context: str) -> Any:
    """Trusted code that may end in an open function, as prompts do; None where it is no Python."""
    for body in ("", "\n    pass\n"):
        with contextlib.suppress(SyntaxError):
            return compile(context + body, "<context>", "exec")
    return None


def _why(error: Exception, tests: str) -> str:
    lines = tests.splitlines()
    places = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == "<tests>"]
    at = f" at {lines[places[-1] - 1].strip()[:160]!r}" if places and places[-1] else ""
    kind = getattr(error, "from_program", type(error).__name__)
    text = str(error)[:200]
    return f"{kind}{': ' + text if text else ''}{at}"


def _become_program(
    channel: int, input_file: int, output_file: int, number: int, on: dict[str, bool], place: str, limits: Limits
) -> None:
    """Let go of every file of the keepers, and enter the jail's last room. The channel is file 3."""
    channel, input_file, output_file = (os.dup(one) for one in (channel, input_file, output_file))
    os.dup2(input_file, 0)
    os.dup2(output_file, 1)
    os.dup2(output_file, 2)
    os.dup2(channel, 3)
    os.closerange(4, min(resource.getrlimit(resource.RLIMIT_NOFILE)[0], 2**16))
    os.chdir(place)
    os.environ["HOME"] = place
    jail.confine(limits, number, on)
    sys.argv[:] = ["program"]


def _serve_functions(source: str) -> None:
    """The program's process where functions are tested; never returns."""
    sys.set_int_max_str_digits(0)
    channel = Channel(3)
    namespace: dict[str, Any] = {"__name__": "program"}
    try:
        exec(compile(source, "<program>", "exec"), namespace)
    except BaseException as error:
        channel.send({"raised": described(error)})
        os._exit(0)
    try:
        channel.send({"ready": True})
        Program(channel, namespace).serve()
    finally:
        os._exit(0)


def _run_cases(
    job: dict[str, Any], number: int, on: dict[str, bool], place: str, report: int, limits: Limits
) -> Verdict:
    """Run the program once for each case, as a script: it reads the input and must print the output."""
    waiting = []
    for i in range(job["num_cases"]):
        given = os.memfd_create("input")
        go, ours = socket.socketpair()
        reading, writing = os.pipe()
        program = os.fork()
        if program == 0:
            _become_program(go.fileno(), given, writing, number + i, on, place, limits)
            _serve_script(job["program"])
        os.close(writing)
        go.close()
        waiting.append((program, given, ours, reading))
    cases = _read_tests(job, report)["cases"]
    for i, (case, (program, given, go, reading)) in enumerate(zip(cases, waiting, strict=True)):
        os.write(given, case["input"].encode())
        os.lseek(given, 0, os.SEEK_SET)
        go.sendall(b"1")
        printed = _read_at_most(reading, limits.output * 2**20)
        if printed is None:
            return False, f"case {i}: it printed more than {limits.output} MiB"
        ended = _how_it_ended(program, limits)
        if ended:
            return False, f"case {i}: {ended}"
        if _lines(printed) != _lines(case["output"].encode()):
            return False, f"case {i}: printed {printed[:80]!r}, not {case['output'][:80]!r}"
    return True, "passed"


def _serve_script(source: str) -> None:
    if os.read(3, 1) != b"1":
        os._exit(1)
    os.close(3)
    sys.stdin = os.fdopen(0, encoding="utf-8", errors="replace", closefd=False)
    status = 0
    try:
        exec(compile(source, "<program>", "exec"), {"__name__": "__main__", "__builtins__": builtins})
    except SystemExit:
        pass
    except BaseException:
        traceback.print_exc(limit=-1)
        status = 1
    with contextlib.suppress(BaseException):
        sys.stdout.flush()
    os._exit(status)


def _read_at_most(descriptor: int, length: int) -> bytes | None:
    data = b""
    while len(data) <= length and (part := os.read(descriptor, 2**16)):
        data += part
    return data if len(data) <= length else None


def _lines(text: bytes) -> list[bytes]:
    """What counts of a text: its lines, without blanks at their ends and empty lines at its own."""
    return [line.rstrip() for line in text.strip().splitlines()]


def _how_it_ended(program: int, limits: Limits, patience: float | None = None) -> str:
    """Why a program is no more; empty where it came to its own end, or is alive after `patience` seconds."""
    until = None if patience is None else time.monotonic() + patience
    ended, status, used = os.wait4(program, 0 if until is None else os.WNOHANG)
    while not ended and until is not None and time.monotonic() < until:
        time.sleep(0.01)
        ended, status, used = os.wait4(program, os.WNOHANG)
    if not ended:
        return ""
    if os.WIFSIGNALED(status):
        name = signal.Signals(os.WTERMSIG(status)).name
        if name == "SIGKILL" and used.ru_utime + used.ru_stime > limits.cpu_time - 0.5:
            return f"it used up its {limits.cpu_time} s of processor time"
        return f"it died of {name}"
    return f"it ended with status {os.WEXITSTATUS(status)}" if os.WEXITSTATUS(status) else ""
