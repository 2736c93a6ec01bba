"""MLflow, best effort: a run for each stage's run, fed from its files by the driver, never by the training step.

The files are the truth. MLflow may be missing, down or slow: that costs one warning, and what it has missed is replayed
from the work folder by the next stage that runs, or by `python -m stages.tracking`. Replaying is safe to repeat: MLflow
drops a point with the same name, step, timestamp and value.
"""

from __future__ import annotations

import fcntl
import json
import logging
import os
import sys
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from stages.gates import gate_metrics
from stages.git import git_text
from stages.identity import Identity
from stages.mlflow_store import (
    allowed_name,
    answers,
    connect,
    experiment_id,
    first_call_alone,
    known_run,
    register_by_reference,
)
from stages.schema import PipelineConfig
from stages.storage import read_metrics, write_whole
from stages.uncommitted import UNCOMMITTED, uncommitted

PARENT_RUN, FLOW_RUN = "TUNELINE_PARENT_RUN", "TUNELINE_FLOW_RUN"
CHALLENGER = "challenger"
_POLL_SECONDS = 3.0
_STATE, _RUN_ID = "tracking.json", "mlflow_run_id"
_LARGEST_BATCH = 1000


class StageRun:
    """MLflow's run of one identity of one stage; a run that goes on after a death is the same one."""

    def __init__(self, name: str, config: PipelineConfig, identity: Identity, work: Path):
        self.work = work
        self._state: dict[str, Any] = {
            "stage": name,
            "experiment": config.name,
            "identity": identity.key,
            "inputs": {path: value for path, value in identity.inputs.items() if _is_content(path)},
            "params": identity.params,
            "parent": os.environ.get(PARENT_RUN, ""),
            "flow": os.environ.get(FLOW_RUN, ""),
            "git": git_tags() | self._keep_changes(),
            "outs": {},
            "status": "RUNNING",
        }
        self._run_id, self._num_sent, self._warned = "", 0, False
        self._save()

    @classmethod
    def of_folder(cls, work: Path) -> StageRun:
        """The run that a work folder tells of."""
        run = cls.__new__(cls)
        run.work, run._state = work, json.loads((work / _STATE).read_text())
        run._run_id, run._num_sent, run._warned = "", 0, False
        return run

    def _keep_changes(self) -> dict[str, str]:
        """Keeps what differs from the commit, of all that stages read, in the work folder; a tag that tells of it."""
        changes = uncommitted(Path.cwd())
        (self.work / UNCOMMITTED).write_bytes(changes.patch)
        return {"git.patch": changes.tag}

    @staticmethod
    def is_pending(work: Path) -> bool:
        """Whether a finished run is not in MLflow yet."""
        state = work / _STATE
        return state.is_file() and json.loads(state.read_text())["status"] == "FINISHED"

    @contextmanager
    def live(self) -> Iterator[None]:
        """Within it a thread opens the run and sends what metrics.jsonl gains; nobody waits for it."""
        ended = threading.Event()

        def follow() -> None:
            monitor = None
            while not ended.wait(0.2 if monitor is None and not self._warned else _POLL_SECONDS):
                with _warnings_only(self):
                    if monitor is None:
                        monitor = _system_metrics(self._open())
                    self._send_metrics()
            if monitor is not None:
                monitor.finish()

        thread = threading.Thread(target=follow, name="mlflow", daemon=True)
        thread.start()
        try:
            yield
        finally:
            ended.set()
            thread.join(timeout=30)  # calls have time limits of their own

    def finish(self, outs: Mapping[str, str]) -> None:
        """Record the end of the run: all metrics, the report, and the model by reference to DVC's content."""
        self._state |= {"status": "FINISHED", "outs": dict(outs)}
        self._save()
        with _warnings_only(self):
            self.record()

    def fail(self) -> None:
        self._state["status"] = "FAILED"
        self._save()
        with _warnings_only(self):
            self._send_metrics()
            for metric, value in gate_metrics(self.work).items():
                connect().log_metric(self._open(), allowed_name(metric), value)
            connect().set_terminated(self._open(), "FAILED")

    def record(self) -> None:
        """All that a finished run leaves in MLflow; raises whatever MLflow raises."""
        from mlflow.entities import RunTag

        client, run_id = connect(), self._open()
        self._num_sent = 0  # MLflow may have missed some; it drops those that it has
        self._send_metrics()
        report = self.work / "report"
        client.log_artifacts(run_id, str(report), "report")
        if self._state["git"].get("git.patch") == UNCOMMITTED:
            client.log_artifact(run_id, str(self.work / UNCOMMITTED))
        self._send_final_metrics(report / "metrics.json")
        outs = self._state["outs"]
        client.log_batch(run_id, tags=[RunTag(f"dvc.{path}", content) for path, content in outs.items()])
        model = f"models/{self._state['stage']}"
        if model in outs:
            self._register(run_id, model, outs[model])
        client.set_terminated(run_id)
        self._state["status"] = "TRACKED"
        self._save()

    def _open(self) -> str:
        """The run's id; on the first call the run is made, or the one that was cut off is taken up."""
        if self._run_id:
            return self._run_id
        from mlflow.entities import RunTag

        client, file, state = connect(), self.work / _RUN_ID, self._state
        tags = {f"tuneline.{name}": state[name] for name in ("stage", "identity")} | state["git"]
        tags |= {"prefect.flow_run": state["flow"]} if state["flow"] else {}
        tags |= {"mlflow.parentRunId": state["parent"]} if state["parent"] else {}
        run = known_run(client, file.read_text()) if file.is_file() else None
        if run is None:
            with first_call_alone():
                experiment = experiment_id(client, state["experiment"])
            run = client.create_run(experiment, run_name=state["stage"], tags=tags)
            write_whole(file, run.info.run_id)
        else:
            client.update_run(run.info.run_id, status="RUNNING")
            client.log_batch(run.info.run_id, tags=[RunTag(name, value) for name, value in tags.items()])
        if not run.data.params:
            self._describe(run.info.run_id)
        self._run_id = run.info.run_id
        return self._run_id

    def _describe(self, run_id: str) -> None:
        """Settings as parameters, what was read as data sets with DVC's hashes as digests."""
        from mlflow.data.code_dataset_source import CodeDatasetSource
        from mlflow.data.meta_dataset import MetaDataset
        from mlflow.entities import DatasetInput, InputTag, Param

        params = [Param(name, str(value)) for name, value in flatten(self._state["params"])]
        for start in range(0, len(params), 100):
            connect().log_batch(run_id, params=params[start : start + 100])
        inputs = []
        for path, content in self._state["inputs"].items():
            data = MetaDataset(CodeDatasetSource({"dvc.path": path}), name=path, digest=content[:36])
            inputs.append(DatasetInput(data._to_mlflow_entity(), [InputTag("mlflow.data.context", "input")]))
        connect().log_inputs(run_id, datasets=inputs)

    def _send_metrics(self) -> None:
        """The lines of metrics.jsonl that were not sent before; those that a resume repeats are dropped by MLflow."""
        from mlflow.entities import Metric

        lines = read_metrics(self.work / "metrics.jsonl")
        new = lines[self._num_sent :] if self._num_sent <= len(lines) else lines
        metrics = [
            Metric(allowed_name(name), value, line["timestamp"], line["step"])
            for line in new
            for name, value in line["metrics"].items()
        ]
        run_id = self._open() if metrics else ""
        for start in range(0, len(metrics), _LARGEST_BATCH):
            connect().log_batch(run_id, metrics=metrics[start : start + _LARGEST_BATCH])
        self._num_sent = len(lines)

    def _send_final_metrics(self, file: Path) -> None:
        """What metrics.json says beyond the curves."""
        from mlflow.entities import Metric

        if not file.is_file():
            return
        lines = read_metrics(self.work / "metrics.jsonl")
        known = {name for line in lines for name in line["metrics"]}
        moment, step = int(file.stat().st_mtime * 1000), lines[-1]["step"] if lines else 0
        values = {name: value for name, value in json.loads(file.read_text()).items() if name not in known}
        metrics = [Metric(allowed_name(name), value, moment, step) for name, value in values.items()]
        for start in range(0, len(metrics), _LARGEST_BATCH):
            connect().log_batch(self._open(), metrics=metrics[start : start + _LARGEST_BATCH])

    def _register(self, run_id: str, path: str, content: str) -> None:
        """A version of the model NAME-STAGE that points at DVC's content; the same bytes stay the same version."""
        client, state = connect(), self._state
        model, place = f"{state['experiment']}-{state['stage']}", {"dvc.path": path, "dvc.md5": content}
        tags = {**place, **state["git"], "tuneline.identity": state["identity"]}
        version = register_by_reference(client, model, client.get_run(run_id).info.experiment_id, run_id, tags)
        client.set_registered_model_alias(model, CHALLENGER, version)
        client.set_tag(run_id, "tuneline.model_version", f"{model}/{version}")

    def _save(self) -> None:
        write_whole(self.work / _STATE, json.dumps(self._state, indent=1))


