"""Every YAML in configs/ is valid; every setting has a help text and is read somewhere."""

import re
from pathlib import Path

import pytest
from accelerate.commands.config.config_args import load_config_from_file
from pydantic import BaseModel

from stages.loading import load_config, load_params
from stages.schema import PipelineConfig

ROOT = Path(__file__).parents[1]
ROWS = Path(__file__).parent / "stages" / "preferences.jsonl"
OVERRIDES = {
    "hh-harmless": [f"prepare.preferences.path={ROWS}"],
    "gsm8k": [f"prepare.demonstrations.path={ROWS}", f"prepare.test.path={ROWS}"],
}


@pytest.mark.parametrize("path", sorted((ROOT / "configs").glob("*.yaml")), ids=lambda path: path.stem)
def test_every_config_is_valid(path):
    assert load_config(path, OVERRIDES.get(path.stem, []), root=ROOT).name == path.stem


@pytest.mark.parametrize("path", sorted((ROOT / "configs" / "accelerate").glob("*.yaml")), ids=lambda path: path.stem)
def test_accelerate_reads_every_launch_file(path):
    assert load_config_from_file(str(path)).num_processes > 1


def test_a_fresh_checkout_holds_the_quickstart():
    assert load_params(ROOT / "params.yaml") == load_config(ROOT / "configs" / "quickstart.yaml", root=ROOT)


def sections(section=PipelineConfig, seen=()):
    yield section
    for field in section.model_fields.values():
        for kind in (field.annotation, *getattr(field.annotation, "__args__", ())):
            if isinstance(kind, type) and issubclass(kind, BaseModel):
                yield from sections(kind)


SETTINGS = sorted({(section.__name__, name) for section in sections() for name in section.model_fields})


@pytest.mark.parametrize(("section", "name"), SETTINGS)
def test_every_setting_has_a_help_text_and_is_read(section, name):
    field = next(s for s in sections() if s.__name__ == section).model_fields[name]
    assert field.description
    declared = re.compile(r"schema\w*\.py|cross_checks\.py")
    folders = ("stages", "tasks", "flows")
    code = [path for folder in folders for path in (ROOT / folder).glob("*.py") if not declared.fullmatch(path.name)]
    code += [path for folder in ("models", "data") for path in (ROOT / "tuneline" / folder).glob("*.py")]
    text = "\n".join(path.read_text() for path in code)
    assert re.search(rf"\b{name}\b", text), f"nothing reads {section}.{name}"
