"""`python -m benchmarks.pipeline_fill NUMBER CONFIG`: past runs in the MLflow store and on the Prefect server in use.

Each is what a run of the line leaves: in MLflow a parent with parameters and a child a stage, with metrics, tags and a
version of its model; in Prefect a completed flow run with a task run a stage.
"""

from __future__ import annotations

import hashlib
import sys
import time
from pathlib import Path

from flows.settings import apply_settings

NUM_POINTS = 40
"""Metrics of a stage's run: what a short training logs."""


def fill_mlflow(number: int, experiment: str, stages: list[str]) -> None:
    """Runs in mlflow.db of the working folder, through MLflow's client, in batches."""
    import mlflow
    from mlflow.entities import Metric, Param, RunTag

    from stages.mlflow_store import connect, experiment_id

    client = connect()
    place, now = experiment_id(client, experiment), int(time.time() * 1000)
    params = [Param(f"section.name{index}", str(index)) for index in range(80)]
    models = {known.name for known in client.search_registered_models()}
    for run in range(number):
        tags = {"tuneline.kind": "pipeline", "git.commit": "0" * 40}
        parent = client.create_run(place, run_name=f"past {run}", tags=tags).info.run_id
        results = [Metric(f"{stage}/seconds", float(run), now, 0) for stage in stages]
        client.log_batch(parent, metrics=results, params=params)
        for stage in stages:
            md5 = hashlib.md5(f"{stage} {run}".encode()).hexdigest()
            child = client.create_run(place, run_name=stage, tags={"mlflow.parentRunId": parent}).info.run_id
            points = [Metric(f"train/metric{step % 8}", 0.5, now, step // 8) for step in range(NUM_POINTS)]
            content = [RunTag(f"dvc.models/{stage}", md5), RunTag("tuneline.identity", md5)]
            client.log_batch(child, metrics=points, params=params[:20], tags=content)
            client.set_terminated(child)
            if stage in ("prepare", "evaluate"):
                continue
            model = f"{experiment}-{stage}"
            if model not in models:
                client.create_registered_model(model)
                models.add(model)
            place_of = {"dvc.path": f"models/{stage}", "dvc.md5": md5}
            logged = mlflow.create_external_model(model, child, params=place_of, experiment_id=place)
            client.create_model_version(model, f"models:/{logged.model_id}", child, place_of, model_id=logged.model_id)
        client.set_terminated(parent)


def fill_prefect(number: int, stages: list[str]) -> None:
    """Completed runs of the flow on the server that PREFECT_API_URL names, through Prefect's client."""
    from prefect import get_client
    from prefect.states import Completed

    from flows.align import align
    from tasks.stage import run_stage

    with get_client(sync_client=True) as client:
        for run in range(number):
            made = client.create_flow_run(align, name=f"past {run}", state=Completed())
            for stage in stages:
                client.create_task_run(run_stage, made.id, dynamic_key=stage, name=stage, state=Completed())


def main(arguments: list[str]) -> int:
    apply_settings(Path.cwd())
    from stages.loading import load_config
    from stages.schema import STAGES

    config = load_config(Path(arguments[1]), root=Path.cwd())
    stages = [stage for stage in STAGES if config.why_off(stage) is None]
    fill_mlflow(int(arguments[0]), config.name, stages)
    fill_prefect(int(arguments[0]), stages)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
