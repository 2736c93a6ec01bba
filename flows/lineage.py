"""`tuneline lineage`, `verify` and `reproduce`: how something was made, whether it still is so, and making it again."""

from __future__ import annotations

import io
import os
from pathlib import Path

from rich.console import Console
from rich.text import Text
from rich.tree import Tree

from tuneline.errors import TunelineError

_WIDEST = 1000


def show_lineage(root: Path, console: Console, target: str, *, json: bool, draw: str | None, everything: bool) -> int:
    """The chain behind a target, on the terminal and as a drawing."""
    from tasks.lineage import trace
    from tasks.lineage_drawing import write_drawing
    from tasks.lineage_text import as_json, as_tree

    drawing = Path(os.environ.get("TUNELINE_CALLED_FROM", root), draw) if draw else None
    if drawing is not None and drawing.suffix not in (".svg", ".html"):
        raise TunelineError(f"--draw {draw}: a lineage is drawn as .svg or .html; use one of these endings.")
    lineage = trace(root, target)
    if json:
        print(as_json(lineage))
    else:
        _print_tree(console, as_tree(lineage, everything=everything))
    if drawing is not None:
        write_drawing(lineage, drawing)
        if not json:
            console.print(str(drawing), soft_wrap=True)
    return 0


def show_reproduction(root: Path, console: Console, target: str, *, anyway: bool, keep: bool) -> int:
    """Makes something again, and says what differs; exit code 0 only where it is the same bit for bit."""
    from tasks.reproduction import reproduce

    def say(line: str) -> None:
        console.print(line, style="dim", soft_wrap=True, markup=False)

    done = reproduce(root, target, anyway=anyway, keep=keep, say=say)
    if done.obstacles:
        console.print(f"{done.target} cannot be reproduced exactly, because:", style="bold red", soft_wrap=True)
        for obstacle in done.obstacles:
            console.print(f"  {obstacle}", soft_wrap=True, markup=False)
        if not done.num_files:
            console.print("Nothing was run; --anyway runs it with what there is.", style="bold")
            return 1
    for difference in done.differences:
        line = Text(f"✗ {difference.stage:<9} ", style="red") + Text(f"{difference.path}: {difference.text}")
        console.print(line, soft_wrap=True)
    if done.checkout is not None:
        console.print(f"It lies in {done.checkout}; removing that folder takes all of it away.", soft_wrap=True)
    made = f"{', '.join(done.stages)} at {done.commit[:10]}{' with the recorded changes' if done.patched else ''}"
    if done.is_equal:
        console.print(f"The same bit for bit: all {done.num_files} files of {made}.", style="bold", soft_wrap=True)
        return 0
    console.print(
        f"{len(done.differences)} of {done.num_files} files differ ({made}).", style="bold red", soft_wrap=True
    )
    return 1


def _print_tree(console: Console, tree: Tree) -> None:
    """Folded to the width of a terminal; elsewhere a line stays whole, so that a hash can be searched for."""
    if console.is_terminal:
        console.print(tree)
        return
    text = io.StringIO()
    Console(file=text, width=_WIDEST, highlight=False).print(tree)
    print("\n".join(line.rstrip() for line in text.getvalue().splitlines()))


def show_verification(root: Path, console: Console, target: str) -> int:
    """What no longer matches what was recorded; exit code 1 where something does not."""
    from tasks.lineage_text import in_bytes
    from tasks.verification import verify

    result = verify(root, target)
    for mismatch in result.mismatches:
        console.print(
            Text(f"✗ {mismatch.stage:<9} ", style="red") + Text(f"{mismatch.what}: {mismatch.problem}"), soft_wrap=True
        )
    for note in result.notes:
        console.print(Text(f"note: {note}", style="dim"), soft_wrap=True)
    looked_at = f"{result.num_files:,} files ({in_bytes(result.num_bytes)}) of {result.num_stages} stages"
    if result.mismatches:
        console.print(
            f"{len(result.mismatches)} of what was recorded no longer match; hashed {looked_at}.", style="bold red"
        )
        return 1
    console.print(f"All matches: hashed {looked_at}.", style="bold")
    return 0
