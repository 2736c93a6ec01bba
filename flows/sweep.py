"""`tuneline sweep`: variants of one config, what they have in common computed once, compared over seeds."""

from __future__ import annotations

import argparse
import os
import re
import shlex
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table
from rich.text import Text

from flows.running import check_server
from flows.server import start_temporary_server
from flows.settings import has_prefect_server, mlflow_ui_command
from stages.launch import gpus_of_machine, num_gpus
from stages.schema import TRAINING_STAGES
from stages.supervise import stage_lock, start_again
from tasks.display import in_words as time_in_words
from tasks.estimates import estimate
from tasks.history import read_history
from tasks.sweep_compare import Comparison, compare_variants
from tasks.sweep_plan import Units, expected_seconds, num_units, shared_stages, units_of
from tasks.sweep_record import SWEEPS, SweepRecord, VariantRecord, stamp_of
from tasks.sweep_report import write_sweep_report
from tasks.sweep_run import Sweep
from tasks.sweep_settings import Variant, in_words, make_variants, sweep_key
from tasks.sweep_tracking import close_run, open_runs
from tasks.tracking import tracking_uri
from tuneline.errors import ConfigError


def run_sweep(root: Path, console: Console, options: argparse.Namespace, config: Path) -> int:
    """Runs what is not done yet and prints the comparison; returns 0, or 1 if a variant failed.

    Raises:
        ConfigError: a setting is wrong in any variant, or the sweep's name is no name.
    """
    variants = make_variants(config, options.overrides, root)
    units = units_of(root, variants)
    devices = devices_of_jobs(root, variants, options.jobs)
    _announce(root, console, variants, units, len(devices))
    if options.dry_run:
        console.print(_variant_table([_new_record(variant) for variant in variants]))
        return 0
    key = sweep_key(variants)
    name = options.name or f"{variants[0].config.name}-sweep-{key[:6]}"
    check_name(name)
    folder = root / SWEEPS / key
    with stage_lock(folder / "lock", lambda line: console.print("The same sweep runs already; waiting for its end.")):
        command = _command(options, config)
        record = SweepRecord.open(folder, name, command, map(_new_record, variants))
        stamp = stamp_of(root, {path for variant in variants for path in variant.config.files.values()})
        left = {v.name: v for v in variants if not _is_done(record.variants[v.name], stamp)}
        for variant in left:
            record.variants[variant].state = "waiting"
        if len(left) < len(variants):
            console.print(f"{len(variants) - len(left)} of {len(variants)} are done already.", highlight=False)
        if left:
            _run(root, console, record, left, units, options, devices[: len(left)], stamp)
        failed = [one for one in record.variants.values() if one.state == "failed"]
        _conclude(root, console, record, options)
    if failed:
        console.print(f"\n{len(failed)} failed. The same command tries them again:  {command}", soft_wrap=True)
    elif not options.keep:
        _remove_checkouts(folder, variants)
    return 1 if failed else 0


def _run(
    root: Path,
    console: Console,
    record: SweepRecord,
    left: Mapping[str, Variant],
    units: dict[str, Units],
    options: argparse.Namespace,
    devices: Sequence[str | None],
    stamp: str,
) -> None:
    width = max(len(in_words(variant.chosen)) for variant in left.values())

    def say(name: str, line: str) -> None:
        label = in_words(left[name].chosen)
        style = "red" if "✗" in line or line.startswith("failed") else "green" if line.startswith("done") else ""
        console.print(Text(f"{label:<{width}}  ", style="dim") + Text(line, style=style), soft_wrap=True)

    start_again()
    if has_prefect_server():
        check_server()
        open_runs(record, next(iter(left.values())).config.name, list(left))
    else:
        server = start_temporary_server(root / ".prefect" / "server.log")
        with console.status("Starting Prefect ..."):
            open_runs(record, next(iter(left.values())).config.name, list(left))
            server.wait_until_ready()
    retries = ["--retries", str(options.retries), "--retry-delay", str(options.retry_delay)]
    sweep = Sweep(root, record, left, units, stamp=stamp, say=say, keep=options.keep, options=retries)
    console.print()
    sweep.run(devices)


def _conclude(root: Path, console: Console, record: SweepRecord, options: argparse.Namespace) -> Comparison:
    variants = list(record.variants.values())
    comparison = compare_variants(record.name, record.command, variants, options.metrics, options.lower)
    paths = write_sweep_report(root, comparison)
    console.print()
    console.print(_variant_table(variants))
    for table in comparison_tables(comparison):
        console.print()
        console.print(table)
    console.print()
    for title, value in {
        "Report": str(paths[0]),
        "Numbers": str(paths[1]),
        "Variants": "dvc exp show; dvc exp apply NAME brings one here",
        "Runs": mlflow_ui_command(root, tracking_uri(root)),
    }.items():
        console.print(Text(f"{title + ':':<10}", style="bold") + Text(value, style="not bold"), soft_wrap=True)
    close_run(record, comparison.values, paths)
    return comparison


