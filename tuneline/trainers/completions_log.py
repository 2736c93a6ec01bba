"""Rollouts as a table: what was asked, written, rewarded and made of it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from accelerate.utils import gather_object
from rich.console import Console
from rich.table import Table
from torch import Tensor

from tuneline.advantages import combine_rewards
from tuneline.rewards.calling import Scores
from tuneline.trainers.drawing import Drawn

RolloutTable = dict[str, list]


def rollout_table(trainer: Any, drawn: Drawn, scores: Scores, rewards: Tensor, advantages: Tensor) -> RolloutTable:
    """All processes' rollouts, a list a column: `prompt`, `completion` (text), a column a reward function, `reward`,
    `advantage`, `num_tokens`, `is_finished`, and what reward functions logged. Every process must call it."""
    own: RolloutTable = {
        "prompt": [_text(row["prompt"]) for row in drawn.rows],
        "completion": [_written(completion) for completion in drawn.completions],
        "num_tokens": [len(rollout.completion_ids) for rollout in drawn.rollouts],
        "is_finished": [rollout.is_finished for rollout in drawn.rollouts],
        **scores.extras,
    }
    if trainer.accelerator.num_processes > 1:
        parts = gather_object([own])
        names = dict.fromkeys(name for part in parts for name in part)
        own = {n: [v for part in parts for v in part.get(n, [None] * len(part["prompt"]))] for n in names}
    columns = {name: values.tolist() for name, values in zip(trainer.rewards.names, rewards.unbind(1), strict=True)}
    total = combine_rewards(rewards, trainer.rewards.weights).tolist()
    return {**own, **columns, "reward": total, "advantage": advantages.tolist()}


class CompletionsLog:
    """Prints samples of each generation and writes all of them to `output_dir/completions/`, a Parquet file a step."""

    def __init__(self, args: Any):
        self.args = args
        self.console = Console()
        self._step = -1
        self._tables: list[pa.Table] = []  # of this step, which may have several generations

    def __call__(self, step: int, table: RolloutTable) -> None:
        folder = Path(self.args.output_dir) / "completions"
        folder.mkdir(parents=True, exist_ok=True)
        if step != self._step:
            self._step, self._tables = step, []
        self._tables.append(pa.table({"step": [step] * len(table["prompt"]), **table}))
        rows = pa.concat_tables(self._tables, promote_options="permissive")
        pq.write_table(rows, folder / f"completions_{step:05d}.parquet")
        which = list(range(len(table["prompt"])))
        if self.args.log_unique_prompts:
            which = list({table["prompt"][i]: i for i in reversed(which)}.values())
        shown = Table("prompt", "completion", "reward", "advantage", title=f"step {step}")
        for i in sorted(which)[: self.args.num_completions_to_print]:
            numbers = (f"{table[name][i]:.3g}" for name in ("reward", "advantage"))
            shown.add_row(table["prompt"][i], table["completion"][i], *numbers)
        self.console.print(shown)


def _written(completion: Any) -> str:
    """The words of a single answer; a conversation with who says what."""
    return completion[0]["content"] if not isinstance(completion, str) and len(completion) == 1 else _text(completion)


def _text(value: Any) -> str:
    if isinstance(value, str):
        return value
    return "\n".join(f"{message['role']}: {message.get('content') or message.get('tool_calls')}" for message in value)
