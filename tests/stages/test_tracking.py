"""MLflow is fed from files; it may be down, and gets what it has missed later, each point once."""

import json
import shutil

import pytest

from stages.identity import Identity
from stages.schema import PipelineConfig
from stages.tracking import CHALLENGER, StageRun, replay_pending

mlflow = pytest.importorskip("mlflow")

CONFIG = PipelineConfig.model_validate(
    {"name": "line", "model": {"name_or_path": "org/model"}, "prepare": {"preferences": {"path": "org/data"}}}
)
IDENTITY = Identity(
    key="0" * 32,
    inputs={"data/prepared/preference": "a" * 32 + ".dir", "stages/dpo.py": "b" * 32, "requirements.lock": "c" * 32},
    params={"seed": 1, "dpo.training": {"beta": 0.1, "max_steps": 3}},
    is_forced=False,
)
OUTS = {"models/dpo": "d" * 32 + ".dir"}
NOWHERE = "http://127.0.0.1:9"  # the discard port: nothing listens


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    """An MLflow file with its tables, which take seconds to make."""
    path = tmp_path_factory.mktemp("store") / "mlflow.db"
    mlflow.MlflowClient(f"sqlite:///{path}").search_experiments()
    return path


@pytest.fixture
def work(store, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shutil.copy(store, tmp_path / "mlflow.db")
    for name in ("MLFLOW_TRACKING_URI", "TUNELINE_PARENT_RUN", "TUNELINE_FLOW_RUN"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    work = tmp_path / ".work" / "dpo" / IDENTITY.key
    (work / "report").mkdir(parents=True)
    (work / "report" / "metrics.json").write_text(json.dumps({"train/loss": 0.5, "eval/accuracy": 0.9}))
    (work / "report" / "curve.csv").write_text("step,train/loss\n1,0.7\n")
    write_steps(work, range(1, 4))
    return work


def write_steps(work, steps, timestamp=1000):
    with (work / "metrics.jsonl").open("a") as file:
        for step in steps:
            line = {"step": step, "max_steps": 3, "timestamp": timestamp + step, "metrics": {"train/loss": 1 / step}}
            file.write(json.dumps(line) + "\n")


def runs(client):
    return client.search_runs([client.get_experiment_by_name("line").experiment_id])


def client_of(tmp_path):
    return mlflow.MlflowClient(f"sqlite:///{tmp_path}/mlflow.db")


def test_a_finished_run_is_in_mlflow_with_settings_inputs_curves_report_and_model(work, tmp_path, monkeypatch):
    monkeypatch.setenv("TUNELINE_PARENT_RUN", "parent")
    StageRun("dpo", CONFIG, IDENTITY, work).finish(OUTS)
    client = client_of(tmp_path)
    (run,) = runs(client)
    assert run.info.run_name == "dpo"
    assert run.info.status == "FINISHED"
    assert run.data.params == {"seed": "1", "dpo.training.beta": "0.1", "dpo.training.max_steps": "3"}
    assert run.data.tags["mlflow.parentRunId"] == "parent"
    assert run.data.tags["dvc.models/dpo"] == OUTS["models/dpo"]
    assert run.data.metrics["eval/accuracy"] == 0.9
    assert [(i.dataset.name, i.dataset.digest) for i in run.inputs.dataset_inputs] == [
        ("data/prepared/preference", "a" * 32 + ".dir")
    ]
    assert [point.step for point in client.get_metric_history(run.info.run_id, "train/loss")] == [1, 2, 3]
    assert {file.path for file in client.list_artifacts(run.info.run_id, "report")} == {
        "report/curve.csv",
        "report/metrics.json",
    }
    version = client.get_model_version_by_alias("line-dpo", CHALLENGER)
    assert version.tags["dvc.md5"] == OUTS["models/dpo"]
    assert version.run_id == run.info.run_id


def test_replaying_adds_nothing(work, tmp_path):
    run = StageRun("dpo", CONFIG, IDENTITY, work)
    run.finish(OUTS)
    StageRun.of_folder(work).record()
    client = client_of(tmp_path)
    (found,) = runs(client)
    assert len(client.get_metric_history(found.info.run_id, "train/loss")) == 3
    assert len(client.search_model_versions("name = 'line-dpo'")) == 1


def test_what_mlflow_missed_while_it_was_down_is_replayed(work, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", NOWHERE)
    run = StageRun("dpo", CONFIG, IDENTITY, work)
    with run.live():
        pass
    run.finish(OUTS)
    assert capsys.readouterr().out.count("MLflow:") == 1  # one warning
    assert StageRun.is_pending(work)
    assert replay_pending(tmp_path / ".work") == 0

    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    assert replay_pending(tmp_path / ".work") == 1
    assert not StageRun.is_pending(work)
    assert replay_pending(tmp_path / ".work") == 0
    client = client_of(tmp_path)
    (found,) = runs(client)
    assert found.info.status == "FINISHED"
    assert len(client.get_metric_history(found.info.run_id, "train/loss")) == 3


def test_a_run_that_was_cut_off_goes_on_in_the_same_run(work, tmp_path):
    first = StageRun("dpo", CONFIG, IDENTITY, work)
    first.fail()
    client = client_of(tmp_path)
    (run,) = runs(client)
    assert run.info.status == "FAILED"
    write_steps(work, [3, 4])  # step 3 again, as after a resume: with the timestamp that it had
    StageRun("dpo", CONFIG, IDENTITY, work).finish(OUTS)
    (run,) = runs(client)
    assert run.info.status == "FINISHED"
    assert [point.step for point in client.get_metric_history(run.info.run_id, "train/loss")] == [1, 2, 3, 4]


def test_a_run_that_this_store_has_not_is_made_anew_in_it(work, tmp_path, monkeypatch, store):
    StageRun("dpo", CONFIG, IDENTITY, work).fail()
    shutil.copy(store, tmp_path / "other.db")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/other.db")
    StageRun("dpo", CONFIG, IDENTITY, work).finish(OUTS)
    (run,) = runs(mlflow.MlflowClient(f"sqlite:///{tmp_path}/other.db"))
    assert run.info.status == "FINISHED"
    assert run.data.params["dpo.training.beta"] == "0.1"


def test_settings_that_could_not_be_told_at_first_are_told_later(work, tmp_path, monkeypatch):
    def refuse(*_):
        raise ConnectionError("no answer")

    first = StageRun("dpo", CONFIG, IDENTITY, work)
    with monkeypatch.context() as down:
        down.setattr(StageRun, "_describe", refuse)
        first.fail()
    StageRun("dpo", CONFIG, IDENTITY, work).finish(OUTS)
    (run,) = runs(client_of(tmp_path))
    assert run.data.params["dpo.training.beta"] == "0.1"


def test_an_experiment_that_somebody_deleted_is_told_with_its_remedy(work, tmp_path, capsys):
    client = client_of(tmp_path)
    number = client.create_experiment("line")
    client.delete_experiment(number)
    StageRun("dpo", CONFIG, IDENTITY, work).finish(OUTS)
    assert f"mlflow experiments restore --experiment-id {number}" in capsys.readouterr().out
    client.restore_experiment(number)
    assert replay_pending(tmp_path / ".work") == 1


def test_a_run_that_mlflow_refuses_keeps_no_other_back(work, tmp_path, monkeypatch):
    client = client_of(tmp_path)
    client.delete_experiment(client.create_experiment("gone"))
    StageRun("dpo", CONFIG.model_copy(update={"name": "gone"}), IDENTITY, work).finish(OUTS)
    other = work.with_name("1" * 32)
    shutil.copytree(work, other)
    state = json.loads((other / "tracking.json").read_text())
    (other / "tracking.json").write_text(json.dumps(state | {"experiment": "line"}))
    assert replay_pending(tmp_path / ".work") == 1
    assert StageRun.is_pending(work)
