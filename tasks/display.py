"""What the terminal shows while the line runs: one line a stage, the running ones live. Silent until it is started."""

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.spinner import Spinner
from rich.table import Table
from rich.text import Text

from tasks.progress import Progress

_QUIET_SECONDS = 20
"""Between two lines about one running stage, where the output is no terminal."""

_MOST_CHARACTERS = 90


@dataclass
class _Running:
    started: float
    note: str = "starting"
    progress: Progress | None = None
    first: tuple[float, int] | None = None
    """When the first progress of this try was seen, and its step."""
    latest: tuple[float, int] | None = None
    printed: float = 0.0


class Display:
    """Shows stages as they start, go on and end; safe to call from several threads."""

    def __init__(self) -> None:
        self.console: Console | None = None
        self._running: dict[str, _Running] = {}
        self._lock = threading.RLock()
        self._live: Live | None = None

    @contextmanager
    def shown_on(self, console: Console) -> Iterator[None]:
        """Within it, what is reported appears on `console`: live on a terminal, as plain lines elsewhere."""
        self.console = console
        if not console.is_terminal:
            try:
                yield
            finally:
                self.console = None
            return
        with Live(console=console, get_renderable=self._render, refresh_per_second=4, transient=True) as self._live:
            try:
                yield
            finally:
                self.console, self._live = None, None
                self._running.clear()

    def say(self, text: str, style: str = "") -> None:
        """One line that stays."""
        if self.console:
            self.console.print(Text(text, style=style), soft_wrap=True)

    def start(self, stage: str, note: str = "") -> None:
        with self._lock:
            self._running[stage] = _Running(time.monotonic(), note or "starting", printed=time.monotonic())
        if self.console and not self.console.is_terminal:
            self.say(f"  {stage:<9} started{f' ({note})' if note else ''}")

    def update(self, stage: str, progress: Progress | None, note: str = "") -> None:
        """The newest progress of a running stage, or a word on what it does before there is any."""
        with self._lock:
            running = self._running.get(stage)
            if running is None:
                return
            running.note = note or running.note
            if progress is not None:
                seen = (time.monotonic(), progress.step)
                running.first = running.first or seen
                running.latest = running.latest if running.latest and running.latest[1] == progress.step else seen
                running.progress = progress
            quiet = time.monotonic() - running.printed
            if self.console and not self.console.is_terminal and quiet >= _QUIET_SECONDS:
                running.printed = time.monotonic()
                self.say(f"  {stage:<9} {self._text(running)}")

    def end(self, stage: str, mark: str, text: str, style: str) -> None:
        """The stage is over; `mark` is one sign, `text` what to know about it."""
        with self._lock:
            self._running.pop(stage, None)
        self.say(f"{mark} {stage:<9} {text}", style)

    def _render(self) -> RenderableType:
        with self._lock:
            return Group(*(self._row(stage, running) for stage, running in self._running.items()))

    def _row(self, stage: str, running: _Running) -> RenderableType:
        row = Table.grid(padding=(0, 1))
        cells: list[RenderableType] = [Spinner("dots"), Text(f"{stage:<9}", style="bold")]
        share = running.progress.share if running.progress else None
        if share is not None:
            cells.append(ProgressBar(total=1.0, completed=share, width=24))
        cells.append(Text(self._text(running)))
        row.add_row(*cells)
        return row

    @staticmethod
    def _text(running: _Running) -> str:
        spent = time.monotonic() - running.started
        if running.progress is None:
            return f"{in_words(spent)}  {running.note[:_MOST_CHARACTERS]}"
        text = f"{in_words(spent)}  {running.progress.describe()}"
        if running.progress.share == 1.0:
            return f"{text}, finishing"
        left = _seconds_left(running)
        return text if left is None else f"{text}, about {in_words(left)} left"


def _seconds_left(running: _Running) -> float | None:
    """By the pace between the first and the latest step that were seen."""
    progress, first, latest = running.progress, running.first, running.latest
    if progress is None or first is None or latest is None or not progress.max_steps or latest[1] <= first[1]:
        return None
    pace = (latest[0] - first[0]) / (latest[1] - first[1])
    return max(0.0, pace * (progress.max_steps - latest[1]) - (time.monotonic() - latest[0]))


def ended_stage(line: str) -> str | None:
    """The stage that a line of `Display.end` tells to be done, ran or not; None for any other line."""
    words = line.split(maxsplit=2)
    return words[1] if len(words) > 1 and words[0] in ("✓", "=") else None


def in_words(seconds: float) -> str:
    """Such as `4.2 s`, `3:07` or `2:03:07`."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


display = Display()
"""The process has one terminal. Without `shown_on`, as in a deployment, nothing is shown."""
