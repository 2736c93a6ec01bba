"""The command line answers at once, says what is wrong, and starts the pipeline's commands in the checkout's root."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.processor_time import processor_time_of_children
from tuneline.cli.environment import describe_environment
from tuneline.cli.main import find_checkout, main
from tuneline.cli.parser import make_parser

ROOT = Path(__file__).parents[2]


def call(*arguments: str, folder: Path = ROOT) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "tuneline.cli.main", *arguments],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])},
        capture_output=True,
        text=True,
        timeout=60,
    )


def test_help_takes_well_under_a_second():
    def seconds() -> float:
        with processor_time_of_children() as taken:
            assert call("--help").returncode == 0
        return taken.seconds

    assert min(seconds() for _ in range(3)) < 0.5


def test_help_imports_no_heavy_library():
    shown = subprocess.run(
        [sys.executable, "-X", "importtime", "-m", "tuneline.cli.main", "--help"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    ).stderr
    imported = {line.rpartition("|")[2].strip().split(".")[0] for line in shown.splitlines()}
    assert "argparse" in imported
    assert not imported & {"torch", "transformers", "prefect", "dvc", "mlflow", "rich", "pydantic", "yaml", "numpy"}


def test_help_lists_every_command():
    shown = call("--help").stdout
    for command in ("run", "plan", "status", "stage", "report", "env"):
        assert f"\n    {command} " in shown


@pytest.mark.parametrize(
    ("arguments", "suggestion"),
    [
        (["runn"], "Did you mean run?"),
        (["staus"], "Did you mean status?"),
        (["run", "x.yaml", "--sett", "a=b"], "Did you mean --set?"),
        (["run", "x.yaml", "--paralel"], "Did you mean --parallel?"),
        (["stage", "rewards"], "Did you mean reward?"),
    ],
)
def test_an_unknown_name_gets_the_nearest_known_one(arguments: list[str], suggestion: str, capsys):
    with pytest.raises(SystemExit) as stopped:
        make_parser().parse_args(arguments)
    assert stopped.value.code == 2
    assert suggestion in capsys.readouterr().err


def test_a_change_without_a_value_is_refused(capsys):
    with pytest.raises(SystemExit):
        make_parser().parse_args(["run", "x.yaml", "--set", "dpo.training.beta"])
    assert "'dpo.training.beta' is not of the form section.name=value" in capsys.readouterr().err


def test_outside_a_checkout_there_is_one_message(tmp_path: Path):
    done = call("status", folder=tmp_path)
    assert done.returncode == 2
    assert done.stderr.startswith(f"tuneline: {tmp_path} is not in a checkout of tuneline")
    assert "Traceback" not in done.stderr


def test_the_checkout_is_found_from_a_folder_in_it(tmp_path: Path):
    (tmp_path / "dvc.yaml").touch()
    (tmp_path / "flows").mkdir()
    (tmp_path / "flows" / "__main__.py").touch()
    inside = tmp_path / "configs" / "mine"
    inside.mkdir(parents=True)
    assert find_checkout(inside) == tmp_path


def test_the_pipeline_runs_in_the_root_and_knows_where_it_was_called_from(tmp_path: Path):
    (tmp_path / "dvc.yaml").touch()
    (tmp_path / "flows").mkdir()
    shown = "import os, sys; print(os.getcwd(), os.environ['TUNELINE_CALLED_FROM'], *sys.argv[1:])"
    (tmp_path / "flows" / "__init__.py").touch()
    (tmp_path / "flows" / "__main__.py").write_text(shown)
    inside = tmp_path / "inside"
    inside.mkdir()
    done = call("plan", "a.yaml", "--set", "a.b=c d", folder=inside)
    assert done.stdout == f"{tmp_path} {inside} plan a.yaml --set a.b=c d\n"


def test_without_a_command_the_help_is_shown(capsys):
    assert main([]) == 0
    assert "tuneline plan configs/quickstart.yaml" in capsys.readouterr().out


def test_the_environment_names_versions_and_hides_passwords(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "https://me:secret@tracking.example/x")
    facts = describe_environment()
    assert facts["torch"][0].isdigit()
    assert facts["MLFLOW_TRACKING_URI"] == "https://tracking.example/x"
    assert "cores usable" in facts["cpu"]
