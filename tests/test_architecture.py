"""The guard rails: who may import whom, how long a file may be. Reads sources, runs nothing."""

import ast
from itertools import combinations
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
LAYERS = ("flows", "tasks", "stages", "tuneline")  # each may import those to its right
PACKAGES = (*LAYERS, "benchmarks", "tests")

# Inside the library: what may not be imported from where.
LIBRARY_RULES = {
    "tuneline/losses": ("tuneline",),
    "tuneline/models": ("tuneline.trainers", "tuneline.evaluation", "tuneline.cli"),
    "tuneline/chat_templates": ("tuneline.trainers", "tuneline.evaluation", "tuneline.cli"),
    "tuneline/data": ("tuneline.trainers", "tuneline.evaluation", "tuneline.cli"),
    "tuneline/rewards": ("tuneline.trainers", "tuneline.evaluation", "tuneline.cli"),
    "tuneline/rollout": ("tuneline.trainers", "tuneline.evaluation", "tuneline.cli", "tuneline.rewards"),
    "tuneline/environments": ("tuneline.trainers", "tuneline.evaluation", "tuneline.cli", "tuneline.rewards"),
    "tuneline/trainers": ("tuneline.evaluation", "tuneline.cli"),
    "tuneline/evaluation": ("tuneline.trainers", "tuneline.cli"),
}
ORCHESTRATION = {"prefect", "dvc", "mlflow"}


def sources(*folders):
    return sorted(path for folder in folders for path in (ROOT / folder).rglob("*.py"))


def imports(path):
    """Every module that a file imports, anywhere in it."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            found.add(node.module)
    return found


def starts_with(module, package):
    return module == package or module.startswith(package + ".")


@pytest.mark.parametrize("layer", LAYERS)
def test_layers_import_one_way(layer):
    above = LAYERS[: LAYERS.index(layer)]
    for path in sources(layer):
        wrong = {module for module in imports(path) for name in above if starts_with(module, name)}
        assert not wrong, f"{path.relative_to(ROOT)} imports {wrong}, which lies above {layer}/"


def test_the_library_knows_no_orchestration():
    for path in sources("tuneline"):
        wrong = {module for module in imports(path) if module.split(".")[0] in ORCHESTRATION}
        assert not wrong, f"{path.relative_to(ROOT)} imports {wrong}"


@pytest.mark.parametrize("folder", LIBRARY_RULES)
def test_the_library_imports_one_way(folder):
    for path in sources(folder):
        wrong = {
            module
            for module in imports(path)
            for name in LIBRARY_RULES[folder]
            if starts_with(module, name) and not starts_with(module, folder.replace("/", "."))
        }
        assert not wrong, f"{path.relative_to(ROOT)} imports {wrong}"


def test_losses_import_torch_and_nothing_else():
    allowed = {"torch", "typing", "collections", "math", "__future__", "tuneline"}
    for path in sources("tuneline/losses"):
        assert {module.split(".")[0] for module in imports(path)} <= allowed, path


def test_no_file_is_over_400_lines():
    long = {str(p.relative_to(ROOT)): n for p in sources(*PACKAGES) if (n := len(p.read_text().splitlines())) > 400}
    assert not long


def code_blocks(path, length=6):
    """Runs of `length` lines of code; imports, signatures and bare brackets do not count."""
    lines = []
    for line in path.read_text().splitlines():
        text = line.strip()
        is_declaration = text.endswith((",", "(", "[", "{")) or text.startswith(
            ("import ", "from ", "#", '"""', ")", "]")
        )
        if text and not is_declaration:
            lines.append(text)
    return {tuple(lines[i : i + length]) for i in range(len(lines) - length + 1)}


def test_no_block_of_six_lines_stands_in_two_trainers():
    trainers = [path for path in sources("tuneline/trainers") if not path.name.endswith("_config.py")]
    for one, other in combinations(trainers, 2):
        shared = code_blocks(one) & code_blocks(other)
        assert not shared, f"{one.name} and {other.name} share {shared}"
