"""Dataclasses from a YAML file and the command line, as TRL's scripts read their options."""

from __future__ import annotations

import argparse
import difflib
import os
import sys
from collections.abc import Iterable, Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any, NoReturn

import yaml
from transformers import HfArgumentParser

from tuneline.errors import ConfigError


class TrlParser(HfArgumentParser):
    """A flag goes before the file that `--config` names, and the file before a default. Name and methods are TRL's.

    Keys of the file are the flags without their dashes; `env` holds variables that are set for this process. A flag or
    key that nothing reads is an error with the nearest known name.

    Raises:
        ConfigError: a dataclass has a field `config`, which is the file's.
    """

    def __init__(self, dataclass_types: Any = None, **kwargs: Any):
        types = list(dataclass_types) if isinstance(dataclass_types, Iterable) else [dataclass_types]
        types = [one for one in types if one is not None]
        for one in types:
            if "config" in {f.name for f in fields(one)}:
                raise ConfigError(f"{one.__name__} has a field 'config', which --config takes; rename it.")
        super().__init__(types, **kwargs)

    def parse_args_and_config(
        self,
        args: Iterable[str] | None = None,
        return_remaining_strings: bool = False,
        fail_with_unknown_args: bool = True,
        separate_remaining_strings: bool = False,
    ) -> tuple[Any, ...]:
        """One instance of each dataclass.

        Args:
            args: None takes those of the process.
            return_remaining_strings: what nothing reads comes last, as a list of strings, and is no error.
            fail_with_unknown_args: whether keys of the file that nothing reads are an error.
            separate_remaining_strings: those of the file and those of the command line come as two lists.

        Raises:
            ConfigError: a file that is not there or no mapping, or a flag or key that nothing reads.
        """
        arguments = list(sys.argv[1:] if args is None else args)
        path, of_file = self._take_file(arguments)
        *instances, of_line = self.parse_args_into_dataclasses(args=arguments, return_remaining_strings=True)
        if return_remaining_strings:
            return (*instances, of_file, of_line) if separate_remaining_strings else (*instances, of_file + of_line)
        if of_line:
            raise self._unknown("the command line", of_line)
        if of_file and fail_with_unknown_args:
            raise self._unknown(str(path), of_file)
        return tuple(instances)

    def words_left_over(self, args: Iterable[str]) -> tuple[list[str], list[str]]:
        """What of the file, and of the command line, no option reads; makes no instance, so that nothing is checked."""
        arguments = list(args)
        _, of_file = self._take_file(arguments)
        return of_file, self.parse_known_args(arguments)[1]

    def error(self, message: str) -> NoReturn:
        """As argparse, without its list of all options, which is hundreds of lines here."""
        print(f"{self.prog}: {message}. See `{self.prog} --help`.", file=sys.stderr)
        raise SystemExit(2)

    def _take_file(self, arguments: list[str]) -> tuple[str | None, list[str]]:
        """Read the file that `--config` names, and take it out of the arguments; gives back what nothing reads."""
        path = _take_config(arguments)
        config = _read(path) if path else {}
        variables = config.pop("env", {})
        if not isinstance(variables, Mapping):
            raise ConfigError(f"{path}: env is {variables!r}; give names and values of environment variables.")
        os.environ.update({str(name): str(value) for name, value in variables.items()})
        return path, self.set_defaults_with_config(**config)

    def set_defaults_with_config(self, **kwargs: Any) -> list[str]:
        """Make values the defaults of their flags, those of subcommands too; gives back what no flag reads."""
        used = _set_defaults(self, kwargs)
        return [word for name, value in kwargs.items() if name not in used for word in (f"--{name}", str(value))]

    def _unknown(self, where: str, words: list[str]) -> ConfigError:
        flags = [word.split("=")[0] for word in words if word.startswith("--")] or words
        known = [option for action in _actions(self) for option in action.option_strings]
        near = {flag: difflib.get_close_matches(flag, known, n=1) for flag in flags}
        told = [f"{flag} (did you mean {names[0]}?)" if names else flag for flag, names in near.items()]
        return ConfigError(f"{where} has options that nothing reads: {', '.join(told)}.")


def _take_config(arguments: list[str]) -> str | None:
    """Take `--config FILE` or `--config=FILE` out of the arguments."""
    for i, word in enumerate(arguments):
        if word.startswith("--config="):
            return arguments.pop(i).split("=", 1)[1]
        if word == "--config":
            if i + 1 == len(arguments):
                raise ConfigError("--config names no file.")
            del arguments[i]
            return arguments.pop(i)
    return None


def _read(path: str) -> dict[str, Any]:
    try:
        config = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ConfigError(f"{path}: cannot be read as YAML ({error}).") from None
    if not isinstance(config, dict):
        raise ConfigError(f"{path}: holds a {type(config).__name__}; give names of options and their values.")
    return config


def _set_defaults(parser: argparse.ArgumentParser, values: Mapping[str, Any]) -> set[str]:
    used = set()
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for subparser in action.choices.values():
                used |= _set_defaults(subparser, values)
        elif action.dest in values:
            action.default, action.required = values[action.dest], False
            used.add(action.dest)
    return used


def _actions(parser: argparse.ArgumentParser) -> Iterable[argparse.Action]:
    for action in parser._actions:
        yield action
        if isinstance(action, argparse._SubParsersAction):
            for subparser in action.choices.values():
                yield from _actions(subparser)
