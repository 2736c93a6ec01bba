"""Where the time of a training loop goes."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


class Phases:
    """Seconds by phase. A phase within another is taken out of it."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = defaultdict(float)
        self._within: list[float] = []  # of each phase that is open: seconds of the phases in it

    @contextmanager
    def timed(self, phase: str) -> Iterator[None]:
        begun = time.perf_counter()
        self._within.append(0.0)
        try:
            yield
        finally:
            seconds = time.perf_counter() - begun
            self.seconds[phase] += seconds - self._within.pop()
            if self._within:
                self._within[-1] += seconds

    def watch(self, phase: str, owner: Any, method: str) -> None:
        """Count the calls of a method of this object to a phase."""
        call = getattr(owner, method)

        def timed_call(*args: Any, **kwargs: Any) -> Any:
            with self.timed(phase):
                return call(*args, **kwargs)

        setattr(owner, method, timed_call)
