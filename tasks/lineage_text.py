"""A lineage as a tree for the terminal, and as JSON."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict
from typing import Any

from rich.text import Text
from rich.tree import Tree

from stages.hashes import folder_md5
from stages.uncommitted import UNCOMMITTED
from tasks.lineage import Lineage, Source, Step

_SHOWN_SETTINGS = 8
_MOST_CHARACTERS = 60


def as_tree(lineage: Lineage, *, everything: bool = False) -> Tree:
    """The chain from the target down to its sources; a run that is needed twice is spelled out once.

    Args:
        everything: all settings and code files, instead of the first few settings and a count.
    """
    target = lineage.target
    head = Text(target.name, style="bold")
    if target.value is not None:
        head.append(f" = {target.value:.6g}")
    tree = Tree(head, highlight=False)
    if target.content:
        tree.add(_pair("bytes", f"{target.path}  md5 {target.content.md5}{_size(target.content.size)}"))
    if target.version:
        aliases = ", ".join(target.version.aliases) or "none"
        tree.add(_pair("version", f"{target.version.uri}, aliases: {aliases}"))
    if target.note:
        tree.add(Text(f"note: {target.note}", style="yellow"))
    if lineage.problem:
        tree.add(Text(f"MLflow: not asked, as {lineage.problem}", style="yellow"))
    for source in lineage.sources:
        tree.add(_source_line(source))
    if lineage.read_by:
        tree.add(_pair("read by", ", ".join(lineage.read_by)))
    if target.record is not None:
        _add_step(tree, lineage, lineage.step(target.record.key), set(), everything)
    return tree


def _add_step(tree: Tree, lineage: Lineage, step: Step, shown: set[str], everything: bool) -> None:
    record = step.record
    made = Text("made by ") + Text(record.stage, style="bold green")
    if record.key in shown:
        tree.add(made + Text("  (above)", style="dim"))
        return
    shown.add(record.key)
    branch = tree.add(made + Text(f"  {record.command}  [{record.origin}]", style="dim"))
    for name, text in _facts(step):
        branch.add(_pair(name, text))
    for weights in step.weights:
        sha256 = weights.sha256 or "not known: the bytes are not here"
        branch.add(_pair("weights", f"{weights.path}  sha256 {sha256}{_size(weights.size)}"))
    _add_settings(branch, step, everything)
    code = record.code
    if code:
        noun = branch.add(_pair("code", f"{len(code)} files, md5 of the list {_digest(step)}"))
        for path, content in code.items() if everything else ():
            noun.add(Text(f"{path}  md5 {content.md5}", style="dim"))
    for source in step.sources:
        branch.add(_source_line(source))
    for path, key in step.inputs.items():
        if key:
            read = branch.add(_pair("input", f"{path}  md5 {record.deps[path].md5}{_size(record.deps[path].size)}"))
            _add_step(read, lineage, lineage.step(key), shown, everything)


def _facts(step: Step) -> Iterator[tuple[str, str]]:
    """What is known of the run beside its bytes, in short lines."""
    run = step.run
    for path, content in step.record.outs.items():
        yield "output", f"{path}  md5 {content.md5}{_size(content.size)}"
    if run is not None:
        if run.commit:
            yield "commit", f"{run.commit}{uncommitted_words(step)}"
        yield "MLflow", f"run {run.id}{f', child of {run.parent}' if run.parent else ''}"
        if run.flow_run:
            yield "Prefect", f"flow run {run.flow_run}"
    yield "dvc.lock", f"committed in {step.commits[-1][:10]}" if step.commits else "not committed"
    for version in step.versions:
        aliases = f" ({', '.join(version.aliases)})" if version.aliases else ""
        yield "version", f"{version.uri}{aliases}"


def uncommitted_words(step: Step) -> str:
    """How the working tree differed from the commit when the stage ran; empty when it did not."""
    run = step.run
    if run is None or run.dirty != "true":
        return ""
    match run.patch:
        case "none":
            return ", and nothing that stages read differed from it"
        case "":
            return ", with uncommitted changes that were not recorded"
        case patch if patch == UNCOMMITTED:
            return f", with uncommitted changes ({patch} of the MLflow run)"
        case reason:
            return f", with uncommitted changes that were not recorded ({reason})"


def _add_settings(branch: Tree, step: Step, everything: bool) -> None:
    settings = {name: value for name, value in step.settings.items() if everything or value not in (None, {}, [])}
    if not settings:
        return
    noun = branch.add(_pair("settings", f"{len(step.settings)}, of which {len(settings)} are set"))
    for number, (name, value) in enumerate(settings.items()):
        if number == _SHOWN_SETTINGS and not everything:
            noun.add(Text(f"and {len(settings) - number} more: --all, or --json", style="dim"))
            return
        noun.add(Text(f"{name}: {shortened(value) if not everything else value}"))


def shortened(value: Any) -> str:
    text = str(value)
    return text if len(text) <= _MOST_CHARACTERS else f"{text[: _MOST_CHARACTERS - 3]}..."


def _source_line(source: Source) -> Text:
    line = Text(f"{source.role}: ", style="bold cyan")
    line.append(source.path or source.text, style="not bold default")
    if source.path:
        git_words = {True: ", in git", False: ", not in git", None: ""}[source.in_git]
        line.append(f"  md5 {source.md5}{_size(source.size)}; {source.text}{git_words}", style="not bold default")
    return line


def _pair(name: str, text: str) -> Text:
    return Text(f"{name}: ", style="bold") + Text(text, style="not bold")


def _size(size: int | None) -> str:
    return "" if size is None else f", {in_bytes(size)}"


def in_bytes(size: float) -> str:
    """Such as `812 bytes`, `4.2 MB` or `1.3 GB` (powers of 1000)."""
    if size < 1000:
        return f"{size:.0f} bytes"
    for unit in ("kB", "MB", "GB", "TB"):
        size /= 1000
        if size < 1000 or unit == "TB":
            break
    return f"{size:.1f} {unit}"


def _digest(step: Step) -> str:
    return folder_md5({path: content.md5 for path, content in step.record.code.items()}).removesuffix(".dir")


def as_json(lineage: Lineage) -> str:
    """All that is known, for programs."""
    target = lineage.target
    known = {
        "target": {
            "kind": target.kind,
            "name": target.name,
            "path": target.path,
            "md5": target.content.md5 if target.content else None,
            "size": target.content.size if target.content else None,
            "value": target.value,
            "version": None if target.version is None else asdict(target.version),
            "made_by": target.record.key if target.record else None,
            "note": target.note,
        },
        "runs": [_step_as_dict(step) for step in lineage.steps],
        "sources": [asdict(source) for source in lineage.sources],
        "read_by": list(lineage.read_by),
        "mlflow_problem": lineage.problem,
    }
    return json.dumps(known, indent=1, default=str)


def _step_as_dict(step: Step) -> dict[str, Any]:
    record = step.record
    return {
        "key": record.key,
        "stage": record.stage,
        "command": record.command,
        "recorded_in": record.origin,
        "settings": step.settings,
        "outputs": {path: asdict(content) for path, content in record.outs.items()},
        "inputs": {
            path: {**asdict(record.deps[path]), "made_by": made_by or None} for path, made_by in step.inputs.items()
        },
        "code": {path: content.md5 for path, content in record.code.items()},
        "package_lock": step.package_lock.md5 if step.package_lock else None,
        "weights": [asdict(weights) for weights in step.weights],
        "sources": [asdict(source) for source in step.sources],
        "mlflow": None if step.run is None else asdict(step.run),
        "lock_commits": list(step.commits),
        "versions": [asdict(version) for version in step.versions],
    }
