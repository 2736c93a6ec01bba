"""`tuneline run` as a user types it: real Prefect, DVC and MLflow, toys as stages."""

import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import mlflow
import pytest
from mlflow.entities import Run, ViewType

from flows.chosen import RUN_LOCK
from stages.supervise import stage_lock
from tests.flows.checkouts import CHANGE_DPO, Checkout
from tests.ports import free_port
from tests.processor_time import processor_time_of_children
from tests.servers import prefect_server

# Python 3.11's ast, used by a dependency of MLflow, and SQLite connections that MLflow leaves to the collector.
pytestmark = pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::DeprecationWarning")


def states(checkout: Checkout, table: str) -> list[tuple[str, str]]:
    """Names and states of Prefect's newest flow run or its task runs, as its database has them."""
    database = sqlite3.connect(Path(checkout.env["PREFECT_HOME"]) / "prefect.db")
    newest = "(select id from flow_run order by created desc limit 1)"
    where = f"id = {newest}" if table == "flow_run" else f"flow_run_id = {newest}"
    rows = database.execute(f"select name, state_name from {table} where {where} order by created").fetchall()
    database.close()
    return rows


def last_flow_states(checkout: Checkout, number: int) -> set[str]:
    """States of Prefect's newest flow runs."""
    database = sqlite3.connect(Path(checkout.env["PREFECT_HOME"]) / "prefect.db")
    rows = database.execute("select state_name from flow_run order by created desc limit ?", [number]).fetchall()
    database.close()
    return {name for (name,) in rows}


def tracked(checkout: Checkout, view: int = ViewType.ACTIVE_ONLY) -> list[Run]:
    """MLflow's runs, the newest first."""
    client = mlflow.MlflowClient(f"sqlite:///{checkout.path / 'mlflow.db'}")
    return list(client.search_runs([e.experiment_id for e in client.search_experiments()], run_view_type=view))


def wait_until(holds: Callable[[], bool], what: str, seconds: float = 120) -> None:
    limit = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < limit, what
        time.sleep(0.1)


def test_what_dvc_repro_has_made_is_not_run_again(checkout: Checkout):
    with processor_time_of_children() as taken:
        shown = checkout.call("run", "toy.yaml")
    assert taken.seconds < 10
    assert "Nothing to do: all 5 stages are up to date" in shown
    assert [line.split()[:3] for line in shown.splitlines() if " cached" in line][3] == ["dpo", "-", "cached"]
    assert not (checkout.path / "mlflow.db").exists()
    assert checkout.tries("prepare") == 0


def test_errors_are_told_before_anything_runs(checkout: Checkout):
    shown = checkout.call("run", "toy.yaml", "--set", "evaluate.temprature=1", "--set", "seed=-1", exit_code=2)
    assert "evaluate.temprature" in shown
    assert "did you mean `temperature`?" in shown
    assert "seed" in shown
    assert "Traceback" not in shown
    assert "configs/" not in checkout.call("run", "toi.yaml", exit_code=2)
    assert checkout.call("status").count("up to date") == 5


def test_a_plan_names_what_would_run_and_why_and_changes_nothing(checkout: Checkout):
    before = (checkout.path / "params.yaml").read_bytes()
    checkout.env["COLUMNS"] = "150"
    shown = checkout.call("plan", "toy.yaml", *CHANGE_DPO)
    rows = {line.split()[0]: line for line in shown.splitlines() if line.strip()}
    assert "cached" in rows["sft"]
    assert "dpo.launch.timeout_hours: 24.0 -> 2.0" in rows["dpo"]
    assert "may run" in rows["evaluate"]
    assert "2 of 5 stages to run" in shown
    assert (checkout.path / "params.yaml").read_bytes() == before


@pytest.mark.slow
def test_a_change_runs_what_depends_on_it_and_nothing_else(checkout: Checkout):
    shown = checkout.call("run", "toy.yaml", *CHANGE_DPO)
    assert {name: checkout.tries(name) for name in ("prepare", "sft", "reward", "dpo", "evaluate")} == {
        "prepare": 0,
        "sft": 0,
        "reward": 0,
        "dpo": 1,
        "evaluate": 1,
    }
    assert states(checkout, "flow_run")[0][1] == "Completed"
    assert states(checkout, "task_run") == [
        ("prepare", "Cached"),
        ("sft", "Cached"),
        ("reward", "Cached"),
        ("dpo", "Completed"),
        ("evaluate", "Completed"),
    ]
    (parent,) = tracked(checkout)
    assert parent.info.status == "FINISHED"
    assert parent.data.params["dpo.launch.timeout_hours"] == "2.0"
    assert parent.data.tags["stage.sft"] == "cached"
    assert parent.data.tags["stage.dpo.dvc.md5"].endswith(".dir")
    assert parent.data.metrics["dpo/loss"] == 0.5
    assert (checkout.path / "dpo.tries").read_text() == f"{parent.info.run_id}\n"
    assert "--backend-store-uri sqlite:///mlflow.db" in shown
    repro = [sys.executable, "-m", "dvc", "repro"]
    told = subprocess.run(repro, cwd=checkout.path, env=checkout.env, capture_output=True, text=True, check=True).stdout
    assert "Data and pipelines are up to date" in told


@pytest.mark.slow
def test_what_dvc_brings_back_from_its_cache_is_no_new_run(checkout: Checkout):
    checkout.call("run", "toy.yaml", *CHANGE_DPO)
    shown = checkout.call("run", "toy.yaml")
    assert "restored from DVC's cache" in shown
    assert "Nothing to do" in shown
    assert checkout.tries("dpo") == 1
    assert len(tracked(checkout)) == 1


