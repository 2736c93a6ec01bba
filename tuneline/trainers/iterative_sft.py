"""Fine-tuning step by step: the caller brings the texts of each step, such as its own samples that it has filtered.

Deviations from TRL's trainer: labels are read (TRL's collator made them anew), and padding is told by the mask and not
by its token id.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel, TrainerState, TrainingArguments

from tuneline.data.rendering import tokenize_texts
from tuneline.errors import ConfigError, DataError
from tuneline.logging import get_logger
from tuneline.trainers.base import Rows, default_args, reject_compute_metrics
from tuneline.trainers.collators import Row
from tuneline.trainers.iterative_sft_config import IterativeSFTConfig
from tuneline.trainers.sft import SFTTrainer
from tuneline.trees import PromptTrees

logger = get_logger(__name__)
Tokens = Sequence[int] | Tensor


class IterativeSFTTrainer(SFTTrainer):
    """`SFTTrainer` without a data set: `step` trains on what it is given; the items are target tokens.

    Args:
        model: a name or folder, a model, or a PEFT model.
        eval_dataset: as `SFTTrainer`'s; evaluated every `eval_steps` where `eval_strategy` is "steps".

    Raises:
        ConfigError, DataError, ModelError: before any training.
    """

    args: IterativeSFTConfig
    optimizer: Any
    control: Any

    def __init__(
        self,
        model: str | PreTrainedModel,
        args: IterativeSFTConfig | TrainingArguments | None = None,
        data_collator: Callable[[list[Row]], PromptTrees] | None = None,
        eval_dataset: Rows | dict[str, Rows] | None = None,
        processing_class: Any = None,
        optimizers: tuple[Any, Any] = (None, None),
        preprocess_logits_for_metrics: None = None,
        compute_metrics: None = None,
    ):
        if args is None:
            args = default_args(IterativeSFTConfig, model, "IterativeSFT")
        elif not isinstance(args, IterativeSFTConfig):
            known = IterativeSFTConfig.__dataclass_fields__
            args = IterativeSFTConfig(**{name: value for name, value in args.to_dict().items() if name in known})
        reject_compute_metrics(compute_metrics, preprocess_logits_for_metrics)
        super().__init__(
            model,
            args,
            data_collator,
            eval_dataset=eval_dataset,
            processing_class=processing_class,
            optimizers=optimizers,
        )
        if self.args.gradient_checkpointing:
            self.model.gradient_checkpointing_enable(gradient_checkpointing_kwargs=args.gradient_checkpointing_kwargs)
        self.create_optimizer_and_scheduler(args.max_steps)
        self.model_wrapped, self.optimizer = self.accelerator.prepare(self.model, self.optimizer)
        self.state.max_steps = args.max_steps
        self.state.compute_steps(args, args.max_steps)
        self._has_begun, self._step_of_last_log = False, 0
        self._loss_since_log = torch.zeros((), device=args.device)

    def step(
        self,
        input_ids: Sequence[Tokens] | None = None,
        attention_mask: Sequence[Tokens] | None = None,
        labels: Sequence[Tokens] | None = None,
        texts: Sequence[str] | None = None,
        texts_labels: None = None,
    ) -> None:
        """Train once on each of the given texts or token ids, in an order drawn from the seed and the step.

        That is an optimizer step for every `per_device_train_batch_size * gradient_accumulation_steps` of them; under
        several processes each brings its own, as many as the others.

        Args:
            input_ids: of one text each.
            attention_mask: 1 for each token that is no padding.
            labels: the token ids, or -100 where a token is no target; None for all.
            texts: in place of `input_ids`; no end token is added.

        Raises:
            ConfigError: no such arguments, or all `max_steps` have been done.
            DataError: a text is of no such form, or has no target.
        """
        if (input_ids is None) == (texts is None):
            raise ConfigError("step() takes either input_ids or texts; give one of the two.")
        if texts_labels is not None:
            raise ConfigError("texts_labels are for encoder-decoders; give input_ids with labels.")
        rows = self._rows_of_texts(texts) if texts is not None else _rows_of_ids(input_ids, attention_mask, labels)
        rows = [self._cut(row, i) for i, row in enumerate(rows)]
        generator = torch.Generator().manual_seed(self.args.seed + self.state.global_step)
        order = torch.randperm(len(rows), generator=generator).tolist()
        size, together = self.args.per_device_train_batch_size, self.args.gradient_accumulation_steps
        groups = [[rows[i] for i in order[start : start + size]] for start in range(0, len(rows), size)]
        for start in range(0, len(groups), together):
            self._optimize(groups[start : start + together])
        if self.args.optimize_device_cache and torch.cuda.is_available():
            torch.cuda.empty_cache()

    def resume(self, checkpoint: str | Path) -> None:
        """Go on from a checkpoint that a trainer with the same options wrote."""
        state = Path(checkpoint) / "trainer_state.json"
        if not state.is_file():
            raise ConfigError(f"cannot resume: {state} is missing; name a folder checkpoint-N that step() wrote.")
        self.state = TrainerState.load_from_json(str(state))
        self._load_from_checkpoint(str(checkpoint), self.model_wrapped)
        self._load_optimizer_and_scheduler(str(checkpoint))
        self._load_rng_state(str(checkpoint))
        self._step_of_last_log = self.state.global_step

    def _rows_of_texts(self, texts: Sequence[str]) -> list[Row]:
        if wrong := [type(text).__name__ for text in texts if not isinstance(text, str)]:
            raise DataError(f"texts has a {wrong[0]}; give strings.")
        return [{"input_ids": ids, "is_target": [1] * len(ids)} for ids in tokenize_texts(self.processing_class, texts)]

    def _cut(self, row: Row, number: int) -> Row:
        longest = self.args.max_length
        if longest is not None and len(row["input_ids"]) > longest:
            logger.info("text %d has %d tokens and is cut to %d", number, len(row["input_ids"]), longest)
            kept = slice(None, longest) if self.args.truncation_mode == "keep_start" else slice(-longest, None)
            row = {name: values[kept] for name, values in row.items()}
        if not any(row["is_target"][1:]):
            raise DataError(f"text {number} of this step has no token to learn from; leave it out.")
        return row

    def _optimize(self, groups: list[list[Row]]) -> None:
        """One optimizer step on micro-batches of rows."""
        if self.state.global_step >= self.args.max_steps:
            raise ConfigError(
                f"all max_steps={self.args.max_steps} optimizer steps are done, and the learning rate has come to its "
                "end; make the trainer with more."
            )
        if not self._has_begun:
            self._has_begun = True
            self.callback_handler.optimizer, self.callback_handler.lr_scheduler = self.optimizer, self.lr_scheduler
            self.control = self.callback_handler.on_train_begin(self.args, self.state, self.control)
        self.control = self.callback_handler.on_step_begin(self.args, self.state, self.control)
        collated = iter([self.data_collator(group) for group in groups])
        batches, num_items = self.get_batch_samples(collated, len(groups), self.args.device)
        for i, trees in enumerate(batches):
            with nullcontext() if i == len(batches) - 1 else self.accelerator.no_sync(self.model_wrapped):
                self._loss_since_log += self.training_step(self.model_wrapped, trees.to(self.args.device), num_items)
        longest = self.args.max_grad_norm if self.args.max_grad_norm > 0 else float("inf")
        grad_norm = self.accelerator.clip_grad_norm_(self.model_wrapped.parameters(), longest)
        self.optimizer.step()
        learning_rate = self.optimizer.param_groups[0]["lr"]
        if not self.accelerator.optimizer_step_was_skipped:
            self.lr_scheduler.step()
        self.model_wrapped.zero_grad()
        self.state.global_step += 1
        self.control = self.callback_handler.on_step_end(self.args, self.state, self.control)
        self._log_evaluate_and_save(grad_norm, learning_rate)

    def _log_evaluate_and_save(self, grad_norm: Tensor, learning_rate: float) -> None:
        if self.control.should_log:
            loss = self.accelerator.reduce(self._loss_since_log, "mean").item()
            num_steps = self.state.global_step - self._step_of_last_log
            self.log({"loss": loss / num_steps, "grad_norm": float(grad_norm), "learning_rate": learning_rate})
            self._loss_since_log = torch.zeros_like(self._loss_since_log)
            self._step_of_last_log = self.state.global_step
        if self.control.should_evaluate and self.eval_dataset is not None:
            self.evaluate()
        if self.control.should_save:
            self._save_checkpoint(self.model_wrapped, trial=None)
            self.control = self.callback_handler.on_save(self.args, self.state, self.control)


def _rows_of_ids(input_ids: Any, attention_mask: Any, labels: Any) -> list[Row]:
    masks = attention_mask if attention_mask is not None else [[1] * len(ids) for ids in input_ids]
    targets = labels if labels is not None else input_ids
    if not len(input_ids) == len(masks) == len(targets):
        raise DataError(f"step() got {len(input_ids)} input_ids, {len(masks)} masks and {len(targets)} labels.")
    rows = []
    for i, (ids, mask, label) in enumerate(zip(input_ids, masks, targets, strict=True)):
        ids, mask, label = (torch.as_tensor(values).tolist() for values in (ids, mask, label))
        if not len(ids) == len(mask) == len(label):
            raise DataError(f"text {i} has {len(ids)} input_ids, a mask of {len(mask)} and {len(label)} labels.")
        if any(given not in (token, -100) for token, given in zip(ids, label, strict=True)):
            raise DataError(f"text {i} has labels that are neither its tokens nor -100, which leaves a token out.")
        shown = [(token, int(given != -100)) for token, given, m in zip(ids, label, mask, strict=True) if m]
        rows.append({"input_ids": [t for t, _ in shown], "is_target": [target for _, target in shown]})
    return rows
