"""Child processes that are asked over pipes, with a time-out on every answer, and that can be killed."""

from __future__ import annotations

import contextlib
import json
import os
import queue
import select
import subprocess
import sys
import threading
import time
import weakref
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

WorkerT = TypeVar("WorkerT")
ItemT = TypeVar("ItemT")
ResultT = TypeVar("ResultT")


class Worker:
    """A Python process that answers each request with one line of JSON. It ends when its input is closed.

    Args:
        arguments: what follows the interpreter on the command line.
        environment: all that the process has of one.
    """

    def __init__(self, arguments: Sequence[str], environment: Mapping[str, str]):
        self.process = subprocess.Popen(
            [sys.executable, *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=dict(environment),
            bufsize=0,
            start_new_session=True,  # an interrupt at the terminal is the owner's to handle
        )
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self._input, self._output = self.process.stdin.fileno(), self.process.stdout.fileno()
        self._unread = b""
        self._end = weakref.finalize(self, _kill, self.process, os.getpid())

    def is_alive(self) -> bool:
        return self.process.poll() is None

    def send(self, data: bytes) -> None:
        """Raises `EOFError` where the process has ended."""
        try:
            while data:
                data = data[os.write(self._input, data) :]
        except OSError as error:
            raise EOFError(f"process {self.process.pid} has ended ({error})") from None

    def receive(self, timeout: float) -> dict[str, Any]:
        """The next line.

        Raises:
            TimeoutError: there was none after `timeout` seconds.
            EOFError: the process has ended.
        """
        deadline = time.monotonic() + timeout
        poll = select.poll()
        poll.register(self._output, select.POLLIN)
        while b"\n" not in self._unread:
            remaining = deadline - time.monotonic()
            if remaining <= 0 or not poll.poll(remaining * 1000):
                raise TimeoutError(f"process {self.process.pid} gave no answer in {timeout:g} s")
            part = os.read(self._output, 2**16)
            if not part:
                raise EOFError(f"process {self.process.pid} has ended")
            self._unread += part
        line, _, self._unread = self._unread.partition(b"\n")
        return json.loads(line)

    def close(self) -> None:
        """Kill the process, and wait for its end."""
        self._end()


def _kill(process: subprocess.Popen, owner: int) -> None:
    if os.getpid() != owner:
        return
    process.kill()
    for stream in (process.stdin, process.stdout):
        if stream is not None:
            with contextlib.suppress(OSError):
                stream.close()
    process.wait()


def each(
    free: queue.SimpleQueue[WorkerT], ask: Callable[[WorkerT, ItemT], ResultT], items: Sequence[ItemT], at_once: int
) -> list[ResultT]:
    """Ask for every item, each time whichever worker is free; results in the order of the items.

    Raises:
        Exception: the first that `ask` raised, after all are done.
    """
    results: dict[int, ResultT] = {}
    errors: dict[int, Exception] = {}
    waiting = iter(range(len(items)))
    lock = threading.Lock()

    def work() -> None:
        while True:
            with lock:
                i = next(waiting, None)
            if i is None:
                return
            worker = free.get()
            try:
                results[i] = ask(worker, items[i])
            except Exception as error:
                errors[i] = error
            finally:
                free.put(worker)

    threads = [threading.Thread(target=work, daemon=True) for _ in range(min(at_once, len(items)))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if errors:
        raise errors[min(errors)]
    return [results[i] for i in range(len(items))]
