"""How much work something is, which unlike the time on a clock hardly depends on what else the machine does."""

import resource
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass


@dataclass
class Taken:
    seconds: float = 0.0


@contextmanager
def processor_time_of_children() -> Iterator[Taken]:
    """Once the block has ended: the processor time of the processes that began and ended in it, and of theirs."""
    taken = Taken(-_so_far())
    yield taken
    taken.seconds += _so_far()


def _so_far() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime
