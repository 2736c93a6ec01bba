"""The toy line of tests/flows, and a shorter one whose metrics follow from its settings."""

import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.flows.checkouts import CONFIG, DVC_YAML, STAGE_YAML, Checkout, environment

INPUTS = {"sft": "data/prepared", "dpo": "data/prepared, models/sft"}


class Line(Checkout):
    """A checkout in which commands may take minutes: a sweep on a machine that others use."""

    def call(self, *arguments: str, exit_code: int = 0) -> str:
        process = self.start(*arguments)
        shown, _ = process.communicate(timeout=900)
        assert process.returncode == exit_code, shown
        return shown


@pytest.fixture
def line(prefect_home: Path, tmp_path: Path) -> Iterator[Checkout]:
    """A checkout with prepare, sft and dpo in which nothing has run; what runs is told in line.log beside it."""
    path = tmp_path / "line"
    path.mkdir()
    shutil.copy(Path(__file__).parent / "sweep_stage.py", path)
    text = DVC_YAML + "".join(STAGE_YAML.replace("NAME", name).replace("INPUTS", i) for name, i in INPUTS.items())
    (path / "dvc.yaml").write_text(text.replace("toy_stage", "sweep_stage").replace(": {cache: false}", ""))
    (path / "toy.yaml").write_text(CONFIG)
    (path / "toy.jsonl").touch()
    (path / ".gitignore").write_text("/.work\n/.prefect\n/mlflow.db*\n/mlruns\n/data\n/models\n/reports\n")
    made = Line(path, {**environment(path, prefect_home), "SWEEP_LOG": str(tmp_path / "line.log"), "COLUMNS": "160"})
    identity = ["-c", "user.name=test", "-c", "user.email=test@localhost"]
    commands = [["git", "init", "-q"], [sys.executable, "-m", "dvc", "init", "-q"], ["git", "add", "-A"]]
    for command in [*commands, ["git", *identity, "commit", "-qm", "Start"]]:
        subprocess.run(command, cwd=path, env=made.env, check=True)
    yield made
    for process in made.processes():
        process.kill()