def devices_of_jobs(root: Path, variants: Sequence[Variant], jobs: int | None) -> list[str | None]:
    """CUDA_VISIBLE_DEVICES of each of the jobs; without GPUs None, once or as often as was asked for.

    Raises:
        ConfigError: more jobs were asked for than GPUs allow.
    """
    launches = [getattr(variant.config, name).launch for variant in variants for name in TRAINING_STAGES]
    gpus = gpus_of_machine()
    each = max([1, *(num_gpus(launch, root) for launch in launches)])
    if gpus == 0:
        return [None] * min(jobs or 1, len(variants))
    named = [part.strip() for part in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if part.strip()]
    ids = named or [str(number) for number in range(gpus)]
    most = max(1, len(ids) // each)
    if jobs is not None and jobs > most:
        raise ConfigError(f"--jobs {jobs} needs {jobs * each} GPUs, {each} a variant, and there are {len(ids)}.")
    count = min(jobs or most, len(variants))
    return [",".join(ids[number * each : (number + 1) * each]) for number in range(count)]


def comparison_tables(comparison: Comparison) -> list[Table]:
    """One a metric: settings, seeds, mean, interval, difference to the best."""
    tables = []
    for metric in comparison.metrics:
        order = "less is better" if metric.lower_is_better else "more is better"
        table = Table(title=f"{metric.metric} ({order})", title_justify="left", box=None, padding=(0, 3, 0, 0))
        table.pad_edge = False
        for title in ("Setting", "Seeds", "Mean", "95 % interval", "Difference to the best", "95 % interval"):
            table.add_column(title, justify="left" if title == "Setting" else "right")
        for row in metric.settings:
            ends = _ends(row.interval.low, row.interval.high)
            if row.difference is None:
                rest = ["best", ""]
            else:
                rest = [f"{row.difference.mean:+.4g}", _ends(row.difference.low, row.difference.high)]
            style = "bold" if row.is_best else ""
            table.add_row(row.label, str(len(row.values)), f"{row.interval.mean:.4g}", ends, *rest, style=style)
        tables.append(table)
    return tables


def _ends(low: float | None, high: float | None) -> str:
    return "-" if low is None or high is None else f"{low:.4g} to {high:.4g}"


def _announce(root: Path, console: Console, variants: Sequence[Variant], units: dict[str, Units], jobs: int) -> None:
    on = {variant.name: [s for s in units[variant.name] if variant.config.why_off(s) is None] for variant in variants}
    known = [{stage: units[name][stage] for stage in stages} for name, stages in on.items()]
    shared = shared_stages(known)
    total = sum(map(len, known))
    text = f"{len(variants)} variants of {variants[0].config.name}, {jobs} at a time: {num_units(known)} stages to run"
    if num_units(known) < total:
        text += f" instead of {total}"
    if shared and len(variants) > 1:
        text += f"; all share {', '.join(shared)}"
    console.print(Text(f"{text}.", style="bold"), soft_wrap=True)
    settings = variants[0].config.model_dump(mode="json")
    past = read_history(root, variants[0].config.name)
    times = {
        stage: estimate(root, stage, settings, past.get(stage), prepared=False).seconds
        for stage in dict.fromkeys(stage for stages in on.values() for stage in stages)
    }
    seconds = expected_seconds(known, times, jobs)
    if seconds is None:
        missing = [stage for stage, time in times.items() if time is None]
        console.print(f"How long {', '.join(missing)} will take is known once they have run here.", highlight=False)
    else:
        text = f"About {time_in_words(seconds)} by the stages' last runs; less where DVC has results already."
        console.print(text, highlight=False)


def _variant_table(variants: Sequence[VariantRecord]) -> Table:
    table = Table(box=None, pad_edge=False, padding=(0, 3, 0, 0), header_style="bold")
    for title in ("Variant", "State", "Ran", "Time", "Experiment"):
        table.add_column(title, justify="right" if title in ("Ran", "Time") else "left", overflow="fold")
    for variant in variants:
        num_ran = sum(state in ("ran", "failed") for state in variant.stages.values())
        ran = f"{num_ran} of {len(variant.stages)}" if variant.stages else "-"
        style = {"done": "green", "failed": "bold red"}.get(variant.state, "dim")
        took = time_in_words(variant.seconds) if variant.seconds else "-"
        name = variant.experiment or Text(variant.name, style="dim")
        state = Text(variant.state, style=style)
        table.add_row(in_words(variant.chosen), state, ran, took, name)
        if variant.error:
            table.add_row("", Text(variant.error.strip().splitlines()[-1][:100], style="red"), "", "", "")
    return table


def _new_record(variant: Variant) -> VariantRecord:
    return VariantRecord(variant.name, variant.chosen, variant.seeds)


def _is_done(variant: VariantRecord, stamp: str) -> bool:
    return variant.state == "done" and variant.stamp == stamp


def _remove_checkouts(folder: Path, variants: Sequence[Variant]) -> None:
    for variant in variants:
        shutil.rmtree(folder / variant.name, ignore_errors=True)


def check_name(name: str) -> None:
    """Raises ConfigError for what cannot be the name of a report."""
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,99}", name):
        raise ConfigError(f"--name {name}: a name has letters, digits, `.`, `_` and `-`, at most 100.")


def metric_words(options: argparse.Namespace) -> list[str]:
    """The flags that say what is compared, as they were typed."""
    words = [word for metric in options.metrics for word in ("--metric", metric)]
    if options.lower is not None:
        words.append("--minimize" if options.lower else "--maximize")
    return words


def _command(options: argparse.Namespace, config: Path) -> str:
    """What to type to go on with this sweep."""
    words = ["tuneline", "sweep", str(config)]
    words += [word for override in options.overrides for word in ("--set", override)]
    words += metric_words(options)
    words += [] if options.jobs is None else ["--jobs", str(options.jobs)]
    words += [] if options.name is None else ["--name", options.name]
    return shlex.join(words)
