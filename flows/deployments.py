"""`tuneline gpus` and `tuneline notify`: what the line keeps on the user's Prefect server."""

import argparse
from pathlib import Path

from rich.console import Console

from flows.running import check_server
from flows.settings import has_prefect_server, program
from tuneline.errors import TunelineError


def run_server_command(root: Path, console: Console, arguments: argparse.Namespace) -> int:
    """Does what the command says on the server that PREFECT_API_URL names; returns the exit code.

    Raises:
        TunelineError: there is no server, it does not answer or refuses, or the arguments contradict each other.
    """
    if not has_prefect_server():
        server = f"{program('tuneline', root)} server"
        raise TunelineError(
            f"`tuneline {arguments.command}` changes something on a Prefect server, and none is named. Start one with "
            f'`{server}`, and here: eval "$({server} --env)"'
        )
    check_server()
    try:
        for line in _gpus(arguments) if arguments.command == "gpus" else _notify(arguments):
            console.print(line, markup=False, soft_wrap=True)
    except TunelineError:
        raise
    except Exception as error:
        if not type(error).__module__.startswith(("httpx", "httpcore", "prefect")):
            raise
        if "Timeout" in type(error).__name__:
            raise TunelineError(
                f"Prefect's server does not answer any more ({type(error).__name__}). It may hang after a change of "
                "automations (docs/deployments.md): stop it and start it again, then repeat this command."
            ) from error
        raise TunelineError(f"Prefect's server refused ({type(error).__name__}: {error}).") from error
    return 0


def _gpus(arguments: argparse.Namespace) -> list[str]:
    from tasks.gpus import describe_gpus, set_gpus

    return [describe_gpus() if arguments.count is None else set_gpus(arguments.count)]


def _notify(arguments: argparse.Namespace) -> list[str]:
    from flows.notifying import notify, stop_notifying

    if arguments.off == (arguments.url is not None):
        raise TunelineError("notify needs an address to post to, or --off to take it away, not both.")
    if arguments.off:
        return [f"removed: {name}" for name in stop_notifying()] or ["There was nothing to remove."]
    return [f"watches: {name}" for name in notify(arguments.url, arguments.dead_after)]
