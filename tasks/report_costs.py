"""What a run took: time, processor time, GPU hours, tokens, and a price where one is configured."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from pydantic import ValidationError

from stages.costs import Cost, price, read_costs
from stages.schema_costs import CostsSection
from tasks.summary import RunSummary, StageSummary, read_metrics


@dataclass(frozen=True)
class Spent:
    """Sums over some tries; seconds."""

    num_tries: int = 0
    wall: float = 0.0
    processor: float = 0.0
    gpu: float = 0.0
    peak_memory: int = 0
    price: float | None = None

    def __add__(self, other: Spent) -> Spent:
        prices = [spent.price for spent in (self, other) if spent.price is not None]
        return Spent(
            self.num_tries + other.num_tries,
            self.wall + other.wall,
            self.processor + other.processor,
            self.gpu + other.gpu,
            max(self.peak_memory, other.peak_memory),
            sum(prices) if prices else None,
        )


@dataclass(frozen=True)
class StageCost:
    """What one stage took in this run, and what it took in all to make what lies in the checkout."""

    name: str
    state: str
    seconds: float
    """By the clock of the flow, with DVC's work before and after."""
    run: Spent
    made: Spent
    num_tokens: int | None
    """Read in training, every epoch counted; of evaluate, the tokens of all completions that it keeps."""


@dataclass(frozen=True)
class Costs:
    """The costs of a run."""

    stages: list[StageCost]
    run: Spent
    made: Spent
    currency: str

    @property
    def has_price(self) -> bool:
        return self.made.price is not None or self.run.price is not None


def read_run_costs(root: Path, run: RunSummary) -> Costs:
    """From what the stages' tries have noted."""
    try:
        prices = CostsSection(**(run.config.get("costs") or {}))
    except (ValidationError, TypeError):  # the record of another version
        prices = CostsSection()
    stages = [_stage_cost(root, stage, run.started.timestamp(), prices) for stage in run.stages]
    in_run, made = Spent(), Spent()
    for stage in stages:
        in_run, made = in_run + stage.run, made + stage.made
    return Costs(stages, in_run, made, prices.currency)


def _stage_cost(root: Path, stage: StageSummary, since: float, prices: CostsSection) -> StageCost:
    tries = read_costs(root / ".work" / stage.name)
    done = [cost for cost in tries if cost.exit_code == 0]
    identity = done[-1].identity if done else None
    return StageCost(
        name=stage.name,
        state=stage.shown_state,
        seconds=stage.seconds,
        run=_sum([cost for cost in tries if cost.ended >= since], prices),
        made=_sum([cost for cost in tries if cost.identity == identity], prices),
        num_tokens=_num_tokens(root, stage.name),
    )


def _sum(tries: list[Cost], prices: CostsSection) -> Spent:
    wall, gpu = sum(cost.wall_seconds for cost in tries), sum(cost.gpu_seconds for cost in tries)
    return Spent(
        num_tries=len(tries),
        wall=wall,
        processor=sum(cost.processor_seconds for cost in tries),
        gpu=gpu,
        peak_memory=max((cost.peak_memory for cost in tries), default=0),
        price=price(prices, wall, gpu) if tries else None,
    )


def _num_tokens(root: Path, stage: str) -> int | None:
    if stage == "evaluate":
        try:
            table = pq.read_table(root / "reports/evaluate/files/completions.parquet", columns=["num_tokens"])
        except (OSError, pa.ArrowException):
            return None
        total: Any = pc.sum(table["num_tokens"]).as_py()
        return None if total is None else int(total)
    value = read_metrics(root, stage).get("train/num_tokens")
    return None if value is None else int(value)