@pytest.mark.slow
def test_a_failed_stage_is_tried_again(checkout: Checkout):
    checkout.order("dpo", "killed 1 ok")
    shown = checkout.call("run", "toy.yaml", *CHANGE_DPO, "--retry-delay", "0.2")
    assert checkout.tries("dpo") == 3
    assert "failed after" in shown
    assert "try 2 of 3" in shown
    assert states(checkout, "flow_run")[0][1] == "Completed"


@pytest.mark.slow
def test_a_stage_that_fails_for_good_is_named_with_the_end_of_its_log(checkout: Checkout):
    checkout.order("dpo", "1 1")
    shown = checkout.call("run", "toy.yaml", *CHANGE_DPO, "--retries", "1", "--retry-delay", "0.2", exit_code=1)
    assert "Stage dpo failed (exit code 1). The end of its log:" in shown
    end = shown.partition("The end of its log:")[2]
    assert "dpo: the toy breaks here" in end
    assert "line 40 of the log" in end
    assert "line 10 of the log" not in end
    assert "Traceback" not in shown
    assert "Go on where it stopped:  tuneline run toy.yaml --set dpo.launch.timeout_hours=2" in shown
    assert checkout.tries("evaluate") == 0
    assert states(checkout, "flow_run")[0][1] == "Failed"
    (parent,) = tracked(checkout)
    assert (parent.info.status, parent.data.tags["stage.evaluate"]) == ("FAILED", "not started")
    checkout.order("dpo", "")
    checkout.call("run", "toy.yaml", *CHANGE_DPO)
    assert (checkout.tries("dpo"), checkout.tries("evaluate")) == (3, 1)


@pytest.mark.slow
def test_what_the_user_has_to_mend_is_not_tried_again(checkout: Checkout):
    checkout.order("dpo", "2 2 2")
    shown = checkout.call("run", "toy.yaml", *CHANGE_DPO, "--retry-delay", "0.2", exit_code=2)
    assert "Stage dpo cannot run as it is:" in shown
    assert "dpo: the toy breaks here" in shown
    assert checkout.tries("dpo") == 1


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_a_stopped_run_leaves_no_process(checkout: Checkout, number: signal.Signals):
    checkout.order("dpo", "hang")
    run = checkout.start("run", "toy.yaml", *CHANGE_DPO)
    # the run, Prefect's server, dvc, the stage, and its child
    wait_until(lambda: checkout.tries("dpo") and len(checkout.processes()) >= 5, "dpo does not hang")
    run.send_signal(number)
    shown, _ = run.communicate(timeout=60)
    wait_until(lambda: not checkout.processes(), "processes are left", 30)
    if number != signal.SIGKILL:
        assert run.returncode == 130
        assert "Stopped. The same command goes on where it was." in shown
        assert states(checkout, "flow_run")[0][1] == "Crashed"
    checkout.order("dpo", "")
    checkout.call("run", "toy.yaml", *CHANGE_DPO)
    assert checkout.tries("dpo") == 2
    assert "Running" not in last_flow_states(checkout, 2)  # the stopped run and this one


@pytest.mark.slow
def test_reward_and_dpo_can_run_at_the_same_time(checkout: Checkout):
    checkout.call("run", "toy.yaml", "--force", "--parallel")
    assert [checkout.tries(name) for name in ("prepare", "sft", "reward", "dpo", "evaluate")] == [1, 1, 1, 1, 1]


@pytest.mark.slow
def test_while_another_run_is_under_way_its_settings_stay(checkout: Checkout):
    settings = checkout.path / "params.yaml"
    before = settings.read_text()
    with stage_lock(checkout.path / RUN_LOCK):
        run = checkout.start("run", "toy.yaml", "--set", "name=other")
        assert run.stdout is not None
        for line in run.stdout:
            if "Another run uses this checkout" in line:
                break
        assert checkout.call("plan", "toy.yaml", "--set", "name=other").count("cached") == 5
        assert settings.read_text() == before
    run.communicate(timeout=120)
    assert run.returncode == 0
    assert "name: other" in settings.read_text()


@pytest.mark.slow
def test_one_stage_runs_alone(checkout: Checkout):
    checkout.call("stage", "reward", "--force")
    assert [checkout.tries(name) for name in ("sft", "reward", "dpo")] == [0, 1, 0]
    (checkout.path / "data" / "prepared" / "result.txt").write_text("changed by hand")
    shown = checkout.call("stage", "dpo", exit_code=2)
    assert "dpo is made from what prepare, sft left, which is out of date" in shown


@pytest.mark.slow
def test_the_run_appears_on_a_server(checkout: Checkout):
    with prefect_server(Path(checkout.env["PREFECT_HOME"]), checkout.path / "server.log") as url:
        checkout.env["PREFECT_API_URL"] = f"{url}/api"
        shown = checkout.call("run", "toy.yaml", *CHANGE_DPO)
        assert f"open {url}" in shown
        assert states(checkout, "flow_run")[0][1] == "Completed"
        checkout.call("run", "toy.yaml", *CHANGE_DPO)
        assert {state for _, state in states(checkout, "task_run")} == {"Cached"}


def test_a_server_that_does_not_answer_is_one_message(checkout: Checkout):
    checkout.env["PREFECT_API_URL"] = f"http://127.0.0.1:{free_port()}/api"
    shown = checkout.call("run", "toy.yaml", *CHANGE_DPO, exit_code=2)
    assert "does not answer" in shown
    assert "Traceback" not in shown


@pytest.mark.slow
def test_mlflow_may_be_down(checkout: Checkout):
    checkout.env["MLFLOW_TRACKING_URI"] = f"http://127.0.0.1:{free_port()}"
    shown = checkout.call("run", "toy.yaml", *CHANGE_DPO)
    assert "the line runs on without it" in shown
    assert checkout.tries("evaluate") == 1
