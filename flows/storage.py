"""`tuneline push` and `tuneline pull`."""

from __future__ import annotations

from pathlib import Path

from rich.console import Console


def push_results(root: Path, console: Console, remote: str, *, every: bool) -> int:
    """Sends results to a remote, and says what was done."""
    from tasks.storage import push

    with console.status("Pushing ..."):
        done = push(root, remote, every=every)
    mended = f"; {done.num_mended} that were lost or half there were sent again" if done.num_mended else ""
    console.print(f"{done.num_objects:,} objects are on {done.remote}{mended}.", style="bold")
    return 0


def pull_results(root: Path, console: Console, remote: str) -> int:
    """Brings results from a remote, and says what was done."""
    from tasks.storage import pull

    with console.status("Pulling ..."):
        done = pull(root, remote)
    console.print(f"{done.num_objects:,} objects of {done.remote} are here.", style="bold")
    return 0
