"""A scratch checkout whose stages are toys: real DVC, real Prefect, real MLflow, no model."""

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest

from stages.loading import load_config, write_params

ROOT = Path(__file__).parents[2]

DVC_YAML = """\
stages:
  prepare:
    cmd: python toy_stage.py prepare
    deps: [toy_stage.py]
    params: [seed, prepare]
    outs: [data/prepared]
    metrics: [reports/prepare/metrics.json: {cache: false}]
"""
STAGE_YAML = """\
  NAME:
    cmd: python toy_stage.py NAME
    deps: [toy_stage.py, INPUTS]
    params: [NAME]
    outs: [models/NAME]
    metrics: [reports/NAME/metrics.json: {cache: false}]
"""
INPUTS = {
    "sft": "data/prepared",
    "reward": "data/prepared, models/sft",
    "dpo": "data/prepared, models/sft",
    "evaluate": "models/reward, models/dpo",
}
CONFIG = """\
name: toy
model: {name_or_path: nobody/toy}
prepare: {preferences: {path: toy.jsonl}}
sft: {launch: {timeout_hours: 1}}
dpo: {launch: {timeout_hours: 24}}
"""


CHANGE_DPO = ("--set", "dpo.launch.timeout_hours=2")


@dataclass
class Checkout:
    """A folder in which `tuneline` can be called as a user calls it."""

    path: Path
    env: dict[str, str]

    def start(self, *arguments: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, "-m", "flows", *arguments],
            cwd=self.path,
            env=self.env,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def call(self, *arguments: str, exit_code: int = 0) -> str:
        """Runs a command to its end and returns what the terminal shows."""
        process = self.start(*arguments)
        shown, _ = process.communicate(timeout=240)
        assert process.returncode == exit_code, shown
        return shown

    def order(self, stage: str, words: str) -> None:
        """What the stage's tries do, one word each; see toy_stage.py."""
        (self.path / "orders").mkdir(exist_ok=True)
        (self.path / "orders" / stage).write_text(words)

    def tries(self, stage: str) -> int:
        file = self.path / f"{stage}.tries"
        return len(file.read_text().splitlines()) if file.exists() else 0

    def forget_tries(self) -> None:
        for file in self.path.glob("*.tries"):
            file.unlink()

    def processes(self) -> list[psutil.Process]:
        """All that run in this checkout."""
        found = []
        for process in psutil.process_iter():
            try:
                if Path(process.cwd()) == self.path and process.status() != psutil.STATUS_ZOMBIE:
                    found.append(process)
            except psutil.Error:
                continue
        return found


@pytest.fixture(scope="session")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkout in which `dvc repro` has run every stage."""
    path = tmp_path_factory.mktemp("template")
    shutil.copy(Path(__file__).parent / "toy_stage.py", path)
    text = DVC_YAML + "".join(STAGE_YAML.replace("NAME", n).replace("INPUTS", i) for n, i in INPUTS.items())
    (path / "dvc.yaml").write_text(text)
    (path / "toy.yaml").write_text(CONFIG)
    (path / "toy.jsonl").touch()
    (path / ".gitignore").write_text("/.work\n/.prefect\n/mlflow.db*\n/mlartifacts\n*.tries\n")
    env = environment(path, path / ".prefect")
    for command in ("git init -q", "python -m dvc init -q", "git add -A"):
        subprocess.run(command.split(), cwd=path, env=env, check=True)
    identity = ["-c", "user.name=test", "-c", "user.email=test@localhost"]
    subprocess.run(["git", *identity, "commit", "-qm", "Start"], cwd=path, env=env, check=True)
    monkeypatch = pytest.MonkeyPatch()
    monkeypatch.chdir(path)
    write_params(load_config(path / "toy.yaml", root=path), path / "params.yaml")
    monkeypatch.undo()
    subprocess.run([sys.executable, "-m", "dvc", "repro", "-q"], cwd=path, env=env, check=True)
    return path


@pytest.fixture(scope="session")
def prefect_home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One for all tests: making Prefect's tables takes 5 s."""
    return tmp_path_factory.mktemp("prefect")


@pytest.fixture
def checkout(template: Path, prefect_home: Path, tmp_path: Path) -> Iterator[Checkout]:
    """A copy of it, in which everything is up to date."""
    path = tmp_path / "checkout"
    shutil.copytree(template, path, symlinks=True)
    made = Checkout(path, environment(path, prefect_home))
    made.forget_tries()
    yield made
    for process in made.processes():
        process.kill()


def environment(path: Path, prefect_home: Path) -> dict[str, str]:
    ours = ("PREFECT_", "MLFLOW_", "TUNELINE_", "DVC_")
    env = {name: value for name, value in os.environ.items() if not name.startswith(ours)}
    paths = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    programs = str(Path(sys.executable).parent)
    env |= {"PYTHONPATH": os.pathsep.join(paths), "PATH": f"{programs}{os.pathsep}{os.environ['PATH']}"}
    return {**env, "PREFECT_HOME": str(prefect_home), "DVC_NO_ANALYTICS": "1"}