def replay_pending(root: Path, besides: Path | None = None) -> int:
    """Give MLflow what it has missed while it was down; the number of runs that it got."""
    pending = [path.parent for path in root.glob(f"*/*/{_STATE}") if path.parent != besides]
    pending = [work for work in pending if StageRun.is_pending(work)]
    num_replayed = 0
    if pending:
        with (root / "replay.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            for work in filter(StageRun.is_pending, pending):
                run = StageRun.of_folder(work)
                with _warnings_only(run):
                    run.record()
                if not run._warned:
                    num_replayed += 1
                elif not answers():
                    break
    return num_replayed


def flatten(settings: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Every setting by its dotted name."""
    for name, value in settings.items():
        if isinstance(value, Mapping) and value:
            yield from flatten(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


@contextmanager
def _warnings_only(run: StageRun) -> Iterator[None]:
    """Nothing that goes wrong with MLflow reaches the stage; the first time it is told."""
    try:
        yield
    except Exception as error:  # a tracking server may fail in any way
        if not run._warned:
            reason = (str(error).splitlines() or [""])[0][:200]
            print(f"MLflow: {type(error).__name__}: {reason}; the stage runs on, and MLflow gets it later", flush=True)
        run._warned = True


def _system_metrics(run_id: str) -> Any:
    """A thread that samples processors, memory, disks, network and GPUs."""
    from mlflow.system_metrics.system_metrics_monitor import SystemMetricsMonitor

    logging.getLogger("mlflow.system_metrics").setLevel(logging.ERROR)
    monitor = SystemMetricsMonitor(run_id, sampling_interval=5, resume_logging=True)
    monitor.start()
    return monitor


def git_tags() -> dict[str, str]:
    commit = git_text(Path.cwd(), "rev-parse", "HEAD")
    if commit is None:
        return {}
    return {"git.commit": commit, "git.dirty": str(bool(git_text(Path.cwd(), "status", "--porcelain"))).lower()}


def _is_content(path: str) -> bool:
    """Whether a dependency is data or a model, not code."""
    return not path.endswith(".py") and not path.endswith("requirements.lock")


if __name__ == "__main__":
    print(f"{replay_pending(Path('.work'))} runs replayed")
    sys.exit(0)
