"""Calls that have to run at the same time, whatever else the machine does."""

import asyncio
import threading

_LONGEST = 30.0  # seconds, after which those that are there give up on the others


class Meeting:
    """Who comes waits until all have come, which never happens where one begins after another has ended."""

    def __init__(self, num_expected: int):
        self._num_missing = num_expected
        self._lock = threading.Lock()
        self._all_are_here = threading.Event()

    def _arrive(self) -> None:
        with self._lock:
            self._num_missing -= 1
            if self._num_missing == 0:
                self._all_are_here.set()

    def wait(self) -> None:
        self._arrive()
        assert self._all_are_here.wait(_LONGEST), f"{self._num_missing} did not come"

    async def wait_async(self) -> None:
        self._arrive()
        async with asyncio.timeout(_LONGEST):
            while not self._all_are_here.is_set():
                await asyncio.sleep(0.005)
