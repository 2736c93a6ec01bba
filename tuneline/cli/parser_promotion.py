"""The arguments of `tuneline promote`, `rollback` and `champion`. Imports nothing heavy."""

import argparse
from collections.abc import Callable

_MODEL = "the registered model (default: that of the line in this checkout)"


def add_promotion_commands(command: Callable[[str, str], argparse.ArgumentParser]) -> None:
    """Adds the commands; `command` makes the parser of one by its name and help."""
    promote = command(
        "promote", "Hold the evaluated policy against the champion, and make it champion if it is better."
    )
    promote.add_argument("--approve", action="store_true", help="agree where promotion.require_approval asks somebody")
    promote.add_argument("--reason", default="", metavar="TEXT", help="why, for the history")

    rollback = command("rollback", "Make the champion before the present one champion again.")
    rollback.add_argument("--to", default="", metavar="VERSION", help="make this version champion instead")
    rollback.add_argument("--reason", default="", metavar="TEXT", help="why, for the history")
    rollback.add_argument("--model", default="", metavar="NAME", help=_MODEL)

    champion = command("champion", "Show who is champion, who was, and why.")
    champion.add_argument("--model", default="", metavar="NAME", help=_MODEL)
