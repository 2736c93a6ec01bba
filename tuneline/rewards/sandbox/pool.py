"""The caller's side: servers that check programs, several at once, each started on first use."""

from __future__ import annotations

import json
import os
import queue
import shutil
import tempfile
import weakref
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from tuneline.errors import ConfigError
from tuneline.logging import get_logger
from tuneline.rewards.sandbox.jail import PROTECTIONS, Limits
from tuneline.rewards.workers import Worker, each

logger = get_logger(__name__)

_START = (
    "import sys; sys.path.insert(0, sys.argv[1]); from tuneline.rewards.sandbox.server import main; main(sys.argv[2])"
)
_SOURCES = os.path.dirname(os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__)))))
_START_TIME = 30.0  # seconds
_GRACE = 5.0  # seconds beyond a job's own limit, after which its server is taken for dead


@dataclass(frozen=True)
class Case:
    """What a script is given on its input, and what it must print."""

    input: str
    output: str


@dataclass(frozen=True)
class Job:
    """A program and what tells whether it is right.

    Attributes:
        program: Python's source.
        tests: source whose assertions call the program's functions, and where it defines `check`, that is called with
            the entry point; or cases for a script.
        entry_point: the function that is asked for; needed where tests define `check`.
        context: trusted source that tests may use beside the program: the prompt, with its imports and helpers.
    """

    program: str
    tests: str | Sequence[Case]
    entry_point: str | None = None
    context: str = ""


@dataclass(frozen=True)
class Verdict:
    """Whether a program passed, None where the tests themselves are at fault; and why."""

    passed: bool | None
    reason: str


class Sandboxes:
    """Servers that run programs against their tests, in jails (see `jail.PROTECTIONS`).

    Args:
        limits: what one program may use.
        num_workers: programs at once; by default as many as there are processors.

    Raises:
        ConfigError: when used, where a server cannot be started or the machine grants too little.
    """

    def __init__(self, limits: Limits | None = None, num_workers: int | None = None):
        self.limits = limits or Limits()
        self.num_workers = num_workers or len(os.sched_getaffinity(0))
        self._free: queue.SimpleQueue[_Server] = queue.SimpleQueue()
        self._owner = os.getpid()
        for _ in range(self.num_workers):
            self._free.put(_Server())

    def __reduce__(self) -> tuple:
        return Sandboxes, (self.limits, self.num_workers)

    def protections(self) -> dict[str, bool]:
        """For each of `jail.PROTECTIONS` whether this machine grants it."""
        server = self._free.get()
        try:
            return server.started()
        finally:
            self._free.put(server)

    def check(self, jobs: Sequence[Job]) -> list[Verdict]:
        """One verdict a job, in order; `num_workers` at a time."""
        if self._owner != os.getpid():  # a fork has no right to its parent's servers
            self.__init__(self.limits, self.num_workers)  # type: ignore[misc]
        return each(self._free, lambda server, job: server.check(job, self.limits), jobs, self.num_workers)

    def close(self) -> None:
        """End the servers; the next job starts them again."""
        servers = [self._free.get() for _ in range(self.num_workers)]
        for server in servers:
            server.close()
            self._free.put(server)


class _Server:
    """One server process, started when it is first needed and again after it was lost."""

    def __init__(self) -> None:
        self.worker: Worker | None = None
        self.folder: str | None = None
        self.granted: dict[str, bool] = {}

    def started(self) -> dict[str, bool]:
        if self.worker is None or not self.worker.is_alive():
            self.close()
            self.folder = tempfile.mkdtemp(prefix="tuneline-")
            os.chmod(self.folder, 0o711)
            weakref.finalize(self, shutil.rmtree, self.folder, ignore_errors=True)
            self.worker = Worker(["-I", "-S", "-B", "-c", _START, _SOURCES, self.folder], environment={})
            try:
                self.granted = self.worker.receive(timeout=_START_TIME)["protections"]
            except (EOFError, TimeoutError) as error:
                self.close()
                raise ConfigError(
                    f"a server for programs cannot be started on this machine: {error}; it needs Linux, and says why "
                    "on the error output."
                ) from None
            _report(self.granted)
        return self.granted

    def check(self, job: Job, limits: Limits) -> Verdict:
        is_script = not isinstance(job.tests, str)
        tests: dict[str, Any] = {"entry_point": job.entry_point, "context": job.context, "tests": job.tests}
        if not isinstance(job.tests, str):
            tests = {"cases": [asdict(case) for case in job.tests]}
        tests_frame = json.dumps(tests).encode()
        header = {
            "program": job.program,
            "limits": asdict(limits),
            "num_cases": len(job.tests) if is_script else 0,
            "tests_length": len(tests_frame),
        }
        header_frame = json.dumps(header).encode()
        return self._ask(b"%08d" % len(header_frame) + header_frame + tests_frame, limits)

    def _ask(self, message: bytes, limits: Limits, is_second_time: bool = False) -> Verdict:
        self.started()
        assert self.worker is not None
        try:
            self.worker.send(message)
            answer = self.worker.receive(timeout=limits.wall_time + _GRACE)
        except TimeoutError as error:
            self.close()
            return Verdict(False, f"its server had to be ended: {error}")
        except EOFError as error:
            self.close()
            if is_second_time:
                return Verdict(False, f"its server ended: {error}")
            return self._ask(message, limits, is_second_time=True)
        return Verdict(answer["passed"], answer["reason"])

    def close(self) -> None:
        if self.worker is not None:
            self.worker.close()
        if self.folder is not None:
            shutil.rmtree(self.folder, ignore_errors=True)
        self.worker = self.folder = None


_reported: set[str] = set()


def _report(granted: dict[str, bool]) -> None:
    """Say once what stands between a program and the machine."""
    missing = [f"{name} ({PROTECTIONS[name]})" for name, is_on in granted.items() if not is_on]
    text = f"programs run without: {'; '.join(missing)}" if missing else "programs run with every protection"
    if text not in _reported:
        _reported.add(text)
        (logger.warning if missing else logger.info)("%s", text)
    contains = granted["limits"] and (granted["calls"] or (granted["processes"] and granted["network"]))
    if not contains:
        raise ConfigError(
            f"{text}, which contains nothing; allow the container user namespaces or seccomp filters, or leave the "
            "code-execution reward out."
        )
