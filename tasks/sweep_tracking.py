"""A sweep in MLflow: a run for the sweep, below it one for each variant, below those the runs of stages."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from stages.mlflow_store import connect, experiment_id, first_call_alone
from stages.tracking import git_tags
from tasks.sweep_record import SweepRecord
from tasks.tracking import best_effort


def open_runs(record: SweepRecord, experiment: str, names: Sequence[str]) -> None:
    """Makes the sweep's run and those of variants that have none yet; without MLflow they stay empty."""

    def make() -> None:
        from mlflow.entities import Param

        client = connect()
        with first_call_alone():
            place = experiment_id(client, experiment)
        if not record.mlflow_run:
            tags = {"tuneline.kind": "sweep", "tuneline.command": record.command, **git_tags()}
            record.mlflow_run = str(client.create_run(place, run_name=record.name, tags=tags).info.run_id)
            values: dict[str, list[str]] = {name: [] for variant in record.variants.values() for name in variant.chosen}
            for variant in record.variants.values():
                for name, value in variant.chosen.items():
                    values[name] = [*values[name], *[value] * (value not in values[name])]
            params = [Param(name, ", ".join(known)) for name, known in values.items()]
            client.log_batch(record.mlflow_run, params=params)
        client.update_run(record.mlflow_run, status="RUNNING")
        for name in names:
            variant = record.variants[name]
            if not variant.mlflow_run:
                tags = {"mlflow.parentRunId": record.mlflow_run, "tuneline.kind": "pipeline", "tuneline.variant": name}
                variant.mlflow_run = str(client.create_run(place, run_name=name, tags=tags).info.run_id)

    best_effort(make, None)
    record.save()


def end_variant(run_id: str) -> None:
    """A variant that ended without recording it itself."""
    if run_id:
        best_effort(lambda: connect().set_terminated(run_id, "FAILED"), None)


def close_run(record: SweepRecord, values: Mapping[str, float], files: Sequence[Path]) -> None:
    """Records the comparison, and ends the sweep's run."""
    if not record.mlflow_run:
        return

    def close() -> None:
        client = connect()
        for name, value in values.items():
            client.log_metric(record.mlflow_run, name, value)
        for file in files:
            client.log_artifact(record.mlflow_run, str(file))
        failed = any(variant.state != "done" for variant in record.variants.values())
        client.set_terminated(record.mlflow_run, "FAILED" if failed else "FINISHED")

    best_effort(close, None)
