"""From a pipeline's YAML and `a.b=c` overrides to a checked `PipelineConfig`; all that is wrong is reported at once."""

from __future__ import annotations

import contextlib
import difflib
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, get_args

import yaml
from pydantic import BaseModel, ValidationError

from stages.cross_checks import contradictions
from stages.known_fields import remember_valid_fields, unknown_fields
from stages.schema import PipelineConfig
from stages.settings_errors import MISSING, SettingError
from stages.storage import write_whole
from stages.yaml_files import load_yaml
from tuneline.errors import ConfigError

_HEADER = "# The settings of the last run, written by `tuneline run`; dvc.yaml reads them section by section.\n"
_COMPUTED = ("files",)


def load_config(path: Path | str, overrides: Sequence[str] = (), root: Path | None = None) -> PipelineConfig:
    """A pipeline's config, checked against the schema, the trainers' config classes, and itself.

    Args:
        path: the YAML.
        overrides: `a.b=c` each, where c is YAML.
        root: the checkout, for what is remembered in .work; None: the working folder.

    Raises:
        ConfigError: everything that is wrong, each with its path, value, reason and the nearest known name.
    """
    return check_settings(_read(Path(path)), overrides, root, source=str(path))


def load_configs(path: Path | str, many: Sequence[Sequence[str]], root: Path | None = None) -> list[PipelineConfig]:
    """One config with each of several lists of overrides, checked together: in little more than the time of two.

    Raises:
        ConfigError: as of `load_config`, of the first that is wrong.
    """
    first = [load_config(path, overrides, root) for overrides in many[:1]]
    changed = []
    for overrides in many[1:]:
        changed.append(_read(Path(path)))
        for override in overrides:
            _put(changed[-1], *_override(override), override)
    remember_valid_fields(changed, root or Path.cwd())
    return first + [load_config(path, overrides, root) for overrides in many[1:]]


def check_settings(
    settings: dict[str, Any], overrides: Sequence[str] = (), root: Path | None = None, source: str = "settings"
) -> PipelineConfig:
    """What `load_config` does, for settings that are in no file: as sent with a run of a deployment.

    Args:
        settings: by section, as in a pipeline's YAML; changed in place by the overrides.
        source: what messages call them.

    Raises:
        ConfigError: as of `load_config`.
    """
    overridden = {}
    for override in overrides:
        dotted, value = _override(override)
        overridden[dotted] = override
        _put(settings, dotted, value, override)
    return _check(source, settings, overridden, root or Path.cwd())


def load_params(path: Path) -> PipelineConfig:
    """A config that was resolved before, from params.yaml or a stage's work folder.

    Raises:
        ConfigError: it was edited, and is no longer valid.
    """
    settings = json.loads(path.read_text()) if path.suffix == ".json" else _read(path)
    written = settings.pop("files", None)
    try:
        config = PipelineConfig.model_validate(settings)
    except ValidationError as error:
        raise _config_error(str(path), _schema_errors(error), {}) from None
    if written is not None and written != config.files:
        wrong = ", ".join(
            f"files.{name}={config.files[name]}" for name in config.files if written.get(name) != config.files[name]
        )
        raise ConfigError(
            f"{path}: `files` must name what the settings name, or changes in it go unnoticed; set {wrong}."
        )
    return config


def write_params(config: PipelineConfig, path: Path = Path("params.yaml")) -> None:
    """Make a config the active one: written aside and renamed; a file that says the same already is left alone."""
    settings = config.model_dump(mode="json")
    with contextlib.suppress(OSError, ValueError, yaml.YAMLError):  # missing, or damaged: it is written anew
        if load_yaml(path.read_text(encoding="utf-8")) == settings:
            return
    write_whole(path, _HEADER + yaml.safe_dump(settings, sort_keys=False, allow_unicode=True))


def _read(path: Path) -> dict[str, Any]:
    try:
        settings = load_yaml(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror}; give the path of a pipeline's YAML.") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} is no valid YAML: {' '.join(str(error).split())}") from None
    if not isinstance(settings, dict):
        raise ConfigError(f"{path} holds no settings; it needs at least {', '.join(_required(PipelineConfig))}.")
    return _unshared(settings)


