"""Where the time of a training loop goes."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


class Phases:
    """Seconds by phase, of the clock and of the processor (all threads). A phase in another is taken out of it."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = defaultdict(float)
        self.processor_seconds: dict[str, float] = defaultdict(float)
        self._within: list[tuple[float, float]] = []  # of each phase that is open: seconds of the phases in it

    @contextmanager
    def timed(self, phase: str) -> Iterator[None]:
        begun = time.perf_counter(), time.process_time()
        self._within.append((0.0, 0.0))
        try:
            yield
        finally:
            seconds, processor = time.perf_counter() - begun[0], time.process_time() - begun[1]
            inner_seconds, inner_processor = self._within.pop()
            self.seconds[phase] += seconds - inner_seconds
            self.processor_seconds[phase] += processor - inner_processor
            if self._within:
                outer_seconds, outer_processor = self._within[-1]
                self._within[-1] = outer_seconds + seconds, outer_processor + processor

    def watch(self, phase: str, owner: Any, method: str) -> None:
        """Count the calls of a method of this object to a phase."""
        call = getattr(owner, method)

        def timed_call(*args: Any, **kwargs: Any) -> Any:
            with self.timed(phase):
                return call(*args, **kwargs)

        setattr(owner, method, timed_call)
