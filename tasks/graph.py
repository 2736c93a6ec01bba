"""What DVC knows: the stages in order, which of them are out of date, and why. Nothing is changed."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stages.yaml_files import load_yaml
from tuneline.errors import StageError

PARAMS_FILE = "params.yaml"


@dataclass(frozen=True)
class StagePlan:
    """What DVC would do about one stage."""

    name: str
    after: tuple[str, ...]
    """Stages that make what this one reads."""
    reasons: tuple[str, ...]
    """Why it is out of date by itself; empty when it is not."""
    follows: tuple[str, ...]
    """Stages in `after` that are out of date, so that this one runs too if they make something new."""

    @property
    def up_to_date(self) -> bool:
        return not self.reasons and not self.follows


def plan_stages(root: Path, params: dict[str, Any] | None = None) -> list[StagePlan]:
    """Every stage of dvc.yaml, each after those whose outputs it reads.

    Args:
        root: The checkout.
        params: Settings to compare with those of the last run, instead of what params.yaml holds now.

    Raises:
        StageError: dvc.yaml or dvc.lock cannot be read, or this is no DVC repository.
    """
    from dvc.stage import PipelineStage  # the others are data files, each with a .dvc of its own

    with _repository(root) as repo:
        stages = {stage.name: stage for stage in repo.index.stages if isinstance(stage, PipelineStage)}
        graph = repo.index.graph
        after = {
            name: tuple(other.name for other in graph.successors(stage) if isinstance(other, PipelineStage))
            for name, stage in stages.items()
        }
        plans: dict[str, StagePlan] = {}
        no_longer_read = _files_named(root) - set((params or {}).get("files", {}).values()) if params else set()
        for name in _in_order(after):
            upstream = tuple(sorted(after[name], key=list(plans).index))
            follows = tuple(other for other in upstream if not plans[other].up_to_date)
            remade = {out.def_path for other in follows for out in stages[other].outs} | no_longer_read
            reasons = tuple(_reasons(stages[name], params, remade))
            plans[name] = StagePlan(name, upstream, reasons, follows)
        return list(plans.values())


@contextmanager
def _repository(root: Path) -> Iterator[Any]:
    from dvc.exceptions import DvcException
    from dvc.repo import Repo

    try:
        with Repo(str(root)) as repo:
            yield repo
    except DvcException as error:
        raise StageError(f"DVC cannot read the pipeline in {root}: {error}. Check dvc.yaml and dvc.lock.") from error


def _in_order(after: dict[str, tuple[str, ...]]) -> list[str]:
    """Names in the order of dvc.yaml, but none before what it needs."""
    done: list[str] = []

    def visit(name: str) -> None:
        for needed in (n for n in after if n in after[name]):
            visit(needed)
        if name not in done:
            done.append(name)

    for name in after:
        visit(name)
    return done


def _reasons(stage: Any, params: dict[str, Any] | None, remade: set[str]) -> Iterator[str]:
    causes = list(_causes(stage, params, remade))
    yield from causes
    if not causes and not stage.frozen:  # else they are about to be made anew anyway
        for out in stage.outs:
            yield from (f"{path} {_in_words(what)}" for path, what in out.status().items())


def _causes(stage: Any, params: dict[str, Any] | None, remade: set[str]) -> Iterator[str]:
    if all(not dep.hash_info for dep in stage.deps) and all(not out.hash_info for out in stage.outs):
        yield "never run"
        return
    if stage.frozen:
        return
    if stage.cmd_changed:
        yield "its command changed"
    if stage.always_changed:
        yield "it is marked as always changed"
    for dep in stage.deps:
        if type(dep).__name__ == "ParamsDependency":
            yield from _changed_settings(dep, params)
        elif dep.def_path not in remade:
            yield from (f"{path} {_in_words(what)}" for path, what in dep.status().items())


def _in_words(what: str) -> str:
    words = {"deleted": "is missing", "modified": "changed", "new": "is new", "not in cache": "is not in DVC's cache"}
    return words.get(what, what)


def _changed_settings(dep: Any, params: dict[str, Any] | None) -> Iterator[str]:
    recorded = dep.hash_info.value or {}
    if params is None or dep.def_path != PARAMS_FILE:
        current = dep.read_params(flatten=True)
        current = {key: current.get(key) for key in (dep.params or current)}
    else:
        current = {key: _look_up(params, key) for key in (dep.params or params)}
    for key in dict.fromkeys((*current, *recorded)):
        yield from differences(key, recorded.get(key), current.get(key))


def _look_up(settings: Any, dotted: str) -> Any:
    for name in dotted.split("."):
        settings = settings.get(name) if isinstance(settings, dict) else None
    return settings


def differences(name: str, before: Any, now: Any) -> Iterator[str]:
    """One text for each setting below `name` that differs, such as `dpo.training.beta: 0.1 -> 0.2`."""
    if isinstance(before, dict) and isinstance(now, dict):
        for key in dict.fromkeys((*before, *now)):
            yield from differences(f"{name}.{key}", before.get(key), now.get(key))
    elif before != now:
        yield f"{name}: {_short(before)} -> {_short(now)}"


def _short(value: Any) -> str:
    text = "none" if value is None else str(value)
    return text if len(text) <= 40 else f"{text[:37]}..."


def _files_named(root: Path) -> set[str]:
    """The files that the present params.yaml makes stages depend on."""
    settings = load_yaml((root / PARAMS_FILE).read_text(encoding="utf-8")) or {}
    return set(settings.get("files", {}).values())
