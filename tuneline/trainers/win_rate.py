"""How often a judge prefers the policy in training to the policy as training began."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from transformers import GenerationConfig, TrainerCallback

from tuneline.errors import ConfigError
from tuneline.judges.base import BasePairwiseJudge
from tuneline.logging import get_logger
from tuneline.trainers.answers import Answers, prompt_rows
from tuneline.trainers.base import BaseTrainer

logger = get_logger(__name__)

BASELINE_FILE = "win_rate_baseline.json"


class WinRateCallback(TrainerCallback):
    """At each evaluation the policy answers some prompts, and a judge compares with what it answered when training
    began; `eval_win_rate` is its share of the verdicts, and pairs without one are left out and counted.

    The answers to beat are kept in `output_dir`, so that a resumed run compares with the same. The main process draws
    all of them, by the transformers engine.

    Args:
        trainer: whose evaluation set has the prompts.
        generation_config: see `Answers`.
        num_prompts: the first so many; None for all.
        shuffle_order: see `BasePairwiseJudge`.
        prompts: text or messages, instead of the evaluation set's.

    Raises:
        ConfigError: there are no prompts; or, on resuming, the answers to beat are missing.
    """

    def __init__(
        self,
        judge: BasePairwiseJudge,
        trainer: BaseTrainer,
        generation_config: GenerationConfig | None = None,
        num_prompts: int | None = None,
        shuffle_order: bool = True,
        prompts: list[Any] | None = None,
    ):
        self.judge, self.trainer, self.shuffle_order = judge, trainer, shuffle_order
        rows = prompt_rows(trainer, num_prompts, prompts)
        self.prompts = [row["prompt"] for row in rows]
        self.answers = Answers(trainer, rows, "win rate", generation_config)
        self.baseline: list[Any] = []

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if not state.is_world_process_zero:
            return
        path = Path(args.output_dir) / BASELINE_FILE
        if state.global_step == 0:
            self.baseline = self.answers()
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(json.dumps(self.baseline))
        elif path.is_file():
            self.baseline = json.loads(path.read_text())
        else:
            raise ConfigError(f"cannot resume: {path} is missing, which holds the answers to beat.")

    def on_evaluate(
        self, args: Any, state: Any, control: Any, metrics: dict[str, float] | None = None, **kwargs: Any
    ) -> None:
        if not state.is_world_process_zero or not self.baseline:
            return  # an evaluation before training has nothing to compare with
        pairs = [list(pair) for pair in zip(self.baseline, self.answers(), strict=True)]
        verdicts = self.judge.judge(self.prompts, pairs, self.shuffle_order)
        known = [verdict for verdict in verdicts if verdict in (0, 1)]
        if not known:
            logger.warning("the judge gave no verdict at step %d; there is no win rate", state.global_step)
            return
        found = {"eval_win_rate": sum(known) / len(known), "eval_win_rate_failures": 1 - len(known) / len(verdicts)}
        if metrics is not None:
            metrics.update(found)
        self.trainer.log(dict(found))
