"""The arguments of `tuneline push`, `pull` and `gc`. Imports nothing heavy."""

import argparse
from collections.abc import Callable

from tuneline.cli.parser_numbers import amount, count


def add_storage_commands(command: Callable[[str, str], argparse.ArgumentParser]) -> None:
    """Adds the commands; `command` makes the parser of one by its name and help."""
    push = command("push", "Send results and the run cache to a DVC remote; one that was cut off goes on.")
    push.add_argument("--all", action="store_true", help="those of all branches and tags too")
    pull = command("pull", "Bring results and the run cache from a DVC remote.")
    for one in (push, pull):
        one.add_argument("--remote", default="", metavar="NAME", help="a DVC remote (default: DVC's default one)")

    gc = command("gc", "Show what no kept version needs, and how much that is; with --yes, free it.")
    gc.add_argument("--yes", action="store_true", help="free it; without this nothing is changed")
    gc.add_argument(
        "--history",
        choices=("refs", "all", "none"),
        default="refs",
        metavar="WHICH",
        help="keep what dvc.lock names in: refs, all branches, tags and experiments (default); all, every commit; "
        "none, the working tree alone",
    )
    gc.add_argument(
        "--keep-versions",
        type=count(),
        metavar="N",
        help="of each registered model keep the newest N versions, and those with an alias (default: every version)",
    )
    gc.add_argument(
        "--keep-days",
        type=amount,
        default=0.0,
        metavar="N",
        help="keep all results of the last N days too, so that going back to their settings runs nothing again",
    )
    gc.add_argument("--verbose", action="store_true", help="name every file and folder, instead of the largest")


def add_push_after_run(run: argparse.ArgumentParser) -> None:
    run.add_argument("--push", action="store_true", help="send the results to DVC's default remote at the end")