def _unshared(value: Any) -> Any:
    """A copy in which an anchor's places are separate, so that an override changes one of them."""
    if isinstance(value, dict):
        return {name: _unshared(below) for name, below in value.items()}
    return [_unshared(below) for below in value] if isinstance(value, list) else value


def _override(text: str) -> tuple[str, Any]:
    dotted, equals, value = text.partition("=")
    if not equals or not all(dotted.split(".")):
        raise ConfigError(f"--set {text}: give it as section.name=value, such as dpo.training.beta=0.2.")
    try:
        return dotted.strip(), load_yaml(value)
    except yaml.YAMLError as error:
        raise ConfigError(f"--set {text}: the value is no valid YAML: {' '.join(str(error).split())}") from None


def _put(settings: dict[str, Any], dotted: str, value: Any, override: str) -> None:
    *sections, name = dotted.split(".")
    for section in sections:
        if settings.get(section) is None:
            settings[section] = {}
        settings = settings[section]
        if not isinstance(settings, dict):
            raise ConfigError(f"--set {override}: `{section}` is a value, not a section.")
    settings[name] = value


def _check(source: str, settings: dict[str, Any], overridden: Mapping[str, str], root: Path) -> PipelineConfig:
    errors: list[SettingError] = []
    config = None
    try:
        config = PipelineConfig.model_validate(settings)
    except ValidationError as error:
        errors = list(_schema_errors(error))
    errors += unknown_fields(settings, [e.path for e in errors], root)
    if config is not None:
        errors += contradictions(config)
    if errors or config is None:
        raise _config_error(source, errors, overridden)
    return config


def _schema_errors(error: ValidationError) -> Iterator[SettingError]:
    for one in error.errors(include_url=False):
        path = ".".join(str(part) for part in one["loc"])
        known = _known_names(one["loc"][:-1])
        match one["type"]:
            case "extra_forbidden":
                yield SettingError(
                    path, one["input"], "no such setting", _nearest(str(one["loc"][-1]), known, one["loc"][:-1])
                )
            case "missing":
                yield SettingError(path, MISSING, "is missing")
            case "value_error":
                yield SettingError(path, MISSING, str(one["ctx"]["error"]))
            case "computed":
                yield SettingError(path, one["input"], "is computed; leave it out")
            case _:
                yield SettingError(path, one["input"], one["msg"][0].lower() + one["msg"][1:])


def _nearest(name: str, known: Sequence[str], where: Sequence[Any]) -> str:
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.6)
    if near:
        return near[0]
    elsewhere = [path for path in _all_names(PipelineConfig) if path.split(".")[-1] == name]
    return min(elsewhere, key=lambda path: sum(part not in where for part in path.split(".")), default="")


def _known_names(path: Sequence[Any]) -> list[str]:
    section: type[BaseModel] | None = PipelineConfig
    for part in path:
        field = section.model_fields.get(str(part)) if section else None
        section = _section_in(field.annotation) if field else None
    return list(section.model_fields) if section else []


def _all_names(section: type[BaseModel], prefix: str = "") -> Iterator[str]:
    for name, field in section.model_fields.items():
        yield f"{prefix}{name}"
        below = _section_in(field.annotation)
        if below is not None:
            yield from _all_names(below, f"{prefix}{name}.")


def _section_in(annotation: Any) -> type[BaseModel] | None:
    """The section that a field holds, also where it may be null."""
    for kind in (annotation, *get_args(annotation)):
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            return kind
    return None


def _required(section: type[BaseModel]) -> list[str]:
    return [name for name, field in section.model_fields.items() if field.is_required()]


def _config_error(
    source: str, errors: Iterator[SettingError] | list[SettingError], overridden: Mapping[str, str]
) -> ConfigError:
    by_path = {
        (error.path, str(error.value)): error for error in errors
    }  # the trainers' classes know more than the schema
    lines = [error.describe(overridden) for error in by_path.values()]
    count = "1 setting is" if len(lines) == 1 else f"{len(lines)} settings are"
    return ConfigError("\n  ".join([f"{source}: {count} wrong", *lines]))
