"""The run of the whole line in MLflow: parent of the stages' runs, with the resolved config and the report.

MLflow may be missing or down: then the line runs the same, says so once, and has no run there.
"""

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

from stages.mlflow_store import allowed_name, connect, experiment_id, first_call_alone
from stages.tracking import flatten, git_tags
from stages.yaml_files import load_yaml
from tasks.display import display
from tasks.summary import RunSummary
from tuneline.logging import get_logger

logger = get_logger(__name__)

_LARGEST_BATCH = 1000
_MOST_PARAMS = 100

VARIANT_RUN = "TUNELINE_VARIANT_RUN"
"""The run that a sweep has made for its variant, instead of one that the line makes for itself."""

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
            from mlflow.entities import Param, RunTag

            client = connect()
            with first_call_alone():
                experiment = experiment_id(client, str(self._settings["name"]))
            tags = {"tuneline.kind": "pipeline", "prefect.flow_run": flow_run, **git_tags()}
            run_id = os.environ.get(VARIANT_RUN, "")
            if run_id:
                client.update_run(run_id, status="RUNNING")
                client.log_batch(run_id, tags=[RunTag(name, value) for name, value in tags.items()])
            else:
                run_id = str(client.create_run(experiment, run_name=title, tags=tags).info.run_id)
            params = [Param(name, str(value)) for name, value in flatten(self._settings)]
            for start in range(0, len(params), _MOST_PARAMS):
                client.log_batch(run_id, params=params[start : start + _MOST_PARAMS])
            return run_id

        self.id = best_effort(make, "")

    def discard(self) -> None:
        """Takes the run back: DVC had all that seemed to be missing. A sweep's variant keeps its run."""
        if self.id and VARIANT_RUN not in os.environ:
            best_effort(lambda: connect().delete_run(self.id), None)
        self.id = ""

    def close(self, run: RunSummary, report: Path | None) -> None:
        """Records how the stages went, what they made, and the report."""
        if self.id:
            best_effort(lambda: self._record(run, report), None)

    def _record(self, run: RunSummary, report: Path | None) -> None:
        from mlflow.entities import Metric, RunTag

        client = connect()
        tags: dict[str, str] = {f"stage.{stage.name}": stage.shown_state for stage in run.stages}
        tags |= dict(self._lineage(client))
        client.log_batch(self.id, tags=[RunTag(name, value) for name, value in tags.items()])
        values = {f"{stage.name}/seconds": stage.seconds for stage in run.stages}
        values |= {f"{stage.name}/{name}": value for stage in run.stages for name, value in stage.metrics.items()}
        moment = int(run.finished.timestamp() * 1000)
        metrics = [Metric(allowed_name(name), value, moment, 0) for name, value in values.items()]
        for start in range(0, len(metrics), _LARGEST_BATCH):
            client.log_batch(self.id, metrics=metrics[start : start + _LARGEST_BATCH])
        if report is not None:
            client.log_artifact(self.id, str(report))
        finished = all(stage.state in ("ran", "cached") for stage in run.stages)
        client.set_terminated(self.id, "KILLED" if run.stopped else "FINISHED" if finished else "FAILED")

    def _lineage(self, client: Any) -> Iterator[tuple[str, str]]:
        """Tags that lead to the stages' runs, to what DVC has of each model, and to its registered version."""
        experiment = client.get_run(self.id).info.experiment_id
        for child in client.search_runs([experiment], f"tags.`mlflow.parentRunId` = '{self.id}'"):
            yield f"stage.{child.info.run_name}.run_id", child.info.run_id
        for stage, content in _model_contents(self._root):
            yield f"stage.{stage}.dvc.md5", content
            model = f"{self._settings['name']}-{stage}"
            for version in client.search_model_versions(f"name = '{model}' and tags.`dvc.md5` = '{content}'"):
                yield f"stage.{stage}.model_version", f"{version.name}/{version.version}"


def tracking_uri(root: Path) -> str:
    """The user's server, or a SQLite file in the checkout."""
    return os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{root / 'mlflow.db'}"


def _model_contents(root: Path) -> Iterator[tuple[str, str]]:
    """Stage and DVC's hash of the model that it made."""
    lock = root / "dvc.lock"
    stages = load_yaml(lock.read_text())["stages"] if lock.is_file() else {}
    for name, stage in stages.items():
        for out in stage.get("outs", []):
            if out["path"] == f"models/{name}":
                yield name, out["md5"]


def best_effort(call: Callable[[], Value], otherwise: Value) -> Value:
    """What the call returns; where MLflow fails in any way, that is said, and `otherwise` is returned."""
    try:
        return call()
    except Exception as error:  # a tracking server may fail in any way
        logger.debug("MLflow failed", exc_info=True)
        reason = (str(error).splitlines() or [""])[0][:200]
        display.say(f"MLflow: {type(error).__name__}: {reason}; the line runs on without it.", "yellow")
        return otherwise
