"""A run in short, as Markdown for a pull request: what came out, against another revision, and what it took.

The other revision's metrics are those that its dvc.lock names, read through DVC: from the cache, or from a remote.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from stages.git import git_text
from stages.tracking import flatten
from stages.yaml_files import load_yaml
from tasks.graph import PARAMS_FILE
from tasks.report_costs import read_run_costs
from tasks.report_decisions import read_promotion
from tasks.report_outcome import outcome
from tasks.report_parts import read_environment
from tasks.report_text import Limits, duration, number
from tasks.summary import RunSummary, StageSummary, headline, read_metrics
from tuneline.errors import TunelineError

MOST_CHARACTERS = 60_000
"""GitHub takes comments of 65,536."""
_MOST_ROWS = 200
_ERROR_CHARACTERS = 3000
_OWN_SETTINGS = ("files.",)  # made from others


@dataclass(frozen=True)
class Revision:
    """What another commit says about the line."""

    name: str
    commit: str
    metrics: dict[str, dict[str, float]]  # by stage
    settings: dict[str, Any]  # by dotted name
    missing: list[str] = field(default_factory=list)
    """Files that dvc.lock names there and that neither the cache nor a remote has."""


def read_revision(root: Path, name: str, stages: list[str]) -> Revision:
    """The metrics and settings of a commit.

    Raises:
        TunelineError: there is no such commit, or it has no dvc.lock.
    """
    commit = git_text(root, "rev-parse", "--verify", "--quiet", f"{name}^{{commit}}")
    if commit is None:
        raise TunelineError(f"{name} is no commit of this checkout; name a branch, a tag or a hash (`git log`).")
    if git_text(root, "cat-file", "-e", f"{commit}:dvc.lock") is None:
        raise TunelineError(
            f"{name} ({commit[:9]}) has no dvc.lock, so nothing is known of what was made there; name a commit that "
            "has one: `git log -- dvc.lock`. After a run, commit dvc.lock and params.yaml."
        )
    from dvc.api import DVCFileSystem
    from dvc.exceptions import DvcException

    metrics, missing = {}, []
    try:
        files = DVCFileSystem(str(root), rev=commit)
        for stage in stages:
            path = f"reports/{stage}/metrics.json"
            if not files.exists(path):
                continue
            try:
                values = json.loads(files.read_text(path))
            except (FileNotFoundError, ValueError):
                missing.append(path)
                continue
            metrics[stage] = {key: value for key, value in values.items() if isinstance(value, int | float)}
    except DvcException as error:
        raise TunelineError(f"DVC cannot read {name} ({commit[:9]}): {error}") from error
    settings = load_yaml(git_text(root, "show", f"{commit}:{PARAMS_FILE}") or "") or {}
    return Revision(name, commit, metrics, dict(flatten(settings)), missing)


def write_markdown(root: Path, run: RunSummary, against: Revision | None = None) -> str:
    """The summary, to paste or to post as it is."""
    parts = [f"## {_plain(run.name)}: {outcome(run)}", _first_lines(root, run), _troubles(run)]
    own = {stage.name: read_metrics(root, stage.name) for stage in run.stages}
    if against is None:
        parts += [_stages(run), _table(_key_names(own), own, None)]
    else:
        parts += [_table(_key_names({**against.metrics, **own}), own, against)]
        parts += [_settings(run, against), _stages(run)]
        if against.missing:
            names = ", ".join(map(_code, against.missing))
            parts.append(f"Not in DVC's cache or a remote, so not compared: {names}.")
    parts.append(_promotion(root, run))
    every = _all_metrics(own, against)
    if sum(map(len, [*parts, every])) > MOST_CHARACTERS:
        every = "All metrics would make this too long; they are in the HTML report."
    text = "\n\n".join(part for part in [*parts, every] if part) + "\n"
    if len(text) > MOST_CHARACTERS:
        text = f"{text[:MOST_CHARACTERS]}\n\n… and {len(text) - MOST_CHARACTERS:,} characters more.\n"
    return text.encode("utf-8", "replace").decode()


def _first_lines(root: Path, run: RunSummary) -> str:
    environment = read_environment(root)
    costs = read_run_costs(root, run)
    num_ran = sum(stage.shown_state == "ran" for stage in run.stages)
    told = [f"{run.started:%Y-%m-%d %H:%M} UTC, {duration(run.seconds)}; {num_ran} of {len(run.stages)} stages ran"]
    if costs.run.num_tries:
        told.append(f"processor time {duration(costs.run.processor)}")
    if costs.run.gpu:
        told.append(f"{costs.run.gpu / 3600:.2f} GPU hours")
    if costs.run.price is not None:
        told.append(f"{_plain(costs.currency)} {costs.run.price:.2f}")
    if environment.commit:
        changed = environment.num_changed_files
        dirty = f", {changed} file{'s' * (changed > 1)} not committed" if changed else ""
        told.append(f"commit {_code(environment.commit[:9])}{dirty}")
    return "; ".join(told) + "."


def _troubles(run: RunSummary) -> str:
    told = [
        f"**{stage.name} {'failed' if stage.state == 'failed' else 'was stopped'}.**\n\n{_block(stage.error)}"
        for stage in run.stages
        if stage.state in ("failed", "stopped")
    ]
    if run.stopped:
        told.append(f"Stopped by {_plain(run.stopped)}.")
    if told and run.again:
        told.append(f"Go on with {_code(run.again)}.")
    return "\n\n".join(told)


def _stages(run: RunSummary) -> str:
    lines = ["| Stage | State | Time | Key metrics |", "| --- | --- | ---: | --- |"]
    lines += [f"| {s.name} | {s.shown_state} | {_time(s)} | {_plain(headline(s)) or '–'} |" for s in run.stages]
    return "\n".join(lines)


def _time(stage: StageSummary) -> str:
    return duration(stage.seconds) if stage.shown_state in ("ran", "failed", "stopped") else "–"


Metrics = dict[str, dict[str, float]]  # by stage


def _key_names(metrics: Metrics) -> list[tuple[str, str]]:
    """(stage, metric) of what a reader asks for first: of the evaluation over all tasks, or else of the training."""
    evaluation = metrics.get("evaluate", {})
    names = [name for name in evaluation if _is_key(name)]
    if names:
        return [("evaluate", name) for name in names]
    return [(stage, name) for stage, values in metrics.items() for name in values if name.startswith("eval/")]


def _is_key(name: str) -> bool:
    policy, _, measure = name.partition("/")
    shown = ("accuracy", "reward", "kl", "completion_length", "win_rate_reward", "pairwise_accuracy")
    return measure in shown and not policy.startswith("best_of_")


def _table(names: list[tuple[str, str]], own: Metrics, against: Revision | None) -> str:
    if not names:
        return ""
    if against is None:
        lines = ["| Metric | Value |", "| --- | ---: |"]
        return "\n".join(lines + [f"| {_code(name)} | {_value(own.get(stage, {}), name)} |" for stage, name in names])
    there = against.name if against.commit.startswith(against.name) else f"{against.name} ({against.commit[:9]})"
    lines = [f"| Metric | {_plain(there)} | here | Difference |", "| --- | ---: | ---: | ---: |"]
    is_clear = False
    for stage, name in names:
        old, new = against.metrics.get(stage, {}), own.get(stage, {})
        told = _difference(old, new, name)
        is_clear |= told.startswith("**")
        lines.append(f"| {_code(name)} | {_value(old, name)} | {_value(new, name)} | {told} |")
    notes = "\n\nIn brackets: 95 % intervals. Bold: they do not overlap." if is_clear else ""
    return "\n".join(lines) + notes


def _value(metrics: dict[str, float], name: str) -> str:
    interval = _interval(metrics, name)
    between = f" ({number(interval[0])} to {number(interval[1])})" if interval else ""
    return number(metrics.get(name)) + between


def _difference(old: dict[str, float], new: dict[str, float], name: str) -> str:
    if name not in old or name not in new:
        return "only here" if name in new else "only there" if name in old else "–"
    difference = new[name] - old[name]
    if difference == 0:
        return "0"
    told = f"{'+' if difference > 0 else '-'}{number(abs(difference))}"
    before, after = _interval(old, name), _interval(new, name)
    is_clear = before and after and (after[0] > before[1] or after[1] < before[0])
    return f"**{told}**" if is_clear else told


def _interval(metrics: dict[str, float], name: str) -> tuple[float, float] | None:
    policy, _, measure = name.partition("/")
    measure, slash, task = measure.partition("/")
    ends = [metrics.get(f"{policy}/{measure}_{end}{slash}{task}") for end in ("low", "high")]
    return None if ends[0] is None or ends[1] is None else (ends[0], ends[1])


def _settings(run: RunSummary, against: Revision) -> str:
    """What is set otherwise there and here."""
    here = dict(flatten(run.config))
    changed = [
        name
        for name in {**against.settings, **here}
        if against.settings.get(name) != here.get(name) and not name.startswith(_OWN_SETTINGS)
    ]
    if not changed:
        return "Settings: the same."
    lines = [f"| Setting | {_plain(against.name)} | here |", "| --- | --- | --- |"]
    for name in changed[:_MOST_ROWS]:
        lines.append(f"| {_code(name)} | {_setting(against.settings, name)} | {_setting(here, name)} |")
    if len(changed) > _MOST_ROWS:
        lines.append(f"| and {len(changed) - _MOST_ROWS} more | | |")
    return "\n".join(lines)


def _setting(settings: dict[str, Any], name: str) -> str:
    return _code(json.dumps(settings[name], default=str)) if name in settings else "–"


def _promotion(root: Path, run: RunSummary) -> str:
    promotion = read_promotion(root, run, Limits(num_characters=300))
    if promotion is None:
        return ""
    verdict = "promoted to champion" if promotion.alias_moved else "stays a challenger"
    champion = f" (champion: version {_plain(promotion.champion)})" if promotion.champion else ""
    reasons = "".join(f"\n- {_plain(reason)}" for reason in promotion.reasons)
    return f"Version {_plain(promotion.version)} {verdict}{champion}, decided {_plain(promotion.at)}.{reasons}"


def _all_metrics(own: Metrics, against: Revision | None) -> str:
    """Every metric, folded; against another revision those that differ."""
    there = against.metrics if against else {}
    names = [(stage, name) for stage in {**there, **own} for name in {**there.get(stage, {}), **own.get(stage, {})}]
    names = [(stage, name) for stage, name in names if not re.search(r"_(low|high)(/|$)", name)]
    if against is None:
        names = [pair for pair in names if pair[0] != "prepare" and not pair[1].startswith("data/")]
    else:
        names = [pair for pair in names if there.get(pair[0], {}).get(pair[1]) != own.get(pair[0], {}).get(pair[1])]
    if not names:
        return ""
    what = "metrics that differ" if against else "metrics"
    lines = ["| Stage | Metric | " + ("there | here |" if against else "Value |")]
    lines.append("| --- | --- | " + ("---: | ---: |" if against else "---: |"))
    for stage, name in names[:_MOST_ROWS]:
        values = [number(of_one.get(stage, {}).get(name)) for of_one in ((there, own) if against else (own,))]
        lines.append(f"| {stage} | {_code(name)} | " + " | ".join(values) + " |")
    if len(names) > _MOST_ROWS:
        lines.append(f"\n{len(names) - _MOST_ROWS} more are in the HTML report.")
    table = "\n".join(lines)
    return f"<details><summary>All {len(names)} {what}</summary>\n\n{table}\n\n</details>"


def _plain(text: Any) -> str:
    """Text without a meaning in Markdown or HTML, on one line."""
    line = " ".join(str(text).split())
    return re.sub(r"([\\`*_\[\]|~#@!])", r"\\\1", line).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


def _code(text: Any) -> str:
    """A name as it is, in a cell of a table too."""
    line = " ".join(str(text).split()).replace("`", "'").replace("|", "\\|")
    return f"`{line[:200]}`"


def _block(text: str) -> str:
    """The end of a message, fenced by more backticks than stand in it."""
    text = text[-_ERROR_CHARACTERS:]
    fence = "`" * max(3, *(len(run) + 1 for run in re.findall(r"`+", text)), 3)
    return f"{fence}text\n{text}\n{fence}"
