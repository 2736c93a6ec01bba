"""A checkout of its own for tests that run stages: a copy of this one's code, with the tiny line's settings."""

import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml

from stages.loading import load_config, write_params

ROOT = Path(__file__).parents[2]
TINY = Path(__file__).with_name("tiny.yaml")
PARTS = ("stages", "tuneline", ".dvc/config", ".dvcignore", "dvc.yaml", "requirements.lock", ".gitignore")


@dataclass(frozen=True)
class Checkout:
    root: Path

    def configure(self, *overrides: str) -> None:
        config = load_config(TINY, overrides, root=ROOT)
        write_params(config, self.root / "params.yaml")

    def run(self, *arguments: str, check: bool = True, **env: str) -> subprocess.CompletedProcess:
        """`python -m ARGUMENTS` in the checkout."""
        done = subprocess.run(
            [sys.executable, "-m", *arguments], cwd=self.root, env=environment(**env), capture_output=True, text=True
        )
        assert not check or done.returncode == 0, done.stdout + done.stderr
        return done

    def start(self, *arguments: str, **env: str) -> subprocess.Popen:
        return subprocess.Popen(
            [sys.executable, "-m", *arguments],
            cwd=self.root,
            env=environment(**env),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def repro(self, *stages: str, **kwargs) -> subprocess.CompletedProcess:
        return self.run("dvc", "--wait-for-lock", "repro", *(["-s"] if stages else []), *stages, **kwargs)

    def hash_of(self, out: str) -> str:
        """Content hash of an output in dvc.lock."""
        lock = yaml.safe_load((self.root / "dvc.lock").read_text())
        return next(o["md5"] for stage in lock["stages"].values() for o in stage.get("outs", []) if o["path"] == out)

    def work(self, stage: str) -> Path:
        """The only work folder of a stage."""
        (folder,) = (path for path in (self.root / ".work" / stage).iterdir() if path.is_dir())
        return folder

    def num_launches(self, stage: str) -> int:
        return (self.work(stage) / "log.txt").read_text().count("\n--- ") + 1


def environment(**more: str) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("TUNELINE_", "MLFLOW_"))}
    path = os.pathsep.join([str(Path(sys.executable).parent), kept.get("PATH", "")])
    return {**kept, "PATH": path, "OMP_NUM_THREADS": "1", "DVC_NO_ANALYTICS": "1", "HF_HUB_OFFLINE": "1", **more}


def new_checkout(root: Path) -> Checkout:
    for part in PARTS:
        source, target = ROOT / part, root / part
        target.parent.mkdir(parents=True, exist_ok=True)
        if source.is_dir():
            shutil.copytree(source, target, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy2(source, target)
    commit(root, "init")
    checkout = Checkout(root)
    checkout.configure()
    return checkout


def commit(root: Path, message: str) -> None:
    git = ["git", "-c", "user.email=test@localhost", "-c", "user.name=test"]
    for command in (["init", "-q"], ["add", "-A"], ["commit", "-qm", message]):
        subprocess.run([*git, *command], cwd=root, check=True, capture_output=True)


@pytest.fixture(scope="session")
def checkout_after_prepare(tmp_path_factory) -> Checkout:
    checkout = new_checkout(tmp_path_factory.mktemp("prepared") / "line")
    checkout.repro("prepare")
    return checkout


@pytest.fixture(scope="session")
def checkout_after_sft(checkout_after_prepare, tmp_path_factory) -> Checkout:
    checkout = copy_of(checkout_after_prepare, tmp_path_factory.mktemp("trained") / "line")
    checkout.repro("sft")
    return checkout


@pytest.fixture
def prepared(checkout_after_prepare, tmp_path) -> Checkout:
    """A checkout in which prepare was run."""
    return copy_of(checkout_after_prepare, tmp_path / "line")


@pytest.fixture
def trained(checkout_after_sft, tmp_path) -> Checkout:
    """A checkout in which prepare and sft were run."""
    return copy_of(checkout_after_sft, tmp_path / "line")


def copy_of(checkout: Checkout, root: Path) -> Checkout:
    shutil.copytree(checkout.root, root, symlinks=True)
    return Checkout(root)
