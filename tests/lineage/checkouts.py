"""A toy checkout with a source file, a committed dvc.lock, and its models registered as the driver does it."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from stages.identity import output_hashes, stage_identity
from stages.loading import load_params
from stages.tracking import StageRun
from tests.flows.checkouts import Checkout, environment

FLOW_RUN = "11111111-2222-3333-4444-555555555555"
WEIGHTS = b"toy weights"


def git(path: Path, *arguments: str) -> str:
    command = ["git", "-c", "user.name=test", "-c", "user.email=test@localhost", *arguments]
    return subprocess.run(command, cwd=path, check=True, capture_output=True, text=True).stdout.strip()


def repro(checkout: Checkout, *stages: str) -> None:
    command = [sys.executable, "-m", "dvc", "repro", "-q", *(["-s"] if stages else []), *stages]
    subprocess.run(command, cwd=checkout.path, env=checkout.env, check=True, capture_output=True)


def register(checkout: Checkout, stage: str) -> None:
    """What the driver of a stage does once it has run: MLflow's run, and the model's version."""
    before, cwd = dict(os.environ), Path.cwd()
    os.chdir(checkout.path)
    try:
        os.environ["TUNELINE_FLOW_RUN"] = FLOW_RUN
        for name in ("MLFLOW_TRACKING_URI", "TUNELINE_PARENT_RUN"):
            os.environ.pop(name, None)
        identity = stage_identity(stage, checkout.path)
        work = checkout.path / ".work" / stage / identity.key
        (work / "report").mkdir(parents=True, exist_ok=True)
        run = StageRun(stage, load_params(checkout.path / "params.yaml"), identity, work)
        run.finish(output_hashes(stage, checkout.path))
    finally:
        os.chdir(cwd)
        os.environ.clear()
        os.environ.update(before)


@pytest.fixture(scope="session")
def traced_template(template: Path, prefect_home: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("traced") / "line"
    shutil.copytree(template, path, symlinks=True)
    checkout = Checkout(path, environment(path, prefect_home))
    for name in ("dvc.yaml", "toy_stage.py"):
        text = (path / name).read_text()
        text = text.replace(
            "deps: [toy_stage.py]\n    params: [seed", "deps: [toy_stage.py, toy.jsonl]\n    params: [seed"
        )
        text = text.replace("/metrics.json: {cache: false}", "/metrics.json")  # in DVC's cache, as in the line's own
        weights = '    (output / "model.safetensors").write_bytes(b"toy weights")\n    report = Path('
        (path / name).write_text(text.replace("    report = Path(", weights))
    for made in (".dvc/cache", "data", "models", "reports"):
        shutil.rmtree(path / made)
    (path / "dvc.lock").unlink()
    (path / "toy.jsonl").write_text('{"chosen": "yes", "rejected": "no"}\n')
    with (path / ".gitignore").open("a") as ignored:
        ignored.write("/data\n/models\n/reports\n__pycache__\n")
    repro(checkout)
    git(path, "add", "-A")
    git(path, "commit", "-qm", "A run")
    checkout.forget_tries()
    register(checkout, "sft")
    register(checkout, "dpo")
    return path


@pytest.fixture
def traced(traced_template: Path, prefect_home: Path, tmp_path: Path) -> Checkout:
    """A copy of it: all that was run is up to date, committed and registered."""
    path = tmp_path / "line"
    shutil.copytree(traced_template, path, symlinks=True)
    return Checkout(path, environment(path, prefect_home))
