"""`tuneline report`: the last run as HTML, in short as Markdown, or all runs on a page. No result is changed."""

import argparse
from pathlib import Path

from rich.console import Console

from tasks.summary import load_last_run
from tuneline.errors import TunelineError


def report(root: Path, console: Console, options: argparse.Namespace) -> int:
    """Prints the path of what was written, or the Markdown itself; the exit code.

    Raises:
        TunelineError: nothing was run here yet, or the revision is unknown.
    """
    if options.against is not None and not options.markdown:
        raise TunelineError("--against goes with --markdown: tuneline report --markdown --against REV")
    if options.markdown:
        from tasks.report_markdown import read_revision, write_markdown

        run = load_last_run(root)
        stages = [stage.name for stage in run.stages]
        against = None if options.against is None else read_revision(root, options.against, stages)
        print(write_markdown(root, run, against), end="")
        return 0
    if options.all:
        from tasks.report_index import write_index

        path = write_index(root)
    else:
        from tasks.report import write_report

        path = write_report(root, load_last_run(root))
    console.print(str(path), soft_wrap=True)
    return 0
