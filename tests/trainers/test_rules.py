"""Rules that every trainer and its options keep."""

import ast
from dataclasses import fields
from pathlib import Path

import pytest
from transformers import Trainer, TrainingArguments

import tuneline
from tuneline.trainers.without_effect import WITHOUT_EFFECT

LIBRARY = Path(tuneline.__file__).parent
TRAINERS = sorted((LIBRARY / "trainers").glob("*.py"))
CONFIGS = [
    name for name in tuneline.__all__ if name.endswith("Config") and hasattr(getattr(tuneline, name), "max_steps")
]
# Taken and explained: rows of trees have no padding; the length of a response is `max_completion_length` inside.
NOT_READ = {"pad_to_multiple_of", "response_length", *WITHOUT_EFFECT}


def test_trainers_override_no_private_method_of_transformers():
    private = {name for name in dir(Trainer) if name.startswith("_") and not name.startswith("__")} | {"train"}
    for path in TRAINERS:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ClassDef):
                overridden = {f.name for f in node.body if isinstance(f, ast.FunctionDef)} & private
                assert not overridden, f"{path.name}: {node.name} overrides {overridden}"


@pytest.fixture(scope="module")
def attributes_read():
    """Names of all attributes that the library reads of anything."""
    nodes = (node for path in LIBRARY.rglob("*.py") for node in ast.walk(ast.parse(path.read_text())))
    return {node.attr for node in nodes if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Load)}


def test_every_trainer_has_a_configuration_that_these_rules_see():
    assert {name.removesuffix("Trainer") for name in tuneline.__all__ if name.endswith("Trainer")} == {
        name.removesuffix("Config") for name in CONFIGS
    }


@pytest.mark.parametrize("name", CONFIGS)
def test_every_option_of_a_configuration_is_explained_and_read(name, attributes_read):
    inherited = {option.name for option in fields(TrainingArguments)}
    own = [option for option in fields(getattr(tuneline, name)) if option.name not in inherited]
    assert own
    for option in own:
        assert option.metadata.get("help"), f"{name}.{option.name} has no help"
        assert option.name in attributes_read | NOT_READ, f"{name}.{option.name} is read nowhere"
