"""Two lines: a tiny one whose stages are run in this process, and one of toys in a checkout with DVC and MLflow."""

import json
import logging
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

from stages.loading import load_config, write_params

ROOT = Path(__file__).parents[2]
TINY = ROOT / "tests" / "stages" / "tiny.yaml"


class TinyLine:
    """A folder with what the stages so far have made."""

    def __init__(self, root: Path):
        self.root = root

    def configure(self, *overrides: str) -> None:
        write_params(load_config(TINY, overrides, root=ROOT), self.root / "params.yaml")

    def run(self, stage: str) -> Path:
        """The stage's `main` in a fresh work folder; publishes as the driver does, and returns the work folder."""
        monkeypatch = pytest.MonkeyPatch()
        monkeypatch.chdir(self.root)
        monkeypatch.setattr(sys, "excepthook", sys.excepthook)
        handlers, level = logging.root.handlers[:], logging.root.level
        work = Path(".work") / stage / "manual"
        shutil.rmtree(work, ignore_errors=True)
        try:
            import_module(f"stages.{stage}").main()
            publish(stage, work)
        finally:
            logging.root.handlers[:] = handlers
            logging.root.setLevel(level)
            monkeypatch.undo()
        return self.root / work


def publish(stage: str, work: Path) -> None:
    from stages.run import publish as put

    (work / "final").mkdir(parents=True, exist_ok=True)
    put(stage, work)


@pytest.fixture(scope="session")
def trained_line(tmp_path_factory: pytest.TempPathFactory) -> TinyLine:
    """prepare, sft and reward were run."""
    line = TinyLine(tmp_path_factory.mktemp("line"))
    line.configure()
    for stage in ("prepare", "sft", "reward"):
        line.run(stage)
    return line


@pytest.fixture
def line(trained_line: TinyLine, tmp_path: Path) -> TinyLine:
    shutil.copytree(trained_line.root, tmp_path / "line")
    return TinyLine(tmp_path / "line")


TOY_DVC_YAML = """\
stages:
  prepare:
    cmd: python toy_line.py prepare
    deps: [toy_line.py]
    params: [seed]
    outs: [data/prepared]
    metrics: [reports/prepare/metrics.json: {cache: false}]
  sft:
    cmd: python toy_line.py sft
    deps: [data/prepared, "${files.model}"]
    params: [sft]
    outs: [models/sft]
    metrics: [reports/sft/metrics.json: {cache: false}]
  dpo:
    cmd: python toy_line.py dpo
    deps: [models/sft]
    params: [dpo]
    outs: [models/dpo]
    metrics: [reports/dpo/metrics.json: {cache: false}]
  evaluate:
    cmd: python toy_line.py evaluate
    deps: [models/sft, models/dpo]
    params: [evaluate]
    outs: [reports/evaluate/files]
    metrics: [reports/evaluate/metrics.json: {cache: false}]
"""
TOY_CONFIG = """\
name: toy
model: {name_or_path: nobody/toy}
prepare: {preferences: {path: toy.jsonl}}
sft: {launch: {timeout_hours: 0.4}}
dpo: {launch: {timeout_hours: 0.5}}
promotion: {first: true, num_resamples: 500}
"""


@dataclass
class ToyLine:
    """A checkout in which DVC runs toys and `tuneline` can be called as a user calls it."""

    path: Path
    env: dict[str, str]

    def call(self, *arguments: str, exit_code: int | None = 0, timeout: float = 240) -> str:
        """`tuneline ARGUMENTS`, and what the terminal shows."""
        command = [sys.executable, "-m", "flows", *arguments]
        done = subprocess.run(
            command, cwd=self.path, env=self.env, capture_output=True, text=True, timeout=timeout, check=False
        )
        assert exit_code is None or done.returncode == exit_code, done.stdout + done.stderr
        return done.stdout + done.stderr

    def configure(self, *overrides: str) -> None:
        with pytest.MonkeyPatch.context() as monkeypatch:
            monkeypatch.chdir(self.path)
            write_params(load_config(self.path / "toy.yaml", overrides, root=ROOT), self.path / "params.yaml")

    def repro(self, *overrides: str) -> None:
        """Another config, and `dvc repro` of what it changes."""
        self.configure(*overrides)
        command = [sys.executable, "-m", "dvc", "repro", "-q"]
        subprocess.run(command, cwd=self.path, env=self.env, check=True)

    @property
    def decision(self) -> dict[str, Any]:
        return json.loads((self.path / "reports" / "promotion.json").read_text())


@pytest.fixture(scope="session")
def toy_template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkout in which the toy line was run, and an MLflow file with its tables."""
    path = tmp_path_factory.mktemp("toys") / "checkout"
    path.mkdir()
    shutil.copy(Path(__file__).with_name("toy_line.py"), path)
    (path / "dvc.yaml").write_text(TOY_DVC_YAML)
    (path / "toy.yaml").write_text(TOY_CONFIG)
    (path / "toy.jsonl").touch()
    (path / "requirements.lock").write_text("none==1\n")
    (path / ".gitignore").write_text("/.work\n/.prefect\n/mlflow.db*\n/mlartifacts\n/models\n/reports\n/data\n")
    line = ToyLine(path, _toy_env())
    for command in ("git init -q", f"{sys.executable} -m dvc init -q", "git add -A"):
        subprocess.run(command.split(), cwd=path, env=line.env, check=True)
    identity = ["-c", "user.name=test", "-c", "user.email=test@localhost"]
    subprocess.run(["git", *identity, "commit", "-qm", "Start"], cwd=path, env=line.env, check=True)
    line.repro()
    mlflow = pytest.importorskip("mlflow")
    mlflow.MlflowClient(f"sqlite:///{path / 'mlflow.db'}").search_experiments()
    return path


@pytest.fixture
def toys(toy_template: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ToyLine:
    """A copy of it, as the working folder; MLflow is the file in it."""
    shutil.copytree(toy_template, tmp_path / "checkout", symlinks=True)
    for name in ("MLFLOW_TRACKING_URI", "TUNELINE_PARENT_RUN", "TUNELINE_FLOW_RUN", "PREFECT_API_URL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    monkeypatch.chdir(tmp_path / "checkout")
    return ToyLine(tmp_path / "checkout", _toy_env())


def _toy_env() -> dict[str, str]:
    ours = ("PREFECT_", "MLFLOW_", "TUNELINE_", "DVC_")
    env = {name: value for name, value in os.environ.items() if not name.startswith(ours)}
    paths = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    env |= {"PYTHONPATH": os.pathsep.join(paths), "DVC_NO_ANALYTICS": "1", "OMP_NUM_THREADS": "1"}
    return {**env, "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])}
