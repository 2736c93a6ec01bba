"""`tuneline run` and `tuneline stage`: what happens around the flow, from the settings to the final table."""

import argparse
import os
import urllib.error
import urllib.request
from importlib import import_module
from pathlib import Path
from typing import Any

from rich.console import Console

from flows.chosen import RUN_LOCK, chosen_plans, plans_of
from flows.server import start_temporary_server
from flows.settings import has_prefect_server
from flows.terminal import print_end
from stages.loading import load_config, load_params, write_params
from stages.supervise import lock_if_free
from tasks.again import command_to_go_on
from tasks.display import display
from tasks.graph import PARAMS_FILE, StagePlan
from tasks.promotion_words import NO_SERVER_TO_ASK_ON
from tasks.storage import StorageError, push_after_run
from tasks.summary import cached_summary, load_last_run
from tuneline.errors import ConfigError, StageError, TunelineError


def run_line(
    root: Path,
    console: Console,
    options: argparse.Namespace,
    config: Path | None,
    overrides: list[str],
    only: list[str] | None = None,
) -> int:
    """Runs the line, or one stage of it, and prints how it went; returns the exit code.

    Nothing is started when nothing is out of date, unless the user has a Prefect server to show the run on.
    """
    checked = load_config(config, overrides, root=root) if config else load_params(root / PARAMS_FILE)
    if checked.promotion is not None and checked.promotion.require_approval and not has_prefect_server():
        raise ConfigError(NO_SERVER_TO_ASK_ON)  # before any work
    settings = checked.model_dump(mode="json")
    with lock_if_free(root / RUN_LOCK) as is_free:
        plans = chosen_plans(plans_of(root, checked, is_free=is_free), only)
        nothing_to_do = is_free and not options.force and all(plan.up_to_date for plan in plans)
        if nothing_to_do and config:
            write_params(checked, root / PARAMS_FILE)
    if nothing_to_do and not has_prefect_server():
        if options.push:
            push_after_run(root, console)
        return _end_without_change(root, console, settings, plans)
    parameters = dict(only=only, force=options.force, retries=options.retries, retry_delay=options.retry_delay)
    parameters |= dict(config=str(config) if config else None, overrides=overrides, root=str(root))
    before = _last_record(root)
    try:
        parallel = getattr(options, "parallel", False)
        _run_flow(root, console, {**parameters, "parallel": parallel, "push": options.push})
    except StorageError:
        print_end(root, console, load_last_run(root))
        raise
    except StageError as failure:
        print_end(root, console, load_last_run(root))
        console.print(f"\n{failure}\n", markup=False, soft_wrap=True)
        console.print(f"Go on where it stopped:  {_again(parameters)}", markup=False, soft_wrap=True)
        return 1 if getattr(failure, "retriable", True) else 2
    if _last_record(root) == before:
        return _end_without_change(root, console, settings, plans)
    print_end(root, console, load_last_run(root))
    return 0


def _run_flow(root: Path, console: Console, parameters: dict[str, Any]) -> None:
    if has_prefect_server():
        check_server()
    else:
        server = start_temporary_server(root / ".prefect" / "server.log")
        with console.status("Starting Prefect ..."):
            import_module("flows.align")  # which imports Prefect, while the server does the same
            server.wait_until_ready()
    from flows.align import align

    try:
        with display.shown_on(console):
            align(**parameters)
    except Exception as error:
        if not type(error).__module__.startswith(("httpx", "httpcore", "prefect")):
            raise
        raise TunelineError(
            f"Prefect failed ({type(error).__name__}: {error}). What the stages have finished is kept: once Prefect's "
            f"server answers again, {_again(parameters)} goes on from there."
        ) from error


def check_server() -> None:
    url = os.environ.get("PREFECT_API_URL", "")
    if not url:
        return  # named in a profile: Prefect's own message must do
    try:
        urllib.request.urlopen(f"{url.rstrip('/')}/health", timeout=10).close()
    except urllib.error.HTTPError:
        pass  # it answers
    except (urllib.error.URLError, OSError, ValueError) as error:
        reason = getattr(error, "reason", error)
        raise TunelineError(
            f"PREFECT_API_URL={url} does not answer ({reason}). Start that server, or unset PREFECT_API_URL: then "
            "each run has a temporary one."
        ) from error


def _end_without_change(root: Path, console: Console, settings: dict[str, Any], plans: list[StagePlan]) -> int:
    print_end(root, console, cached_summary(root, settings, [plan.name for plan in plans]))
    return 0


def _last_record(root: Path) -> str:
    try:
        return load_last_run(root).started.isoformat()
    except TunelineError:
        return ""


def _again(parameters: dict[str, Any]) -> str:
    """The command that goes on with this run."""
    return command_to_go_on(parameters["config"], parameters["overrides"], parameters["only"])
