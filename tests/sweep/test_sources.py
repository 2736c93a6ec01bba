"""Runs to compare are found in the workspace, in git and in MLflow, and grouped by what was set differently."""

import subprocess

import mlflow
import pytest
from mlflow.entities import Metric, Param

from tasks.sweep_sources import _plain, read_runs
from tuneline.errors import TunelineError

pytestmark = pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::DeprecationWarning")


def test_runs_of_several_kinds_are_told_apart_by_their_settings(checkout, monkeypatch):
    identity = ["-c", "user.name=test", "-c", "user.email=test@localhost"]
    for command in (["add", "-A"], ["commit", "-qm", "A run"]):
        subprocess.run(["git", *identity, *command], cwd=checkout.path, env=checkout.env, check=True)
    monkeypatch.chdir(checkout.path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    store = f"sqlite:///{checkout.path / 'mlflow.db'}"
    client = mlflow.MlflowClient(store)
    run_id = client.create_run(client.create_experiment("toy")).info.run_id
    client.log_batch(run_id, params=[Param("seed", "18")], metrics=[Metric("dpo/loss", 0.25, 0, 0)])
    first, second, third = read_runs(checkout.path, ["workspace", "HEAD", run_id])
    assert first.metrics["dpo/loss"] == second.metrics["dpo/loss"] == 0.5
    assert first.seeds == {"seed": "17"}
    assert second.seeds == {"seed": "17", "repetition": "2"}
    assert third.seeds == {"seed": "18"}
    assert third.metrics == {"dpo/loss": 0.25}
    with pytest.raises(TunelineError, match="no-such is no experiment"):
        read_runs(checkout.path, ["workspace", "no-such"])
    with pytest.raises(TunelineError, match="MLflow has no run"):
        read_runs(checkout.path, ["0" * 32])


def test_one_number_is_one_setting_however_it_is_written():
    assert _plain("2.0") == _plain("2") == "2"
    assert _plain("1e-05") == _plain("0.00001")
    assert _plain("[sigmoid, sft]") == "[sigmoid, sft]"
