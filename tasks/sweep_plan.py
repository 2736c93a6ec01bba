"""What variants of a sweep have in common: a stage with the same settings and the same inputs is one unit of work.

A unit is known before anything runs, from dvc.yaml and the settings. It only decides which variant starts when; that a
shared stage is computed once is seen to by `tasks.sweep_sharing`, which knows the bytes.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from stages.yaml_files import load_yaml
from tasks.sweep_settings import Variant
from tuneline.errors import StageError

Units = dict[str, str]
"""The key of each stage's unit, by the stage."""


def stage_units(root: Path, settings: Mapping[str, Any]) -> Units:
    """The units of one variant, each stage after those whose outputs it reads.

    Raises:
        StageError: dvc.yaml has no stages, or its stages need one another in a circle.
    """
    stages = (load_yaml((root / "dvc.yaml").read_text(encoding="utf-8")) or {}).get("stages")
    if not isinstance(stages, dict):
        raise StageError(f"{root / 'dvc.yaml'} has no stages.")
    made_by = {out: name for name, stage in stages.items() for out in _paths(stage, "outs", "metrics", "plots")}
    deps = {name: [_filled(dep, settings) for dep in _paths(stage, "deps")] for name, stage in stages.items()}
    units: Units = {}

    def unit(name: str, below: tuple[str, ...] = ()) -> str:
        if name in below:
            raise StageError(f"{root / 'dvc.yaml'}: {' -> '.join([*below, name])} is a circle.")
        if name not in units:
            stage = stages[name]
            read = []
            for dep in deps[name]:
                makers = sorted({made_by[out] for out in made_by if _touch(dep, out)})
                read.append([dep, *(unit(maker, (*below, name)) for maker in makers)])
            params = {key: _look_up(settings, key) for key in stage.get("params", ()) if isinstance(key, str)}
            text = json.dumps([name, stage.get("cmd"), read, params], sort_keys=True, default=str)
            units[name] = hashlib.sha256(text.encode()).hexdigest()[:16]
        return units[name]

    for name in stages:
        unit(name)
    return units


def _paths(stage: Mapping[str, Any], *kinds: str) -> list[str]:
    entries = [entry for kind in kinds for entry in stage.get(kind, ())]
    return [str(next(iter(entry)) if isinstance(entry, dict) else entry) for entry in entries]


def _filled(path: str, settings: Mapping[str, Any]) -> str:
    return re.sub(r"\$\{([\w.]+)\}", lambda found: str(_look_up(settings, found[1])), path)


def _touch(one: str, other: str) -> bool:
    return one == other or one.startswith(f"{other}/") or other.startswith(f"{one}/")


def _look_up(settings: Any, dotted: str) -> Any:
    for name in dotted.split("."):
        settings = settings.get(name) if isinstance(settings, Mapping) else None
    return settings


@dataclass
class Schedule:
    """Which variant starts next. Thread-safety is the caller's."""

    units: dict[str, Units]
    """By variant, in the order of the sweep."""
    computed: set[str] = field(default_factory=set)
    """Keys of units that are in DVC's cache."""
    running: list[str] = field(default_factory=list)
    waiting: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.waiting = self.waiting or list(self.units)

    def next(self) -> str | None:
        """A variant that need not wait for what a running one computes, and is now one of the running; None if none is.

        Of those, one that starts nothing new before it differs from others goes last, so that slots are filled with
        work that no one else does.
        """
        busy = {unit for name in self.running for unit in self.units[name].values()} - self.computed
        free = [name for name in self.waiting if not busy & set(self.units[name].values())]
        if not free:
            return None
        chosen = max(free, key=lambda name: (len(self.computed & set(self.units[name].values())), -free.index(name)))
        self.waiting.remove(chosen)
        self.running.append(chosen)
        return chosen

    def stage_done(self, name: str, stage: str) -> None:
        """A running variant has made the outputs of a stage."""
        if stage in self.units[name]:
            self.computed.add(self.units[name][stage])

    def ended(self, name: str) -> None:
        """A variant ended, well or not; what it was computing is free for others."""
        self.running.remove(name)


def num_units(variants: Sequence[Units]) -> int:
    """How many different ones there are."""
    return len({unit for units in variants for unit in units.values()})


def shared_stages(variants: Sequence[Units]) -> list[str]:
    """Stages that all variants have in common."""
    return [stage for stage in variants[0] if len({units.get(stage) for units in variants}) == 1] if variants else []


def expected_seconds(variants: Sequence[Units], seconds: Mapping[str, float | None], jobs: int) -> float | None:
    """How long the units take if none is in the cache: at least the longest line, at least all work over all jobs.

    Args:
        variants: The units of each.
        seconds: What a stage takes; None where it is not known.
        jobs: Variants at the same time.
    """
    stages = {unit: stage for units in variants for stage, unit in units.items()}
    if not variants or any(seconds.get(stage) is None for stage in stages.values()):
        return None
    work = sum(seconds[stage] or 0.0 for stage in stages.values())
    return max(work / jobs, max(sum(seconds[stage] or 0.0 for stage in units) for units in variants))


def units_of(root: Path, variants: Sequence[Variant]) -> dict[str, Units]:
    """The units of every variant, by its name."""
    return {variant.name: stage_units(root, variant.config.model_dump(mode="json")) for variant in variants}
