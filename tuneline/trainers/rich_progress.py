"""Progress and the newest metrics as one live panel in the terminal."""

from __future__ import annotations

from typing import Any

from rich.columns import Columns
from rich.console import Console, Group
from rich.live import Live
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn
from rich.table import Table
from transformers import TrainerCallback
from transformers.trainer_utils import has_length


class RichProgressCallback(TrainerCallback):
    """Bars for training and evaluation above the metrics that were logged last, those of one prefix (`rewards/`)
    together. It stands in for the progress bar of transformers where it is passed in `callbacks`.

    Args:
        console: where it is drawn; None for the terminal.
    """

    def __init__(self, console: Console | None = None):
        self.console = console or Console()
        self.metrics: dict[str, Any] = {}
        self._progress: Progress | None = None
        self._live: Live | None = None
        self._training: TaskID | None = None
        self._evaluation: TaskID | None = None

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.is_world_process_zero:
            self._start()
            assert self._progress is not None
            self._training = self._progress.add_task("training", total=state.max_steps, completed=state.global_step)

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self._progress is not None and self._training is not None:
            self._progress.update(self._training, completed=state.global_step)

    def on_prediction_step(
        self, args: Any, state: Any, control: Any, eval_dataloader: Any = None, **kwargs: Any
    ) -> None:
        if not state.is_world_process_zero:
            return
        self._start()  # evaluate() may be called without training
        assert self._progress is not None
        if self._evaluation is None:
            total = len(eval_dataloader) if has_length(eval_dataloader) else None
            self._evaluation = self._progress.add_task("evaluation", total=total)
            self._redraw()
        self._progress.advance(self._evaluation)

    def on_evaluate(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self._progress is not None and self._evaluation is not None:
            self._progress.remove_task(self._evaluation)
            self._evaluation = None
        if self._training is None:
            self._stop()

    def on_predict(self, args: Any, state: Any, control: Any, metrics: Any = None, **kwargs: Any) -> None:
        self.on_evaluate(args, state, control)

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **kwargs: Any) -> None:
        if not state.is_world_process_zero or not logs:
            return
        self.metrics = {name: value for name, value in logs.items() if name != "total_flos"}
        if self._live is not None:
            assert self._progress is not None
            self._live.update(Group(self._progress, self._tables(state.global_step)))

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._training = None
        self._stop()

    def _start(self) -> None:
        if self._live is None:
            bars = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
            self._progress = Progress(*bars, console=self.console)
            self._live = Live(self._progress, console=self.console)
            self._live.start()

    def _redraw(self) -> None:
        assert self._live is not None
        self._live.refresh()  # a short evaluation would be over before the next frame

    def _stop(self) -> None:
        if self._live is not None:
            self._live.stop()
        self._live = self._progress = self._evaluation = None

    def _tables(self, step: int) -> Columns:
        groups: dict[str, list[tuple[str, Any]]] = {}
        for name, value in self.metrics.items():
            group, slash, rest = name.partition("/")
            groups.setdefault(group if slash else "", []).append((rest if slash else name, value))
        tables = []
        for group, values in groups.items():
            table = Table(title=group or f"step {step}", show_header=False)
            for name, value in values:
                table.add_row(name, f"{value:.4g}" if isinstance(value, float) else str(value))
            tables.append(table)
        return Columns(tables)
