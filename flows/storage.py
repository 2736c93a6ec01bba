"""`tuneline push`, `pull` and `gc`: results to a remote and back, and freeing what no kept version needs."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table

if TYPE_CHECKING:
    from tasks.gc import History

_SHOWN = 8


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


def free_space(
    root: Path,
    console: Console,
    *,
    yes: bool,
    history: History,
    keep_versions: int | None,
    keep_days: float,
    verbose: bool,
) -> int:
    """Shows what no kept version needs, and frees it where that is asked for."""
    from tasks.gc import Keeping, collect, free
    from tasks.lineage_text import in_bytes

    keeping = Keeping(history, keep_versions, keep_days)
    with console.status("Looking ..."):
        found = free(root, keeping) if yes else collect(root, keeping)
    table = Table(box=None, pad_edge=False, padding=(0, 3, 0, 0), header_style="bold")
    table.add_column("Freed" if yes else "Would be freed")
    table.add_column("Number", justify="right")
    table.add_column("Size", justify="right")
    for kind in dict.fromkeys(one.kind for one in found.garbage):
        ones = [one for one in found.garbage if one.kind == kind]
        table.add_row(_KINDS[kind], f"{len(ones):,}", in_bytes(sum(one.size for one in ones)))
    if found.garbage:
        console.print(table)
    largest = sorted(found.garbage, key=lambda one: -one.size)
    for one in largest if verbose else largest[:_SHOWN]:
        place = one.path.relative_to(root) if one.path.is_relative_to(root) else one.path
        console.print(f"  {in_bytes(one.size):>10}  {place}  ({one.why})", style="dim", soft_wrap=True, markup=False)
    if not verbose and len(largest) > _SHOWN:
        console.print(f"  and {len(largest) - _SHOWN:,} more: --verbose", style="dim")
    keepers = ", ".join(f"{number} of {why}" for why, number in found.kept.items() if number)
    console.print(
        f"Kept: {found.num_kept_objects:,} objects ({in_bytes(found.kept_bytes)}), the results of stage runs: "
        f"{keepers or 'none'}.",
        soft_wrap=True,
    )
    if yes:
        console.print(f"Freed {in_bytes(found.size)}.", style="bold")
    elif found.garbage:
        console.print(f"{in_bytes(found.size)} would be freed: `tuneline gc --yes` does it.", style="bold")
    else:
        console.print("Nothing to free.", style="bold")
    return 0


_KINDS = {
    "cache": "objects of DVC's cache",
    "run cache": "entries of DVC's run cache",
    "work folder": "work folders below .work",
    "log": "old logs",
    "clone": "scratch checkouts",
}
