"""The active settings: a config, checked, and written to params.yaml, from where DVC gives each stage its section."""

import os
from pathlib import Path
from typing import Any

import yaml

from tasks.graph import PARAMS_FILE
from tuneline.errors import ConfigError

_HEADER = "# Written by `tuneline run`: the settings of the last run, which dvc.yaml reads section by section.\n"


def resolve_config(path: Path, overrides: list[str]) -> dict[str, Any]:
    """The config as plain values, with all defaults filled in.

    Raises:
        ConfigError: naming all that is wrong with it.
    """
    from stages.loading import load_config

    return load_config(path, overrides).model_dump(mode="json")


def read_params(root: Path) -> dict[str, Any]:
    """What params.yaml holds now.

    Raises:
        ConfigError: it is missing or no YAML.
    """
    path = root / PARAMS_FILE
    try:
        settings = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"{path} cannot be read ({error.strerror}); `tuneline run CONFIG` writes it.") from error
    except yaml.YAMLError as error:
        raise ConfigError(f"{path} is no valid YAML ({error}); `tuneline run CONFIG` writes it anew.") from error
    if not isinstance(settings, dict):
        raise ConfigError(f"{path} holds no settings; `tuneline run CONFIG` writes it anew.")
    return settings


def write_params(root: Path, settings: dict[str, Any]) -> None:
    """Makes `settings` the active ones; a file that says the same already is left alone."""
    path = root / PARAMS_FILE
    if path.is_file() and yaml.safe_load(path.read_text(encoding="utf-8")) == settings:
        return
    aside = path.with_name(f".{PARAMS_FILE}.{os.getpid()}.tmp")
    aside.write_text(_HEADER + yaml.safe_dump(settings, sort_keys=False, allow_unicode=True), encoding="utf-8")
    os.replace(aside, path)
