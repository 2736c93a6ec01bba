"""The MLflow store of a checkout: the user's server, or mlflow.db."""

from __future__ import annotations

import fcntl
import logging
import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tuneline.errors import StageError
from tuneline.logging import get_logger

logger = get_logger(__name__)

_SETTINGS = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "DO_NOT_TRACK": "1",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",  # the default of 7 is minutes
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "10",
    "MLFLOW_ALLOW_PICKLE_DESERIALIZATION": "false",
    "GIT_PYTHON_REFRESH": "quiet",
}


def connect() -> Any:
    """A client of the user's server, or of mlflow.db in the checkout."""
    for name, value in _SETTINGS.items():
        os.environ.setdefault(name, value)
    import mlflow

    for name in ("mlflow", "alembic"):  # the tables of a fresh file are announced one by one
        logging.getLogger(name).setLevel(logging.ERROR)

    mlflow.set_tracking_uri(
        os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{checkout_of(Path.cwd()) / 'mlflow.db'}"
    )
    return mlflow.MlflowClient()


def checkout_of(folder: Path) -> Path:
    """The checkout itself, also for `dvc exp run --temp` and DVC's queue: their copies, below .dvc/tmp, are removed."""
    for parent in folder.parents:
        if parent.parts[-3:] == (".dvc", "tmp", "exps"):
            return parent.parents[2]
    return folder


def known_run(client: Any, run_id: str) -> Any:
    """The run, or None where this store has no such run (another server was in use) or it was deleted."""
    from mlflow.exceptions import MlflowException

    try:
        run = client.get_run(run_id)
    except MlflowException as error:
        if error.error_code == "RESOURCE_DOES_NOT_EXIST":
            return None
        raise
    return run if run.info.lifecycle_stage == "active" else None


def experiment_id(client: Any, name: str) -> str:
    """The experiment of a line, made where there is none.

    Raises:
        StageError: somebody deleted it; MLflow keeps its name taken.
    """
    from mlflow.exceptions import MlflowException

    found = client.get_experiment_by_name(name)
    if found is None:
        try:
            return str(client.create_experiment(name))
        except MlflowException:  # another process was faster
            found = client.get_experiment_by_name(name)
    if found.lifecycle_stage != "active":
        remedy = f"mlflow experiments restore --experiment-id {found.experiment_id}"
        raise StageError(f"the experiment {name!r} is deleted; restore it ({remedy}) or give the line another name.")
    return str(found.experiment_id)


@contextmanager
def first_call_alone() -> Iterator[None]:
    """Several processes that open a fresh SQLite file at once all fail while they make its tables (mlflow#19299)."""
    lock = Path(".work") / "mlflow.lock"
    lock.parent.mkdir(exist_ok=True)
    with lock.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def answers() -> bool:
    """Whether MLflow is there at all, whatever became of one run."""
    try:
        connect().search_experiments(max_results=1)
    except Exception:  # a tracking server may fail in any way
        return False
    return True


def register_by_reference(client: Any, model: str, experiment: str, run_id: str | None, tags: Mapping[str, str]) -> str:
    """The version of a registered model that points at content of DVC's, made where there is none; nothing is copied.

    Args:
        run_id: MLflow's run that made the content; None where none is known.
        tags: of a new version; `dvc.md5` and `dvc.path` among them say what it points at.
    """
    import mlflow
    from mlflow.exceptions import MlflowException

    for known in client.search_model_versions(f"name = '{model}' and tags.`dvc.md5` = '{tags['dvc.md5']}'"):
        return str(known.version)
    place = {name: tags[name] for name in ("dvc.path", "dvc.md5")}
    logged = mlflow.create_external_model(model, run_id, params=place, experiment_id=experiment)
    try:
        client.create_registered_model(model)
    except MlflowException:
        logger.debug("the model %s is registered already", model)
    source = f"models:/{logged.model_id}"
    return str(client.create_model_version(model, source, run_id, dict(tags), model_id=logged.model_id).version)


def allowed_name(name: str) -> str:
    return re.sub(r"[^\w\-. /:]", "_", name)
