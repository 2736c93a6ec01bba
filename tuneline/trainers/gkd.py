"""Generalised knowledge distillation (Agarwal et al. 2023, arXiv:2306.13649, algorithm 1): the teacher's distributions
on completions of the student, of the data set or of the teacher.

Deviations from TRL 1.16: whose completion is learned from is decided row by row, where TRL decides for a micro-batch
as a whole, so that a step does not depend on how it was cut; and the mean is over the tokens learned from, where TRL
divides by the number of the data set's even if others took their place. As there, `temperature` is the sampling's, and
the loss compares distributions of temperature 1.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from datasets import Dataset, IterableDataset
from peft import PeftConfig, PeftModel
from transformers import PreTrainedModel, TrainerCallback

from tuneline.data.formats import to_messages
from tuneline.errors import ConfigError, DataError
from tuneline.rollout.protocol import RolloutEngine, rollout_seed
from tuneline.rollout.transformers_engine import TransformersEngine
from tuneline.trainers.base import Rows, default_args, reject_compute_metrics
from tuneline.trainers.distillation import TaughtTrainer
from tuneline.trainers.drawing import Drawn, draw, read_out, woven
from tuneline.trainers.gkd_config import GKDConfig


class GKDTrainer(TaughtTrainer):
    """A share `lmbda` of completions by the student, the others by the data set, or by the teacher with `seq_kd`.

    Args:
        teacher_model: a causal language model with the student's vocabulary, its name or folder; None for
            `teacher_model_name_or_path`. Each process keeps a whole copy.
        train_dataset, eval_dataset: rows with `messages`, of which the last is the completion, or with `prompt` and
            `completion`, text or messages; a `prompt` alone where the data set's completions are not read.
        data_collator: accepted from code written for TRL, and not used.

    For the other arguments and what is raised see `OnlineTrainer`.
    """

    args: GKDConfig
    config_class = GKDConfig
    method = "GKD"

    def __init__(
        self,
        model: str | PreTrainedModel | PeftModel,
        teacher_model: str | PreTrainedModel | None = None,
        args: GKDConfig | None = None,
        data_collator: Any = None,
        train_dataset: Rows | None = None,
        eval_dataset: Rows | dict[str, Rows] | None = None,
        processing_class: Any = None,
        compute_metrics: Any = None,
        callbacks: list[TrainerCallback] | None = None,
        optimizers: tuple[Any, Any] = (None, None),
        preprocess_logits_for_metrics: Any = None,
        peft_config: PeftConfig | None = None,
        formatting_func: Callable[..., Any] | None = None,
        quantization_config: Any = None,
        rollout_engine: RolloutEngine | None = None,
    ):
        reject_compute_metrics(compute_metrics, preprocess_logits_for_metrics)
        if formatting_func is not None:
            raise ConfigError("formatting_func is not called here; map it over the data set before.")
        config: GKDConfig = default_args(GKDConfig, model, self.method) if args is None else args
        self._reads_completions = config.lmbda < 1 and not config.seq_kd
        super().__init__(
            model=model,
            args=config,
            train_dataset=train_dataset,
            eval_dataset=eval_dataset,
            processing_class=processing_class,
            callbacks=callbacks,
            optimizers=optimizers,
            quantization_config=quantization_config,
            peft_config=peft_config,
            rollout_engine=rollout_engine,
        )
        self.take_teacher(teacher_model, trust_remote_code=config.trust_remote_code)
        self.teachers_engine = (
            TransformersEngine(self.local_teacher.model, max_cached_tokens=config.generation_tokens)
            if config.seq_kd and config.lmbda < 1
            else None
        )

    @property
    def divergence_temperature(self) -> float:
        return 1.0

    def ready_rows(self, name: str, rows: Any, tokenizer: Any) -> Any:
        rows = _with_completions(rows)
        rows = super().ready_rows(name, rows, tokenizer)
        for part in rows.values() if isinstance(rows, dict) else [rows]:
            names = None if part is None else part.column_names
            if self._reads_completions and names is not None and "completion" not in names:
                raise DataError(
                    f"{name} has the columns {names} and no 'completion' to learn from; add it, or set lmbda=1 or "
                    "seq_kd=True."
                )
        return rows

    def draw(self, rows: list[dict[str, Any]], seeds: list[int]) -> Drawn:
        a = self.args
        is_own = [rollout_seed(seed, "whose") < a.lmbda * 2**63 for seed in seeds]
        own = [i for i, yes in enumerate(is_own) if yes]
        others = [i for i, yes in enumerate(is_own) if not yes]
        self.record({"completions/on_policy_ratio": torch.tensor(is_own).float()})
        parts = []
        if own:
            parts.append((own, super().draw([rows[i] for i in own], [seeds[i] for i in own])))
        if others:
            given = [rows[i] for i in others]
            options: dict[str, Any] = {"chat_template_kwargs": a.template_kwargs, "max_length": a.max_length}
            if self.teachers_engine is None:
                drawn = read_out(self.processing_class, given, self.sampling, **options)
            else:
                engine, of_others = self.teachers_engine, [seeds[i] for i in others]
                with self.compute_loss_context_manager():
                    drawn = draw(engine, self.processing_class, given, of_others, self.sampling, **options)
            parts.append((others, drawn))
        return woven(rows, parts)


def _with_completions(rows: Any) -> Any:
    """Rows of `messages` as prompts and completions."""
    if isinstance(rows, dict):
        return {name: _with_completions(part) for name, part in rows.items()}
    if not isinstance(rows, Dataset | IterableDataset) or "messages" not in (rows.column_names or ()):
        return rows
    return rows.map(_split, remove_columns="messages")


def _split(row: dict[str, Any]) -> dict[str, Any]:
    messages = to_messages(row["messages"])
    if len(messages) < 2 or messages[-1]["role"] != "assistant":
        raise DataError(f"messages {messages!r:.100} do not end with an answer of the assistant; leave such rows out.")
    return {"prompt": messages[:-1], "completion": messages[-1:]}
