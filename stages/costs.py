"""What a stage's tries have taken: a line for each in .work/STAGE/costs.jsonl, which outlives the work folders.

Processor time is that of the driver and of every process below it that has ended and was waited for, as the kernel
counts it (getrusage); what was killed by force is missing. Losing the file loses no result.
"""

from __future__ import annotations

import json
import resource
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path

from stages.launch import gpus_of_machine, num_gpus
from stages.schema import Launch
from stages.schema_costs import CostsSection

COSTS = "costs.jsonl"


@dataclass(frozen=True)
class Cost:
    """One try of a stage."""

    identity: str
    ended: float
    """time.time() at its end."""
    wall_seconds: float
    processor_seconds: float
    num_gpus: int
    """GPUs that it held from its start to its end, busy or not."""
    peak_memory: int
    """Bytes in memory of its largest process at most."""
    exit_code: int | None
    """Of the stage; None when it was stopped."""

    @property
    def gpu_seconds(self) -> float:
        return self.wall_seconds * self.num_gpus


@dataclass
class Try:
    """A try while it runs; whoever starts the stage tells how it ended."""

    exit_code: int | None = None


@contextmanager
def noted_cost(folder: Path, identity: str, num_gpus: int) -> Iterator[Try]:
    """Adds a line to `folder`/costs.jsonl on what happens within, whether it ends well or not."""
    began, before, this = time.monotonic(), _processor_seconds(), Try()
    try:
        yield this
    finally:
        peak = max(resource.getrusage(who).ru_maxrss for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
        cost = Cost(
            identity=identity,
            ended=round(time.time(), 3),
            wall_seconds=round(time.monotonic() - began, 3),
            processor_seconds=round(_processor_seconds() - before, 3),
            num_gpus=num_gpus,
            peak_memory=peak * 1024,  # Linux counts in KiB
            exit_code=this.exit_code,
        )
        with suppress(OSError):  # a full disk: what the stage has made is worth more than this line
            folder.mkdir(parents=True, exist_ok=True)
            with (folder / COSTS).open("a", encoding="utf-8") as file:
                file.write(json.dumps(asdict(cost)) + "\n")


def _processor_seconds() -> float:
    usages = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(usage.ru_utime + usage.ru_stime for usage in usages)


def read_costs(folder: Path) -> list[Cost]:
    """All tries that the file tells of, the oldest first; a line that cannot be read is left out."""
    try:
        lines = (folder / COSTS).read_text(encoding="utf-8").splitlines()
    except OSError:
        return []
    costs = []
    for line in lines:
        try:
            costs.append(Cost(**json.loads(line)))
        except (ValueError, TypeError):  # cut off, or of another version
            continue
    return costs


def held_gpus(launch: Launch | None, root: Path) -> int:
    """How many GPUs a stage holds: what it takes, as far as the machine has them.

    Args:
        launch: of a stage that trains; None: one plain process.
        root: the checkout.
    """
    return min(gpus_of_machine(), 1 if launch is None else num_gpus(launch, root))


def price(costs: CostsSection, wall_seconds: float, gpu_seconds: float) -> float | None:
    """In `costs.currency`; None where no price is configured."""
    if costs.per_hour is None and costs.per_gpu_hour is None:
        return None
    return ((costs.per_hour or 0.0) * wall_seconds + (costs.per_gpu_hour or 0.0) * gpu_seconds) / 3600
