"""`python -m flows.sweep_variant CHECKOUT`: one variant of a sweep, in the scratch checkout that was made for it.

The settings are in its params.yaml already. What it leaves is its RunSummary, for the sweep. Exit codes are those of
`tuneline run`.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
from pathlib import Path
from types import FrameType
from typing import NoReturn

from rich.console import Console


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m flows.sweep_variant")
    parser.add_argument("checkout", type=Path)
    parser.add_argument("--name", default="variant")
    parser.add_argument("--retries", type=int, default=2)
    parser.add_argument("--retry-delay", type=float, default=10.0)
    arguments = parser.parse_args(argv)
    os.chdir(arguments.checkout)
    from stages.supervise import die_with_parent, watch_owner

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, _stop)
    die_with_parent()
    watch_owner()
    try:
        return run_variant(Path.cwd(), arguments.name, arguments.retries, arguments.retry_delay)
    except KeyboardInterrupt:
        return 130


def run_variant(root: Path, name: str, retries: int, retry_delay: float) -> int:
    """Brings the checkout up to date with its params.yaml, records how that went, and returns the exit code."""
    from flows.align import align
    from stages.loading import load_params
    from tasks.display import display
    from tasks.graph import PARAMS_FILE, plan_stages
    from tasks.summary import RunSummary, cached_summary, load_last_run, save_run
    from tasks.sweep_record import VARIANT_RESULT
    from tasks.tracking import ParentRun
    from tuneline.errors import StageError, TunelineError

    def last() -> RunSummary | None:
        try:
            return load_last_run(root)
        except TunelineError:
            return None

    before, code = last(), 0
    with display.shown_on(Console(width=400, force_terminal=False, color_system=None, highlight=False)):
        try:
            align.with_options(flow_run_name=name)(
                root=str(root), retries=retries, retry_delay=retry_delay, promote=False
            )
        except StageError as failure:
            code = 1 if getattr(failure, "retriable", True) else 2
            display.say(str(failure))
    run = last()
    if run is None or (before is not None and run.started == before.started):
        settings = load_params(root / PARAMS_FILE).model_dump(mode="json")
        run = cached_summary(root, settings, [plan.name for plan in plan_stages(root)])
        parent = ParentRun(root, settings)
        parent.open(name, "")
        parent.close(run, None)
    save_run(root / VARIANT_RESULT, run)
    return code


def _stop(signal_number: int, frame: FrameType | None) -> NoReturn:
    raise KeyboardInterrupt


if __name__ == "__main__":
    sys.exit(main())
