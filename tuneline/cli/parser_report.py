"""The arguments of `tuneline report`. Imports nothing heavy."""

import argparse
from collections.abc import Callable


def add_report_command(command: Callable[[str, str], argparse.ArgumentParser]) -> None:
    """Adds the command; `command` makes the parser of one by its name and help."""
    report = command("report", "Write the HTML report of the last run again, and print its path.")
    kind = report.add_mutually_exclusive_group()
    kind.add_argument("--markdown", action="store_true", help="print a short summary for a pull request instead")
    kind.add_argument("--all", action="store_true", help="write a page of all runs that are kept instead")
    report.add_argument(
        "--against", metavar="REV", help="with --markdown: differences to what a commit, branch or tag has made"
    )
