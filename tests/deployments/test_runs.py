"""Runs that a worker takes from the server: on a schedule, one after the other, cancelled, with the server gone."""

import signal
import time

import psutil
import pytest

from tests.deployments.conftest import Line, end, wait_until

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(1200),
    pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::DeprecationWarning"),
]
CHANGE_DPO = ["dpo.launch.timeout_hours=2"]


def test_a_cron_schedule_fires_by_itself(line: Line):
    line.deploy(full_line={"schedules": [{"cron": "* * * * *", "timezone": "UTC", "active": True}]})
    with line.worker():
        wait_until(lambda: any(run.state_name == "Completed" for run in line.runs()), 150, lambda: line.log)
    done = [run for run in line.runs() if run.state_name == "Completed"]
    assert done[0].auto_scheduled
    assert done[0].expected_start_time.second == 0
    assert (done[0].start_time - done[0].expected_start_time).total_seconds() < 30
    assert line.checkout.tries("prepare") == 0  # it was up to date


def test_runs_that_overlap_wait_for_one_another(line: Line):
    line.deploy()
    line.checkout.order("dpo", "sleep")
    with line.worker():
        first = line.run("full-line", overrides=CHANGE_DPO)
        line.wait(first, "Running")
        second = line.run("full-line", overrides=CHANGE_DPO)
        other = line.run("preference-line", overrides=CHANGE_DPO)
        line.wait(second, "AwaitingConcurrencySlot")  # the deployment's own limit
        wait_until(
            lambda: "Another run uses" in line.log or "waiting until it has ended" in line.log, 60, lambda: line.log
        )
        for run in (first, second, other):
            line.wait(run, "Completed")
    with line.server.client() as client:
        ended = client.read_flow_run(first.id).end_time
        assert client.read_flow_run(second.id).start_time >= ended
    assert line.checkout.tries("dpo") == 1  # what the first has made the others take


def test_a_cancelled_run_leaves_no_process(line: Line):
    line.deploy()
    line.checkout.order("dpo", "hang")
    with line.worker():
        run = line.run("full-line", overrides=CHANGE_DPO)
        wait_until(lambda: line.checkout.tries("dpo") == 1, 120, lambda: line.log)
        hanging = [process for process in line.checkout.processes() if "toy_stage.py" in " ".join(process.cmdline())]
        tree = [*hanging, *(below for process in hanging for below in process.children(recursive=True))]
        assert tree
        started = time.monotonic()
        line.type(f"prefect flow-run cancel {run.id}")
        line.wait(run, "Cancelled", 60)
        _, alive = psutil.wait_procs(tree, timeout=30)
        assert not alive
        print(f"cancelled and gone after {time.monotonic() - started:.1f} s")
        line.checkout.order("dpo", "")
        again = line.run("full-line", overrides=CHANGE_DPO)
        line.wait(again, "Completed")
    assert line.checkout.tries("dpo") == 2


def test_what_stages_have_finished_counts_though_the_server_died(line: Line):
    line.deploy()
    line.checkout.order("dpo", "sleep")
    server = line.server
    with line.worker():
        run = line.run("full-line", overrides=CHANGE_DPO)
        wait_until(lambda: line.checkout.tries("dpo") == 1, 120, lambda: line.log)
        assert server.process is not None
        end(server.process, signal.SIGKILL)
        # dpo goes on to its end without the server, and so does what comes after it, or the flow gives up
        wait_until(lambda: (line.path / "dpo.done").exists(), 60, lambda: line.log)
        server.start()
        wait_until(lambda: line.state(run) in ("Completed", "Failed", "Crashed"), 240, lambda: line.log)
        print(f"the run that lost its server ended as {line.state(run)}")
        line.wait(line.run("full-line", overrides=CHANGE_DPO), "Completed", 240)
    assert line.checkout.tries("dpo") == 1
    assert line.checkout.tries("evaluate") == 1
