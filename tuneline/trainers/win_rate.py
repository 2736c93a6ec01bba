"""How often a judge prefers the policy in training to the policy as training began."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from transformers import GenerationConfig, TrainerCallback

from tuneline.errors import ConfigError
from tuneline.judges.base import BasePairwiseJudge
from tuneline.logging import get_logger
from tuneline.models.layouts import base_model, policy_of
from tuneline.rollout.protocol import Sampling, rollout_seed
from tuneline.rollout.stopping import stop_token_ids
from tuneline.rollout.transformers_engine import TransformersEngine
from tuneline.trainers.base import BaseTrainer
from tuneline.trainers.drawing import draw

logger = get_logger(__name__)

BASELINE_FILE = "win_rate_baseline.json"


class WinRateCallback(TrainerCallback):
    """At each evaluation the policy answers some prompts, and a judge compares with what it answered when training
    began; `eval_win_rate` is its share of the verdicts, and pairs without one are left out and counted.

    The answers to beat are kept in `output_dir`, so that a resumed run compares with the same. The main process draws
    all of them, by the transformers engine.

    Args:
        trainer: whose evaluation set has the prompts, where it keeps them as they are (the online trainers do).
        generation_config: max_new_tokens, do_sample, temperature, top_p and top_k are read; None for the likeliest
            tokens, at most 64.
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
        if prompts is None:
            rows = trainer.eval_dataset
            if rows is None or isinstance(rows, dict) or "prompt" not in (rows.column_names or ()):
                raise ConfigError("the trainer has no evaluation set with a column 'prompt'; pass prompts.")
            prompts = list(rows["prompt"])
        self.judge, self.trainer, self.shuffle_order = judge, trainer, shuffle_order
        self.prompts = prompts[:num_prompts]
        self.sampling = _sampling(generation_config, trainer)
        self.baseline: list[Any] = []

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if not state.is_world_process_zero:
            return
        path = Path(args.output_dir) / BASELINE_FILE
        if state.global_step == 0:
            self.baseline = self._answers()
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
        pairs = [list(pair) for pair in zip(self.baseline, self._answers(), strict=True)]
        verdicts = self.judge.judge(self.prompts, pairs, self.shuffle_order)
        known = [verdict for verdict in verdicts if verdict in (0, 1)]
        if not known:
            logger.warning("the judge gave no verdict at step %d; there is no win rate", state.global_step)
            return
        found = {"eval_win_rate": sum(known) / len(known), "eval_win_rate_failures": 1 - len(known) / len(verdicts)}
        if metrics is not None:
            metrics.update(found)
        self.trainer.log(dict(found))

    def _answers(self) -> list[Any]:
        policy = policy_of(self.trainer.model)
        seeds = [rollout_seed(self.trainer.args.seed, "win rate", i) for i in range(len(self.prompts))]
        rows = [{"prompt": prompt} for prompt in self.prompts]
        engine = TransformersEngine(policy)
        with self.trainer.compute_loss_context_manager():
            return draw(engine, self.trainer.processing_class, rows, seeds, self.sampling).completions


def _sampling(config: GenerationConfig | None, trainer: BaseTrainer) -> Sampling:
    stops = tuple(stop_token_ids(base_model(trainer.model), trainer.processing_class))
    if config is None:
        return Sampling(max_new_tokens=64, temperature=0.0, stop_token_ids=stops)
    return Sampling(
        max_new_tokens=64 if config.max_new_tokens is None else config.max_new_tokens,
        temperature=(1.0 if config.temperature is None else config.temperature) if config.do_sample else 0.0,
        top_p=1.0 if config.top_p is None else config.top_p,
        top_k=config.top_k or 0,
        stop_token_ids=stops,
    )
