"""What a sweep varies: from `--set name=value,value` to variants, each a checked config with a name of its own."""

from __future__ import annotations

import hashlib
import itertools
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stages.loading import load_configs
from stages.schema import PipelineConfig
from tuneline.errors import ConfigError

_LONGEST_NAME = 80


@dataclass(frozen=True)
class Axis:
    """One setting, and the values that it takes, each as YAML text."""

    dotted: str
    values: tuple[str, ...]

    @property
    def is_seed(self) -> bool:
        """Whether its values are repetitions, over which results are averaged."""
        return self.dotted.rpartition(".")[2] in ("seed", "data_seed")


@dataclass(frozen=True)
class Variant:
    """One line of the sweep."""

    name: str
    """Unlike all others; a name for a folder, an experiment of DVC and a run."""
    chosen: dict[str, str]
    """What was set for it: each varied setting by its dotted name, as it was written."""
    seeds: dict[str, str]
    """Those of `chosen` that are seeds."""
    config: PipelineConfig

    @property
    def setting(self) -> dict[str, str]:
        """What was set but for seeds: variants that agree in it repeat one another."""
        return {name: value for name, value in self.chosen.items() if name not in self.seeds}


def parse_axes(overrides: Sequence[str]) -> list[Axis]:
    """The settings of `--set`, with one value or several.

    Raises:
        ConfigError: one is named twice, has an empty value or the same value twice, or a bracket or quote stays open.
    """
    axes: dict[str, Axis] = {}
    for override in overrides:
        dotted, equals, text = override.partition("=")
        dotted = dotted.strip()
        if not equals or not all(dotted.split(".")):
            raise ConfigError(f"--set {override}: give it as section.name=value,value, such as seed=0,1,2.")
        if dotted in axes:
            raise ConfigError(f"--set {override}: {dotted} was set before; give all its values at once, after commas.")
        values = split_values(text, override)
        if "" in values and len(values) > 1:
            raise ConfigError(f"--set {override}: there is an empty value; write null for none.")
        if twice := {value for value in values if values.count(value) > 1}:
            raise ConfigError(f"--set {override}: {', '.join(sorted(twice))} is given twice.")
        axes[dotted] = Axis(dotted, tuple(values))
    return list(axes.values())


def split_values(text: str, override: str) -> list[str]:
    """What stands between commas; those within brackets, braces and quotes belong to a value.

    Raises:
        ConfigError: a bracket or quote does not end.
    """
    values, start, open_brackets, quote = [], 0, [], ""
    for place, sign in enumerate(text):
        if quote:
            quote = "" if sign == quote else quote
        elif sign in "\"'" and _begins(text[start:place]):
            quote = sign
        elif sign in "[{":
            open_brackets.append("]" if sign == "[" else "}")
        elif sign in "]}" and open_brackets:
            if open_brackets.pop() != sign:
                raise ConfigError(f"--set {override}: `{sign}` closes a bracket of the other kind.")
        elif sign == "," and not open_brackets:
            values.append(text[start:place].strip())
            start = place + 1
    if quote or open_brackets:
        raise ConfigError(f"--set {override}: `{quote or open_brackets[-1]}` is missing at the end of a value.")
    return [*values, text[start:].strip()]


def _begins(before: str) -> bool:
    """Whether a quote after this begins a quoted text: an apostrophe within a word does not."""
    return not before.strip() or before.rstrip()[-1] in "[{,:"


def make_variants(config: Path, overrides: Sequence[str], root: Path) -> list[Variant]:
    """Every combination of the values, checked; the last setting varies fastest.

    Raises:
        ConfigError: a name or a value is wrong, in any of them, or two of them come to the same settings.
    """
    axes = parse_axes(overrides)
    combinations = list(itertools.product(*(axis.values for axis in axes)))
    written = [[f"{axis.dotted}={value}" for axis, value in zip(axes, values, strict=True)] for values in combinations]
    configs = load_configs(config, written, root)
    shown = [axis for axis in axes if len(axis.values) > 1]
    short = short_names([axis.dotted for axis in shown])
    variants: list[Variant] = []
    for values, checked in zip(combinations, configs, strict=True):
        value_of = dict(zip((axis.dotted for axis in axes), values, strict=True))
        chosen = {axis.dotted: value_of[axis.dotted] for axis in shown}
        seeds = {axis.dotted: value_of[axis.dotted] for axis in shown if axis.is_seed}
        words = [f"{short[dotted]}-{value}" for dotted, value in chosen.items()]
        variants.append(Variant(_name([checked.name, *words]), chosen, seeds, checked))
    same: dict[str, Variant] = {}
    for variant in variants:
        settings = variant.config.model_dump_json()
        if settings in same:
            both = f"{in_words(same[settings].chosen)} and {in_words(variant.chosen)}"
            raise ConfigError(f"{both} are the same settings, written in two ways; leave one of them out.")
        same[settings] = variant
    return variants


def short_names(dotted: Sequence[str]) -> dict[str, str]:
    """The shortest ends of dotted names that tell them apart, such as `beta` for `dpo.training.beta`."""
    short = {}
    for name in dotted:
        parts = name.split(".")
        ends = [".".join(parts[-count:]) for count in range(1, len(parts) + 1)]
        others = [other for other in dotted if other != name]
        short[name] = next(e for e in [*ends, name] if e == name or not any(f".{o}".endswith(f".{e}") for o in others))
    return short


def in_words(chosen: dict[str, str]) -> str:
    """Such as `beta=0.05 seed=0`."""
    short = short_names(list(chosen))
    return " ".join(f"{short[name]}={value}" for name, value in chosen.items()) or "as in the config"


def sweep_key(variants: Sequence[Variant]) -> str:
    """The same for the same command on the same config: what a killed sweep is found again by."""
    settings: list[Any] = [[variant.name, variant.config.model_dump(mode="json")] for variant in variants]
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:12]


def _name(words: Sequence[str]) -> str:
    """Letters, digits, `.`, `_` and `-`; what that loses is made up for by a hash."""
    whole = "-".join(words)
    name = re.sub(r"-{2,}", "-", re.sub(r"[^A-Za-z0-9._-]+", "_", re.sub(r"(?<=-)-(?=[\d.])", "minus", whole)))
    name = re.sub(r"\.{2,}", ".", name).strip("._-")
    if len(name) > _LONGEST_NAME or any(sign in whole for sign in "[]{}\"' /:,"):
        name = f"{name[: _LONGEST_NAME - 7].rstrip('._-')}-{hashlib.sha256(whole.encode()).hexdigest()[:6]}"
    return name.removesuffix(".lock")
