"""`dvc exp run --set-param`, also in a copy and from the queue, without Prefect: the toy line, and where MLflow is."""

import subprocess
from pathlib import Path

import pytest

from stages.loading import load_config, load_params, write_params
from stages.mlflow_store import checkout_of
from tests.flows.checkouts import Checkout
from tests.sweep.test_sweep import dvc, events, experiments

IDENTITY = ["-c", "user.name=test", "-c", "user.email=test@localhost"]


def test_a_copy_that_dvc_makes_for_an_experiment_has_the_mlflow_store_of_its_checkout(tmp_path):
    assert checkout_of(tmp_path / ".dvc" / "tmp" / "exps" / "standalone" / "tmpabc") == tmp_path
    assert checkout_of(tmp_path) == tmp_path


@pytest.fixture
def ran(line: Checkout, monkeypatch: pytest.MonkeyPatch) -> Checkout:
    """The line after a run, committed with its params.yaml and dvc.lock."""
    monkeypatch.chdir(line.path)
    write_params(load_config("toy.yaml", root=line.path), line.path / "params.yaml")
    dvc(line, "repro", "-q")
    for command in (["add", "params.yaml", "dvc.lock"], [*IDENTITY, "commit", "-qm", "A run"]):
        subprocess.run(["git", *command], cwd=line.path, env=line.env, check=True)
    return line


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("how", ["here", "temp", "queue"])
def test_an_experiment_with_another_setting_runs_what_depends_on_it(ran: Checkout, how: str):
    before = (ran.path / "params.yaml").read_bytes()
    where = {"here": [], "temp": ["--temp"], "queue": ["--queue"]}[how]
    dvc(ran, "exp", "run", "-q", *where, "-n", "hotter", "--set-param", "dpo.launch.timeout_hours=3")
    if how == "queue":
        dvc(ran, "queue", "start")
        subprocess.run(["dvc", "queue", "logs", "-f", "hotter"], cwd=ran.path, env=ran.env, timeout=600, check=False)
        for _ in range(60):
            if "Running" not in dvc(ran, "queue", "status"):
                break
    begun = events(ran, "begins")
    assert begun["prepare 17"] == begun["sft 17"] == 1
    assert begun["dpo 17 3"] == 1
    assert experiments(ran)["hotter"]["dpo/accuracy"].startswith("0.47")
    if how == "here":
        assert load_params(Path(ran.path / "params.yaml")).dpo.launch.timeout_hours == 3
    else:
        assert (ran.path / "params.yaml").read_bytes() == before
        dvc(ran, "exp", "apply", "hotter")
    assert (ran.path / "models/dpo/result").read_text() == "dpo 17 3"
    assert "up to date" in dvc(ran, "status")
