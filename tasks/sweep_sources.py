"""Finished runs to compare, wherever they are: DVC's experiments, git's revisions, the workspace, MLflow's runs."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

from stages.mlflow_store import connect
from stages.tracking import flatten
from tasks.sweep_record import VariantRecord
from tuneline.errors import TunelineError

WORKSPACE = "workspace"


def read_runs(root: Path, names: Sequence[str]) -> list[VariantRecord]:
    """What was set and measured, one record a name; `chosen` is what is not the same in all of them.

    Args:
        names: experiments, revisions, `workspace`, or ids of MLflow's runs of a line (32 hexadecimal digits).

    Raises:
        TunelineError: nothing has that name, or it has no metrics.
    """
    found = {name: _of_mlflow(name) if re.fullmatch(r"[0-9a-f]{32}", name) else _of_dvc(root, name) for name in names}
    settings = {
        name: {key: v for key, v in one[0].items() if key.split(".")[0] not in ("files", "name")}
        for name, one in found.items()
    }
    settings = {name: {key: _plain(value) for key, value in one.items()} for name, one in settings.items()}
    keys = list(dict.fromkeys(key for one in settings.values() for key in one))
    varied = [key for key in keys if len({one.get(key, "unset") for one in settings.values()}) > 1]
    records = []
    for name, (_, metrics) in found.items():
        chosen = {key: settings[name].get(key, "unset") for key in varied} or {"run": name}
        seeds = {key: value for key, value in chosen.items() if key.rpartition(".")[2] in ("seed", "data_seed")}
        records.append(VariantRecord(name, chosen, seeds, state="done", metrics=metrics))
    return _told_apart(records)


def _plain(value: str) -> str:
    """A number is written one way, whatever wrote it: 2 and 2.0 are the same setting."""
    try:
        return f"{float(value):.12g}"
    except ValueError:
        return value


def _told_apart(records: list[VariantRecord]) -> list[VariantRecord]:
    """Runs with the same settings and the same seeds are repetitions: numbered, so that each counts."""
    counts: dict[str, int] = {}
    for record in records:
        key = str(sorted(record.chosen.items()))
        counts[key] = counts.get(key, 0) + 1
        if counts[key] > 1:
            record.seeds = {**record.seeds, "repetition": str(counts[key])}
    return records


def _of_dvc(root: Path, name: str) -> tuple[dict[str, str], dict[str, float]]:
    from dvc.exceptions import DvcException
    from dvc.repo import Repo
    from dvc.scm import SCMError

    revisions = None if name == WORKSPACE else [name]
    try:
        with Repo(str(root)) as repo:
            metrics = repo.metrics.show(revs=revisions, hide_workspace=False)
            params = repo.params.show(revs=revisions, hide_workspace=False)
    except (DvcException, SCMError) as error:
        raise TunelineError(f"{name} is no experiment, revision or run: {error}; see `dvc exp show`.") from error
    key = "" if name == WORKSPACE else name
    values = {
        f"{PurePosixPath(path).parent.name}/{metric}": float(value)
        for path, content in _files(metrics, key).items()
        for metric, value in content.items()
        if isinstance(value, int | float)
    }
    if not values:
        raise TunelineError(f"{name} has no metrics: nothing was run there, or DVC's cache lost them (`dvc pull`).")
    settings = {key: str(v) for content in _files(params, key).values() for key, v in flatten(content)}
    return settings, values


def _files(shown: Mapping[str, Any], revision: str) -> dict[str, Mapping[str, Any]]:
    """Contents by file of one revision, from what DVC's `show` returns."""
    of_revision = shown.get(revision or WORKSPACE) or shown.get("") or {}
    files = of_revision.get("data", {}) if isinstance(of_revision, Mapping) else {}
    contents = {path: entry.get("data") for path, entry in files.items()}
    return {path: content for path, content in contents.items() if isinstance(content, Mapping)}


def _of_mlflow(run_id: str) -> tuple[dict[str, str], dict[str, float]]:
    from mlflow.exceptions import MlflowException

    try:
        run = connect().get_run(run_id)
    except MlflowException as error:
        raise TunelineError(f"MLflow has no run {run_id}: {error}; its UI shows those that it has.") from error
    metrics = {name: float(value) for name, value in run.data.metrics.items() if not name.startswith("system/")}
    if not metrics:
        raise TunelineError(f"MLflow's run {run_id} has no metrics; give a run of a whole line, not of a sweep.")
    return dict(run.data.params), metrics
