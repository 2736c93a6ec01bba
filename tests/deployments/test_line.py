"""The line on a schedule, small and as the quickstart has it: the repository's prefect.yaml, a worker. Minutes."""

import json
import shutil
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.deployments.conftest import ROOT, Line, Server, wait_until
from tests.flows.checkouts import Checkout
from tests.stages.checkouts import TINY, new_checkout
from tuneline.data.synthetic import make_rows

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(3600),
    pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::DeprecationWarning"),
]


@dataclass(frozen=True)
class Source:
    """What is appended to between two runs, and the stages that run at first and again then."""

    line: Line
    file: Path
    more: str
    at_first: set[str]
    again: set[str]


def lines_of(rows: Iterable[dict[str, Any]]) -> str:
    return "".join(json.dumps(row) + "\n" for row in rows)


def pairs(numbers: range) -> str:
    return lines_of({"prompt": f"{n} + {n} =", "chosen": f" {2 * n}", "rejected": f" {2 * n + 1}"} for n in numbers)


def line_in(folder: Path, server: Server, config: dict[str, Any]) -> Line:
    """A checkout whose deployment `full-line` has this config."""
    root = new_checkout(folder).root
    for name in ("flows", "tasks"):
        shutil.copytree(ROOT / name, root / name, ignore=shutil.ignore_patterns("__pycache__"))
    (root / "configs").mkdir()
    (root / "configs" / "quickstart.yaml").write_text(yaml.safe_dump(config))
    return Line(Checkout(root, server.env), server)


@pytest.fixture
def small_line(server: Server, tmp_path: Path) -> Source:
    """The line of tests/stages/tiny.yaml, without online methods; its preferences come from a file."""
    config = yaml.safe_load(TINY.read_text())
    config["prepare"]["preferences"] = {"path": "preferences.jsonl"}
    config["ppo"]["rewards"] = config["grpo"]["rewards"] = []
    line = line_in(tmp_path / "line", server, config)
    file = line.path / "preferences.jsonl"
    file.write_text(pairs(range(10, 50)))
    stages = {"prepare", "sft", "reward", "dpo", "evaluate"}
    return Source(line, file, pairs(range(50, 60)), stages, stages - {"sft"})


@pytest.fixture
def quickstart(server: Server, tmp_path: Path) -> Source:
    """The quickstart's line, whole; the prompts that PPO and GRPO learn on come from a file."""
    config = yaml.safe_load((ROOT / "configs" / "quickstart.yaml").read_text())
    num_rows = config["prepare"]["prompts"]["synthetic"]["num_rows"]
    rows = make_rows("prompts", num_rows + 400, seed=config["seed"])
    config["prepare"]["prompts"] = {"path": "prompts.jsonl"}
    line = line_in(tmp_path / "line", server, config)
    file = line.path / "prompts.jsonl"
    file.write_text(lines_of(rows[:num_rows]))
    again = {"prepare", "ppo", "grpo", "evaluate"}
    return Source(line, file, lines_of(rows[num_rows:]), again | {"sft", "reward", "dpo"}, again)


def in_a_minute() -> dict[str, Any]:
    """A schedule that fires once today, and leaves a worker time to see it."""
    at = datetime.now(UTC) + timedelta(seconds=75)
    return {"schedules": [{"cron": f"{at.minute} {at.hour} * * *", "timezone": "UTC", "active": True}]}


def states_of_stages(line: Line, run: Any) -> dict[str, str]:
    from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterId
    from prefect.client.schemas.sorting import TaskRunSort

    with line.server.client() as client:
        of_run = FlowRunFilter(id=FlowRunFilterId(any_=[run.id]))
        tasks = client.read_task_runs(flow_run_filter=of_run, limit=100, sort=TaskRunSort.EXPECTED_START_TIME_ASC)
    return {task.name: str(task.state_name) for task in tasks}


def scheduled_run(line: Line, known: set[Any]) -> Any:
    """The run that the schedule makes, at its end."""
    found: list[Any] = []

    def ended() -> bool:
        found[:] = [
            run for run in line.runs() if run.id not in known and run.state_name in ("Completed", "Failed", "Crashed")
        ]
        return bool(found)

    wait_until(ended, 1800, lambda: f"{[run.state_name for run in line.runs()]}\n{line.log}")
    assert found[0].state_name == "Completed", line.log
    assert found[0].auto_scheduled
    return found[0]


@pytest.mark.parametrize("name", ["small_line", "quickstart"])
def test_the_second_scheduled_run_takes_up_new_data_and_makes_anew_what_depends_on_it(name: str, request: Any):
    source: Source = request.getfixturevalue(name)
    line = source.line
    parameters = {"parameters": {"config": "configs/quickstart.yaml"}}
    before = {run.id for run in line.runs()}  # of other tests, on the same server
    line.deploy(full_line=in_a_minute() | parameters)
    with line.worker():
        first = scheduled_run(line, before)
        at_first = states_of_stages(line, first)
        with source.file.open("a") as file:
            file.write(source.more)
        line.deploy(full_line=in_a_minute() | parameters)
        second = scheduled_run(line, {*before, first.id})
    again = states_of_stages(line, second)
    assert {stage for stage, state in at_first.items() if state == "Completed"} == source.at_first
    assert {stage for stage, state in again.items() if state == "Completed"} == source.again
    assert {stage for stage, state in again.items() if state == "Cached"} >= source.at_first - source.again
    for which, run in (("first", first), ("second", second)):
        late = (run.start_time - run.expected_start_time).total_seconds()
        print(f"{which} run: {run.total_run_time.total_seconds():.0f} s, began {late:.1f} s after its time")
