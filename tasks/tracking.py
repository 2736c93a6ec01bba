"""The run of the whole line in MLflow: parent of the stages' runs, with the resolved config and the report.

MLflow may be missing or down: then the line runs the same, says so once, and this run is not in MLflow.
"""

import logging
import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import yaml

from tasks.display import display
from tasks.summary import RunSummary
from tuneline.logging import get_logger

logger = get_logger(__name__)

Value = TypeVar("Value")


class ParentRun:
    """MLflow's run of the whole line; made only once it is known that something will run."""

    def __init__(self, root: Path, settings: dict[str, Any]) -> None:
        self.id = ""
        """MLflow's id; empty until it is open, and when MLflow could not be reached."""
        self._root = root
        self._settings = settings

    def open(self, title: str, flow_run: str) -> None:
        """Makes the run, with the config as its parameters."""

        def make() -> str:
            client = _client(self._root)
            experiment = _experiment(client, str(self._settings.get("name", "align")))
            tags = {"tuneline.kind": "pipeline", "prefect.flow_run": flow_run, **_git_tags(self._root)}
            run_id = client.create_run(experiment, run_name=title, tags=tags).info.run_id
            from mlflow.entities import Param

            params = [Param(name, str(value)) for name, value in flatten(self._settings)]
            for start in range(0, len(params), 100):
                client.log_batch(run_id, params=params[start : start + 100])
            return str(run_id)

        self.id = _best_effort(make, "") if not self.id else self.id

    def discard(self) -> None:
        """Takes the run back: DVC had all that seemed to be missing."""
        if self.id:
            _best_effort(lambda: _client(self._root).delete_run(self.id), None)
        self.id = ""

    def close(self, run: RunSummary, report: Path | None) -> None:
        """Records how the stages went, what they made, and the report."""
        if self.id:
            _best_effort(lambda: self._record(run, report), None)

    def _record(self, run: RunSummary, report: Path | None) -> None:
        from mlflow.entities import Metric, RunTag

        client = _client(self._root)
        moment = int(run.finished.timestamp() * 1000)
        tags: dict[str, str] = {f"stage.{stage.name}": stage.state for stage in run.stages}
        for child in client.search_runs(
            [client.get_run(self.id).info.experiment_id], f"tags.mlflow.parentRunId = '{self.id}'"
        ):
            tags[f"stage.{child.info.run_name}.run_id"] = child.info.run_id
        tags |= {f"stage.{name}.md5": md5 for name, md5 in _model_hashes(self._root)}
        tags |= {f"stage.{name}.model_version": version for name, version in self._model_versions(client)}
        metrics = [Metric(f"{stage.name}/seconds", stage.seconds, moment, 0) for stage in run.stages]
        for stage in run.stages:
            metrics += [Metric(f"{stage.name}/{name}", value, moment, 0) for name, value in stage.metrics.items()]
        client.log_batch(self.id, tags=[RunTag(name, value) for name, value in tags.items()])
        for start in range(0, len(metrics), 1000):
            client.log_batch(self.id, metrics=metrics[start : start + 1000])
        if report is not None:
            client.log_artifact(self.id, str(report))
        finished = all(stage.state in ("ran", "cached") for stage in run.stages)
        client.set_terminated(self.id, "FINISHED" if finished else "FAILED")

    def _model_versions(self, client: Any) -> Iterator[tuple[str, str]]:
        """Registered versions with the content that DVC has now."""
        known = dict(_model_hashes(self._root))
        for version in client.search_model_versions():
            for name, md5 in known.items():
                if version.tags.get("dvc.md5") == md5:
                    yield name, f"{version.name}/{version.version}"


def tracking_uri(root: Path) -> str:
    """The user's server, or a SQLite file in the checkout."""
    return os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{root / 'mlflow.db'}"


def flatten(settings: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Every setting with its path, such as ("dpo.training.beta", 0.1)."""
    for name, value in settings.items():
        if isinstance(value, dict) and value:
            yield from flatten(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


def _client(root: Path) -> Any:
    for name in ("mlflow", "alembic"):  # the tables of a fresh file are announced one by one
        logging.getLogger(name).setLevel(logging.WARNING)
    import mlflow

    return mlflow.MlflowClient(tracking_uri(root))


def _experiment(client: Any, name: str) -> str:
    from mlflow.exceptions import MlflowException

    found = client.get_experiment_by_name(name)
    if found is not None:
        return str(found.experiment_id)
    try:
        return str(client.create_experiment(name))
    except MlflowException:  # another process was faster
        return str(client.get_experiment_by_name(name).experiment_id)


def _git_tags(root: Path) -> dict[str, str]:
    def git(*arguments: str) -> str:
        return subprocess.run(["git", "-C", str(root), *arguments], capture_output=True, text=True, check=False).stdout

    commit = git("rev-parse", "HEAD").strip()
    return (
        {"git.commit": commit, "git.dirty": str(bool(git("status", "--porcelain").strip())).lower()} if commit else {}
    )


def _model_hashes(root: Path) -> Iterator[tuple[str, str]]:
    """Stage and DVC's hash of the model that it made."""
    lock = root / "dvc.lock"
    stages = yaml.safe_load(lock.read_text())["stages"] if lock.is_file() else {}
    for name, stage in stages.items():
        for out in stage.get("outs", []):
            if out["path"] == f"models/{name}":
                yield name, out["md5"]


def _best_effort(call: Callable[[], Value], otherwise: Value) -> Value:
    try:
        return call()
    except Exception as error:  # a tracking server may fail in any way
        logger.debug("MLflow failed", exc_info=True)
        display.say(f"MLflow: {type(error).__name__}: {str(error).splitlines()[0][:200]}; the line runs on.", "yellow")
        return otherwise
