"""A tiny line whose stages are run in this process: the stages' own code, without launcher and driver."""

import logging
import shutil
import sys
from importlib import import_module
from pathlib import Path

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
