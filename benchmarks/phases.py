"""Where the time of a training loop goes."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from functools import wraps
from typing import Any

from benchmarks.measure import Measurement


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

        @wraps(call)
        def timed_call(*args: Any, **kwargs: Any) -> Any:
            with self.timed(phase):
                return call(*args, **kwargs)

        setattr(owner, method, timed_call)


class PhasedMeasurement(Measurement):
    """Times the phases too, from the end of the first step, which warms up, to the end of the last."""

    def __init__(self, *args: Any):
        super().__init__(*args)
        self.phases = Phases()
        self._at_step_ends: list[tuple[float, dict[str, float], dict[str, float]]] = []

    def end_step(self) -> None:
        super().end_step()
        p = self.phases
        self._at_step_ends.append((time.process_time(), dict(p.seconds), dict(p.processor_seconds)))

    def measured_times(self) -> dict[str, Any]:
        found = super().measured_times()
        (processor_before, *before), (processor, *after) = self._at_step_ends[0], self._at_step_ends[-1]
        found["processor_seconds"] = processor - processor_before
        totals = {"phases": "loop_seconds", "processor_phases": "processor_seconds"}
        for (name, total), first, last in zip(totals.items(), before, after, strict=True):
            found[name] = {phase: seconds - first.get(phase, 0.0) for phase, seconds in last.items()}
            found[name]["all else"] = found[total] - sum(found[name].values())
        return found
