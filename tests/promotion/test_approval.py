"""A person's consent: a real Prefect server pauses the run, and its API resumes it, as its UI does."""

import subprocess
import sys
import time
from contextlib import contextmanager

import pytest
from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterState, FlowRunFilterStateType
from prefect.client.schemas.sorting import FlowRunSort
from prefect.states import StateType

from stages.supervise import end_tree
from tasks.registry import CHAMPION, Registry
from tests.promotion.conftest import ToyLine
from tests.servers import prefect_server

pytestmark = pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::DeprecationWarning")
PAUSED = FlowRunFilter(state=FlowRunFilterState(type=FlowRunFilterStateType(any_=[StateType.PAUSED])))
ASKING = ("--set", "promotion.require_approval=true")


def test_without_a_server_to_ask_on_a_run_is_refused_before_any_work(toys: ToyLine):
    before = (toys.path / "dvc.lock").read_bytes()
    shown = toys.call("run", "toy.yaml", *ASKING, "--set", "dpo.launch.timeout_hours=0.8", exit_code=2)
    assert "promotion.require_approval is true, and this run has no Prefect server with a UI" in shown
    assert "tuneline server" in shown
    assert (toys.path / "dvc.lock").read_bytes() == before
    assert not (toys.path / "reports" / "promotion.json").exists()


@pytest.fixture(scope="module")
def prefect(tmp_path_factory):
    """The address of `prefect server start`, and its environment."""
    home = tmp_path_factory.mktemp("prefect")
    with prefect_server(home, home / "server.log") as url:
        yield {"PREFECT_API_URL": f"{url}/api", "PREFECT_HOME": str(home)}


@contextmanager
def client_of(prefect):
    from prefect import get_client
    from prefect.settings import PREFECT_API_URL, temporary_settings

    with temporary_settings({PREFECT_API_URL: prefect["PREFECT_API_URL"]}), get_client(sync_client=True) as client:
        yield client


@contextmanager
def started_run(toys, prefect, *arguments):
    """`tuneline run`, which is ended if it has not ended by itself."""
    command = [sys.executable, "-m", "flows", "run", "toy.yaml", *ASKING, *arguments]
    options = dict(stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    with subprocess.Popen(command, cwd=toys.path, env={**toys.env, **prefect}, **options) as process:
        try:
            yield process
        finally:
            end_tree(process.pid, 5)


def answer(prefect, process, **said):
    """What a person does in the UI: opens the run that waits, fills in its form, and sends it."""
    with client_of(prefect) as client:
        limit = time.monotonic() + 200
        while True:
            assert process.poll() is None, process.stdout.read()
            assert time.monotonic() < limit, "no run waits"
            runs = client.read_flow_runs(flow_run_filter=PAUSED, sort=FlowRunSort.EXPECTED_START_TIME_DESC, limit=20)
            if runs:
                break
            time.sleep(0.5)
        client.resume_flow_run(runs[0].id, run_input=said)


@pytest.mark.slow
@pytest.mark.parametrize("agrees", [True, False])
def test_the_alias_moves_once_a_person_agrees_and_not_before(toys: ToyLine, prefect, agrees):
    with started_run(toys, prefect, "--set", "dpo.launch.timeout_hours=0.8") as process:
        answer(prefect, process, approve=agrees, name="ann", reason="read twenty answers")
        shown, _ = process.communicate(timeout=200)
    assert process.returncode == 0, shown
    champion = Registry(toys.path).champion("toy")
    said = f"{'approved' if agrees else 'not approved'} by ann: read twenty answers"
    assert said in toys.decision["reasons"]
    assert toys.decision["by"] == "ann"
    assert toys.decision["alias_moved"] is agrees
    assert (champion is not None) is agrees
    if agrees:
        (move,) = Registry(toys.path).history("toy")
        assert (move.by, champion.tags["promotion.by"]) == ("ann", "ann")
        assert Registry(toys.path).by_alias("toy", CHAMPION).version == "1"


@pytest.mark.slow
def test_nobody_answers_and_nothing_moves(toys: ToyLine, prefect):
    hours = ("--set", "promotion.approval_timeout_hours=0.001", "--set", "dpo.launch.timeout_hours=0.9")
    with started_run(toys, prefect, *hours) as process:
        shown, _ = process.communicate(timeout=270)
    assert process.returncode == 0, shown
    assert "not approved by nobody: nobody answered within 0.001 h" in toys.decision["reasons"]
    assert Registry(toys.path).champion("toy") is None
