"""docs/from-trl.md against the installed TRL: every public name, and the keywords and defaults of what both have."""

import ast
import dataclasses
import inspect
import re
from importlib import import_module
from pathlib import Path
from types import ModuleType

import pytest
import trl

import tuneline
import tuneline.rewards
from tuneline.classic.config import ClassicPPOConfig
from tuneline.classic.dispatch import _CONFIG_NAMES_TODAY
from tuneline.trainers.older_names import ARGUMENTS_TODAY, ONCE_ARGUMENTS, OPTIONS_TODAY

PAGE = (Path(__file__).parents[2] / "docs" / "from-trl.md").read_text()
EXPERIMENTAL = Path(trl.__file__).parent / "experimental"
# Of trl.experimental: packages of what both have.
IN_PACKAGES = {
    "CPO": "cpo",
    "ORPO": "orpo",
    "TPO": "tpo",
    "OnlineDPO": "online_dpo",
    "GKD": "gkd",
    "ServerDistillation": "server_distillation",
}
METHODS = ("SFT", "Reward", "DPO", "KTO", "GRPO", "RLOO", "Distillation", *IN_PACKAGES)


def table(heading):
    """Rows of the first table below a heading, each a list of cells."""
    below = PAGE.split(f"\n{heading}\n", 1)[1]
    lines = re.search(r"(?:^\|.*\n)+", below, flags=re.MULTILINE)[0].splitlines()
    # a bar inside of code stands for itself
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[2:]]


def names_in(cell):
    return re.findall(r"`([^`]+)`", cell)


def listed(heading):
    """Each name of a table's first column, with its row's cell that says where it is here."""
    rows = table(heading)
    where = 2 if heading.endswith("removed") else 1
    return {name: row[where] for row in rows for name in names_in(row[0])}


def public(module):
    return {
        name
        for name in dir(module)
        if not name.startswith("_") and not isinstance(getattr(module, name), ModuleType) and name != "TYPE_CHECKING"
    }


def experimental_names():
    """Read from the sources: importing all of it would need what is not installed."""
    names = set()
    for package in EXPERIMENTAL.glob("*/__init__.py"):
        for node in ast.walk(ast.parse(package.read_text())):
            if isinstance(node, ast.ImportFrom) and node.level:
                names |= {alias.name for alias in node.names}
    callback = ast.parse((EXPERIMENTAL / "merge_model_callback.py").read_text())
    return names | {node.name for node in callback.body if isinstance(node, ast.ClassDef)}


def test_every_public_name_of_trl_is_listed():
    assert public(trl) == set(listed("### `trl`"))


def test_every_reward_of_trl_is_listed():
    rewards = {name for name in public(import_module("trl.rewards")) if "reward" in name or "punishment" in name}
    assert rewards == set(listed("### `trl.rewards`"))


def test_every_experimental_name_of_trl_is_listed():
    stable = set(listed("### `trl`")) - {"BEMACallback"}  # another of the same name
    assert experimental_names() - stable == set(listed("### `trl.experimental`"))


def test_what_was_removed_is_not_in_trl():
    assert not set(listed("### What TRL had and removed")) & (public(trl) | experimental_names())


def is_here(path):
    """Whether a dotted path leads to something."""
    parts = path.split(".")
    for i in range(len(parts), 0, -1):
        try:
            found = import_module(".".join(parts[:i]))
        except ModuleNotFoundError:
            continue
        for name in parts[i:]:
            found = getattr(found, name, None)
        return found is not None
    return False


@pytest.mark.parametrize(
    "heading", ["### `trl`", "### `trl.rewards`", "### `trl.experimental`", "### What TRL had and removed"]
)
def test_what_is_said_to_be_here_is_and_what_is_not_is_not(heading):
    home = tuneline.rewards if heading == "### `trl.rewards`" else tuneline
    for name, where in listed(heading).items():
        if where == "here":
            assert name in home.__all__, f"{name} is not in {home.__name__}"
            getattr(home, name)
        elif where == "not here":
            assert name not in home.__all__, f"{name} is here: say so in docs/from-trl.md"
        else:
            for path in names_in(where):
                assert is_here(path), f"{name}: {path} does not exist"


def peers(method):
    home = trl if method not in IN_PACKAGES else import_module(f"trl.experimental.{IN_PACKAGES[method]}")
    for kind in ("Config", "Trainer"):
        yield f"{method}{kind}", getattr(home, f"{method}{kind}"), getattr(tuneline, f"{method}{kind}")


def defaults_of(kind):
    if dataclasses.is_dataclass(kind):
        made = {f.name: f.default_factory() for f in dataclasses.fields(kind) if callable(f.default_factory)}
        return made | {f.name: f.default for f in dataclasses.fields(kind) if f.name not in made}
    return {name: one.default for name, one in inspect.signature(kind.__init__).parameters.items()}


def shown(value):
    return "required" if value in (inspect.Parameter.empty, dataclasses.MISSING) else f"`{value!r}`"


@pytest.mark.filterwarnings("ignore")  # its experimental packages warn that they are
@pytest.mark.parametrize("method", METHODS)
def test_keywords_and_defaults_are_the_peers_or_listed(method, monkeypatch):
    monkeypatch.setenv("TRL_EXPERIMENTAL_SILENCE", "1")
    for name, theirs, ours in peers(method):
        asked, given = defaults_of(theirs), defaults_of(ours)
        differ = {
            option: (shown(value), shown(given[option]) if option in given else "absent")
            for option, value in asked.items()
            if option not in given or given[option] != value
        }
        said = {
            option: (row[2], row[3])
            for row in table("## Options that differ")
            if name in names_in(row[0])
            for option in names_in(row[1])
        }
        assert differ == said, name
        assert all(row[4] for row in table("## Options that differ"))


def test_the_older_names_are_those_that_are_taken():
    rows = [(set(names_in(row[0])), set(names_in(row[1]))) for row in table("## Older names")]
    older = set().union(*(names for names, _ in rows))
    assert {name.removesuffix("=") for name in older} == {*OPTIONS_TODAY, *ARGUMENTS_TODAY, *ONCE_ARGUMENTS}
    for name, today in OPTIONS_TODAY.items():
        assert any(name in old and today in new for old, new in rows)


def test_the_older_keywords_of_ppo_that_the_page_names_tell_the_generation():
    section = PAGE.split("## PPO: two generations under one name")[1].split("###")[0]
    told = names_in(section.split("alone has:")[1].split("and so on")[0])
    assert len(told) > 5
    own = {one.name for one in dataclasses.fields(ClassicPPOConfig)}
    for name in told:
        assert name in own
        assert name in _CONFIG_NAMES_TODAY
    absent = next(names_in(row[0]) for row in table("### The newer PPO and TRL 1.12") if "exp_name" in row[0])
    assert not set(absent) & {one.name for one in dataclasses.fields(tuneline.PPOConfig)}
