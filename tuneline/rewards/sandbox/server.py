"""The server: a process that has little in memory, is locked in once, and forks a job in a few milliseconds.

It reads a job's header (with the program) from its input and leaves the tests, which follow, to the job itself: they
never pass through the memory that a program is forked from. It, or the job itself, writes one line a job. It ends with
its owner, whose end closes its input.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import shutil
import signal
import sys
import time
from pathlib import Path
from typing import Any

from tuneline.rewards.sandbox import jail, job, kernel

# Imported here so that programs need not each load them again.
_COMMON = (
    "abc bisect calendar cmath collections contextlib copy csv dataclasses datetime decimal enum fractions functools "
    "hashlib heapq io itertools json math operator queue random re statistics string struct textwrap time typing "
    "encodings.idna unicodedata"
)

_ANSWERING_TIME = 2.0  # seconds that a job has for its answer once it has said that there is one


def main(folder: str) -> None:
    """Serve jobs until the input ends.

    Args:
        folder: an empty one of the machine, for mount point or scratch folders.
    """
    for name in _COMMON.split():
        __import__(name)
    del sys.path[0]  # where this package lies: it is all loaded
    kernel.prctl(kernel.PR_SET_CHILD_SUBREAPER, 1)
    on = jail.enter(folder)
    _write({"protections": on})
    number = os.getpid() * 7919  # users of different servers differ
    while header := _read_header():
        number += header["num_cases"] + 2
        failure, is_read = _serve(header, number, on, folder)
        if failure:
            _write({"passed": False, "reason": failure})
        if not is_read:  # the tests are still in the input; another server takes over
            return


def _read_header() -> dict[str, Any] | None:
    length = os.read(0, 8)
    if len(length) < 8:
        return None
    return json.loads(job.read_exactly(0, int(length)))


def _serve(header: dict[str, Any], number: int, on: dict[str, bool], folder: str) -> tuple[str, bool]:
    """Why a job could not answer itself, empty where it did; and whether its tests were read."""
    reading, report = os.pipe()
    keeper = os.fork()
    if keeper == 0:
        os.close(reading)
        try:
            job.keep(header, number, on, folder, report)
        finally:
            os._exit(1)
    os.close(report)
    limit = header["limits"]["wall_time"]
    said, is_complete = _listen(reading, time.monotonic() + limit)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(keeper, signal.SIGKILL)
    with contextlib.suppress(ProcessLookupError):
        os.kill(keeper, signal.SIGKILL)
    os.waitpid(keeper, 0)
    os.close(reading)
    _end_orphans(on)
    shutil.rmtree(os.path.join(folder, f"job-{number}"), ignore_errors=True)
    is_read = job.HAS_READ in said
    if job.ANSWERS in said:
        return "", is_read
    return "its process was killed" if is_complete else f"it took longer than {limit} s", is_read


def _listen(reading: int, deadline: float) -> tuple[bytes, bool]:
    """What a job reports, and whether it came to its end in time, while there was still an owner."""
    poll = select.poll()
    poll.register(reading, select.POLLIN)
    poll.register(0, 0)  # only its end is of interest
    said = b""
    while True:
        events = dict(poll.poll(max(0.0, deadline - time.monotonic()) * 1000))
        if reading not in events:
            return said, False
        part = os.read(reading, 2**16)
        if not part:
            return said, True
        said += part
        if job.ANSWERS in part:
            deadline = time.monotonic() + _ANSWERING_TIME


def _end_orphans(on: dict[str, bool]) -> None:
    """What a job left behind comes to the server: dying where the job had process numbers of its own, else alive."""
    children = Path(f"/proc/self/task/{os.getpid()}/children")
    with contextlib.suppress(OSError):
        while not on["processes"] and (left := children.read_text().split()):
            for child in left:
                os.kill(int(child), signal.SIGKILL)
                os.waitpid(int(child), 0)
    with contextlib.suppress(ChildProcessError):
        while on["processes"]:
            os.waitpid(-1, 0)


def _write(message: dict[str, Any]) -> None:
    sys.stdout.write(json.dumps(message) + "\n")
    sys.stdout.flush()
