"""The arguments of `tuneline lineage`, `verify` and `reproduce`. Imports nothing heavy."""

import argparse
from collections.abc import Callable

_TARGET = "a metric (evaluate.dpo.accuracy), a model version (models:/NAME/3, NAME@alias), a file, or a stage"


def add_lineage_commands(command: Callable[[str, str], argparse.ArgumentParser]) -> None:
    """Adds the commands; `command` makes the parser of one by its name and help."""
    lineage = command("lineage", "Show what something was made from, back to the bytes of its sources.")
    lineage.add_argument("target", metavar="TARGET", help=_TARGET)
    lineage.add_argument("--json", action="store_true", help="print all that is known, for programs")
    lineage.add_argument("--all", action="store_true", help="all settings and code files in the tree")
    lineage.add_argument("--draw", metavar="FILE", help="draw it too, to a file that ends in .svg or .html")

    verify = command("verify", "Compute hashes again, and say what is no longer what was recorded (exit code 1).")
    verify.add_argument("target", metavar="TARGET", nargs="?", default="", help=f"{_TARGET}; default: all of dvc.lock")

    reproduce = command(
        "reproduce", "Make a model version again from source in a scratch checkout, and compare bit for bit."
    )
    reproduce.add_argument("target", metavar="MODEL_VERSION", help=f"{_TARGET}")
    reproduce.add_argument("--anyway", action="store_true", help="run it though what ran is not on record as a whole")
    reproduce.add_argument("--keep", action="store_true", help="leave the scratch checkout, and print where it lies")
