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
from transformers import GenerationConfig, TrainerCallback

from tuneline.advantages import combine_rewards
from tuneline.data.images import drawn_from, has_images, storable_image
from tuneline.errors import ConfigError
from tuneline.rewards.calling import Scores
from tuneline.trainers.answers import Answers, prompt_rows
from tuneline.trainers.base import BaseTrainer
from tuneline.trainers.drawing import Drawn

RolloutTable = dict[str, list]
_IMAGES = pa.list_(pa.struct([("bytes", pa.binary()), ("path", pa.string())]))  # as `datasets` stores them


def rollout_table(trainer: Any, drawn: Drawn, scores: Scores, rewards: Tensor, advantages: Tensor) -> RolloutTable:
    """All processes' rollouts, a list a column: `prompt`, `completion` (text), a column a reward function, `reward`,
    `advantage`, `num_tokens`, `is_finished`, what reward functions logged, and with `log_multimodal` the prompts'
    `images`, each as bytes or path. Every process must call it."""
    own: RolloutTable = {
        "prompt": [_text(row["prompt"]) for row in drawn.rows],
        "completion": [_written(completion) for completion in drawn.completions],
        "num_tokens": [len(rollout.completion_ids) for rollout in drawn.rollouts],
        "is_finished": [rollout.is_finished for rollout in drawn.rollouts],
        **scores.extras,
    }
    if trainer.args.log_multimodal and any(has_images(row) for row in drawn.rows):
        own["images"] = [[storable_image(image) for image in drawn_from(row)] for row in drawn.rows]
    if trainer.accelerator.num_processes > 1:
        parts = gather_object([own])
        names = dict.fromkeys(name for part in parts for name in part)
        own = {n: [v for part in parts for v in part.get(n, [None] * len(part["prompt"]))] for n in names}
    columns = {name: values.tolist() for name, values in zip(trainer.rewards.names, rewards.unbind(1), strict=True)}
    total = combine_rewards(rewards, trainer.rewards.weights).tolist()
    return {**own, **columns, "reward": total, "advantage": advantages.tolist()}


class CompletionsLog:
    """Prints samples of each generation and writes all of them to `output_dir/completions/`, a Parquet file a step.

    Args:
        num_to_print: samples printed; None for all.
        one_a_prompt: print one sample a prompt.
        name: what the files' names begin with.
    """

    def __init__(
        self, output_dir: str, *, num_to_print: int | None, one_a_prompt: bool = False, name: str = "completions"
    ):
        self.folder, self.name = Path(output_dir) / "completions", name
        self.num_to_print, self.one_a_prompt = num_to_print, one_a_prompt
        self.console = Console()
        self._step = -1
        self._tables: list[pa.Table] = []  # of this step, which may have several generations

    @classmethod
    def of(cls, args: Any) -> CompletionsLog:
        """As an online trainer's options have it."""
        return cls(args.output_dir, num_to_print=args.num_completions_to_print, one_a_prompt=args.log_unique_prompts)

    def __call__(self, step: int, table: RolloutTable) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        if step != self._step:
            self._step, self._tables = step, []
        columns: dict[str, Any] = {"step": [step] * len(table["prompt"]), **table}
        if "images" in table:
            columns["images"] = pa.array(table["images"], type=_IMAGES)
        self._tables.append(pa.table(columns))
        rows = pa.concat_tables(self._tables, promote_options="permissive")
        pq.write_table(rows, self.folder / f"{self.name}_{step:05d}.parquet")
        which = list(range(len(table["prompt"])))
        if self.one_a_prompt:
            which = list({table["prompt"][i]: i for i in reversed(which)}.values())
        measured = [name for name in ("reward", "advantage") if name in table]
        shown = Table("prompt", "completion", *measured, title=f"step {step}")
        for i in sorted(which)[: self.num_to_print]:
            numbers = (f"{table[name][i]:.3g}" for name in measured)
            shown.add_row(table["prompt"][i], table["completion"][i], *numbers)
        self.console.print(shown)


class LogCompletionsCallback(TrainerCallback):
    """Every few steps the policy answers the same prompts, by the same draws; the main process prints what it wrote
    and adds `output_dir/completions/evaluation_STEP.parquet`. Name and keywords are TRL's, which sends a table to two
    services instead.

    Args:
        trainer: whose evaluation set has the prompts.
        generation_config: see `Answers`.
        num_prompts: the first so many; None for all.
        freq: optimizer steps between two looks; None for the trainer's `eval_steps`.
        prompts: text or messages, instead of the evaluation set's.

    Raises:
        ConfigError: there are no prompts, or no frequency.
    """

    def __init__(
        self,
        trainer: BaseTrainer,
        generation_config: GenerationConfig | None = None,
        num_prompts: int | None = None,
        freq: int | None = None,
        prompts: list[Any] | None = None,
    ):
        rows = prompt_rows(trainer, num_prompts, prompts)
        self.prompts = [row["prompt"] for row in rows]
        if freq is not None and freq < 1:
            raise ConfigError(f"freq={freq} must be at least 1: optimizer steps between two looks.")
        if freq is None and not trainer.args.eval_steps:
            raise ConfigError("LogCompletionsCallback needs freq, as the trainer has no eval_steps.")
        self.freq = freq
        self.answers = Answers(trainer, rows, "completions log", generation_config)
        self.log = CompletionsLog(trainer.args.output_dir, num_to_print=None, name="evaluation")

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.is_world_process_zero and state.global_step % int(self.freq or state.eval_steps) == 0:
            written = [_written(completion) for completion in self.answers()]
            self.log(state.global_step, {"prompt": [_text(prompt) for prompt in self.prompts], "completion": written})


def _written(completion: Any) -> str:
    """The words of a single answer; a conversation with who says what."""
    return completion[0]["content"] if not isinstance(completion, str) and len(completion) == 1 else _text(completion)


def _text(value: Any) -> str:
    if isinstance(value, str):
        return value
    return "\n".join(f"{message['role']}: {_content(message)}" for message in value)


def _content(message: dict[str, Any]) -> Any:
    """What a message says, with `<image>` in the place of an image."""
    content = message.get("content")
    if isinstance(content, list):
        return "".join(part.get("text") or f"<{part['type']}>" for part in content)
    return content or message.get("tool_calls")
