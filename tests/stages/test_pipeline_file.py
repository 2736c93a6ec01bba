"""dvc.yaml names what each stage reads: no more, so that a change reaches only what it touches; no less."""

import ast
import re
from pathlib import Path

import pytest
import yaml

from stages.run import OUTS
from stages.schema import STAGES

ROOT = Path(__file__).parents[2]
PIPELINE = yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"]

# What moves files and starts processes, or checks settings and inputs: it cannot change a result.
PLUMBING = {
    "stages/context.py",
    "stages/cross_checks.py",
    "stages/gates.py",
    "stages/gates_models.py",
    "stages/hashes.py",
    "stages/known_fields.py",
    "stages/loading.py",
    "stages/schema.py",
    "stages/schema_base.py",
    "stages/schema_collect.py",
    "stages/schema_gates.py",
    "stages/schema_promotion.py",
    "stages/settings_errors.py",
    "stages/start.py",
    "stages/storage.py",
    "stages/supervise.py",
    "tuneline/__init__.py",
    "tuneline/errors.py",
    "tuneline/logging.py",
}


def code_of(stage):
    """Every file of the project that the stage's module imports, directly or not."""
    found, todo = set(), [ROOT / "stages" / f"{stage}.py"]
    while todo:
        path = todo.pop()
        name = str(path.relative_to(ROOT))
        if name in found or name in PLUMBING:
            continue
        found.add(name)
        todo += imported(path)
    return {name for name in found if not name.endswith("__init__.py") or (ROOT / name).read_text().strip()}


def imported(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            modules = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            modules = [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
            if node.module == "tuneline":
                modules += [lazy_exports()[alias.name] for alias in node.names if alias.name in lazy_exports()]
        elif isinstance(node, ast.Constant) and "\n" not in str(
            node.value
        ):  # what a process of its own is told to import
            modules = re.findall(r"\bfrom (tuneline(?:\.\w+)+) import\b", str(node.value))
        else:
            continue
        for module in modules:
            place = ROOT / module.replace(".", "/")
            for file in (place.with_suffix(".py"), place / "__init__.py"):
                if module.split(".")[0] in ("tuneline", "stages") and file.is_file():
                    yield file


def lazy_exports():
    import tuneline

    return tuneline._HOME_OF


@pytest.mark.parametrize("stage", STAGES)
def test_the_code_that_a_stage_depends_on_is_the_code_that_it_imports(stage):
    listed = {dep for dep in PIPELINE[stage]["deps"] if dep.endswith(".py")}
    assert listed == code_of(stage)


@pytest.mark.parametrize("stage", STAGES)
def test_a_stage_is_run_by_the_driver_and_depends_on_the_lock(stage):
    assert PIPELINE[stage]["cmd"] == f"python -m stages.run {stage}"
    assert "requirements.lock" in PIPELINE[stage]["deps"]


@pytest.mark.parametrize("stage", STAGES)
def test_the_driver_publishes_the_outputs_that_dvc_expects(stage):
    outs = [out for out in PIPELINE[stage].get("outs", []) if not out.startswith("reports/")]
    assert sorted(outs) == sorted(OUTS[stage].values())
