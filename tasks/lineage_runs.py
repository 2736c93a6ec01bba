"""What MLflow knows of a stage's run: its id, the commit, uncommitted changes, Prefect's run, the model's versions."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from stages.git import git_text
from stages.uncommitted import UNCOMMITTED
from tasks.lineage_records import Content, StageRecord
from tasks.tracking import tracking_uri
from tuneline.errors import TunelineError


@dataclass(frozen=True)
class TrackedRun:
    """MLflow's run of one stage; empty texts for what it does not say."""

    id: str
    commit: str = ""
    dirty: str = ""
    """`true` or `false`: whether the working tree differed from the commit in any file that git tracks or sees."""
    patch: str = ""
    """`none`, the artefact that holds the uncommitted changes of what stages read, or why it was left out."""
    flow_run: str = ""
    parent: str = ""
    status: str = ""
    tags: dict[str, str] = field(default_factory=dict, compare=False)


@dataclass(frozen=True)
class ModelVersion:
    """A registered version, and the content that it points at."""

    name: str
    version: str
    path: str
    md5: str
    run_id: str
    aliases: tuple[str, ...] = ()
    tags: dict[str, str] = field(default_factory=dict, compare=False)

    @property
    def uri(self) -> str:
        return f"models:/{self.name}/{self.version}"


class Tracking:
    """MLflow as lineage asks it. One that is missing or does not answer costs a note, and no result."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.problem = ""
        uri = tracking_uri(root)
        file = uri.removeprefix("sqlite:///")
        self._client: Any = None
        if file != uri and not Path(file).is_file():
            self.problem = f"there is no {file}: MLflow has no run of this checkout"

    def client(self) -> Any:
        """MLflow's client.

        Raises:
            TunelineError: there is no store yet.
        """
        if self.problem:
            raise TunelineError(f"{self.problem}; set MLFLOW_TRACKING_URI, or run the line first.")
        if self._client is None:
            from stages.mlflow_store import connect

            with _variable("MLFLOW_TRACKING_URI", tracking_uri(self.root)):  # wherever this process works
                self._client = connect()
        return self._client

    def run_of(self, record: StageRecord) -> TrackedRun | None:
        """The newest finished run that made these outputs; None when there is none, or MLflow does not answer."""
        if self.problem:
            return None
        try:
            for path, content in sorted(record.outs.items()):
                query = f"tags.`dvc.{path}` = '{content.md5}' and tags.`tuneline.stage` = '{record.stage}'"
                runs = self.client().search_runs(self._experiments(), query, order_by=["attributes.start_time DESC"])
                done = [run for run in runs if run.info.status == "FINISHED"] or list(runs)
                if done:
                    return _tracked(done[0])
        except Exception as error:  # a tracking server may fail in any way
            self.problem = f"MLflow: {type(error).__name__}: {(str(error).splitlines() or [''])[0][:200]}"
        return None

    def versions_of(self, path: str, md5: str) -> list[ModelVersion]:
        """Registered versions that point at this content."""
        if self.problem or not path.startswith("models/"):
            return []
        try:
            found = self.client().search_model_versions(f"tags.`dvc.md5` = '{md5}'")
            return [self._version(one) for one in found if one.tags.get("dvc.path") == path]
        except Exception as error:
            self.problem = f"MLflow: {type(error).__name__}: {(str(error).splitlines() or [''])[0][:200]}"
        return []

    def version(self, name: str, version: str = "", alias: str = "") -> ModelVersion:
        """A registered version by number or alias.

        Raises:
            TunelineError: there is none such, or it does not point at content that DVC has.
        """
        from mlflow.exceptions import MlflowException

        client = self.client()
        try:
            found = client.get_model_version_by_alias(name, alias) if alias else client.get_model_version(name, version)
        except MlflowException as error:
            known = sorted(model.name for model in client.search_registered_models())
            raise TunelineError(
                f"MLflow has no {name}{'@' + alias if alias else '/' + version} ({error.message}); it has "
                f"{', '.join(known) or 'no registered model'}."
            ) from error
        if "dvc.md5" not in found.tags:
            raise TunelineError(
                f"{name}/{found.version} has no tag dvc.md5: it was not registered by the line, so nothing leads from "
                "it to its bytes."
            )
        return self._version(found)

    def all_versions(self) -> list[ModelVersion]:
        """Every registered version that points at DVC's content; raises what MLflow raises."""
        found = self.client().search_model_versions(max_results=10_000)
        return [self._version(one) for one in found if "dvc.md5" in one.tags]

    def record_of(self, version: ModelVersion) -> StageRecord | None:
        """What MLflow alone knows of the run that made a version: inputs and settings, without code."""
        if not version.run_id:
            return None
        run = self.client().get_run(version.run_id)
        inputs = {one.dataset.name: Content(one.dataset.digest) for one in run.inputs.dataset_inputs}
        outs = {
            name.removeprefix("dvc."): Content(value)
            for name, value in run.data.tags.items()
            if name.startswith("dvc.") and "/" in name
        }
        stage = run.data.tags.get("tuneline.stage", run.info.run_name)
        return StageRecord(
            stage, "", inputs, dict(run.data.params), outs or {version.path: Content(version.md5)}, "MLflow"
        )

    def patch_of(self, run: TrackedRun, folder: Path) -> Path | None:
        """The recorded uncommitted changes, fetched to `folder`; None where the run has none."""
        if run.patch != UNCOMMITTED:
            return None
        return Path(self.client().download_artifacts(run.id, UNCOMMITTED, str(folder)))

    def _experiments(self) -> list[str]:
        return [one.experiment_id for one in self.client().search_experiments()]

    def _version(self, found: Any) -> ModelVersion:
        aliases = tuple(self.client().get_model_version(found.name, found.version).aliases)
        path, md5 = found.tags.get("dvc.path", ""), found.tags["dvc.md5"]
        return ModelVersion(found.name, str(found.version), path, md5, found.run_id or "", aliases, dict(found.tags))


@contextmanager
def _variable(name: str, value: str) -> Iterator[None]:
    before = os.environ.get(name)
    os.environ[name] = value
    try:
        yield
    finally:
        if before is None:
            del os.environ[name]
        else:
            os.environ[name] = before


def _tracked(run: Any) -> TrackedRun:
    tags = run.data.tags
    return TrackedRun(
        id=run.info.run_id,
        commit=tags.get("git.commit", ""),
        dirty=tags.get("git.dirty", ""),
        patch=tags.get("git.patch", ""),
        flow_run=tags.get("prefect.flow_run", ""),
        parent=tags.get("mlflow.parentRunId", ""),
        status=run.info.status,
        tags=dict(tags),
    )


def commits_with(root: Path, md5: str) -> list[str]:
    """Commits that brought or took this hash to or from dvc.lock, the newest first."""
    return (git_text(root, "log", "--all", "--format=%H", f"-S{md5}", "--", "dvc.lock") or "").split()
