"""The line itself, small, on a schedule: real stages, the repository's prefect.yaml, a worker. Minutes."""

import json
import shutil
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.deployments.conftest import ROOT, Line, Server, wait_until
from tests.flows.checkouts import Checkout
from tests.stages.checkouts import TINY, new_checkout

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(2400),
    pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::DeprecationWarning"),
]


def pairs(numbers: range) -> str:
    rows = ({"prompt": f"{n} + {n} =", "chosen": f" {2 * n}", "rejected": f" {2 * n + 1}"} for n in numbers)
    return "".join(json.dumps(row) + "\n" for row in rows)


@pytest.fixture
def small_line(server: Server, tmp_path: Path) -> Line:
    """The line of tests/stages/tiny.yaml, without online methods, with preferences from a file."""
    root = new_checkout(tmp_path / "line").root
    for name in ("flows", "tasks"):
        shutil.copytree(ROOT / name, root / name, ignore=shutil.ignore_patterns("__pycache__"))
    config = yaml.safe_load(TINY.read_text())
    config["prepare"]["preferences"] = {"path": "preferences.jsonl"}
    config["ppo"]["rewards"] = config["grpo"]["rewards"] = []
    (root / "configs").mkdir()
    (root / "configs" / "quickstart.yaml").write_text(yaml.safe_dump(config))
    (root / "preferences.jsonl").write_text(pairs(range(10, 50)))
    return Line(Checkout(root, server.env), server)


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

    wait_until(ended, 900, lambda: f"{[run.state_name for run in line.runs()]}\n{line.log}")
    assert found[0].state_name == "Completed", line.log
    assert found[0].auto_scheduled
    return found[0]


def test_the_second_scheduled_run_takes_up_new_data_and_makes_anew_what_depends_on_it(small_line: Line):
    parameters = {"parameters": {"config": "configs/quickstart.yaml"}}
    before = {run.id for run in small_line.runs()}  # of other tests, on the same server
    small_line.deploy(full_line=in_a_minute() | parameters)
    with small_line.worker():
        first = scheduled_run(small_line, before)
        stages = states_of_stages(small_line, first)
        assert {name for name, state in stages.items() if state == "Completed"} == {
            "prepare",
            "sft",
            "reward",
            "dpo",
            "evaluate",
        }
        with (small_line.path / "preferences.jsonl").open("a") as file:
            file.write(pairs(range(50, 60)))
        small_line.deploy(full_line=in_a_minute() | parameters)
        second = scheduled_run(small_line, {*before, first.id})
    again = states_of_stages(small_line, second)
    assert {name for name, state in again.items() if state == "Completed"} == {"prepare", "reward", "dpo", "evaluate"}
    assert again["sft"] == "Cached"
    for name, run in (("first", first), ("second", second)):
        late = (run.start_time - run.expected_start_time).total_seconds()
        print(f"{name} run: {run.total_run_time.total_seconds():.0f} s, began {late:.1f} s after its time")
