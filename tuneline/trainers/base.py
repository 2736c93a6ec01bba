"""What every trainer shares: `transformers.Trainer` with one normalisation of the loss, exact metrics and prompt-tree
batches.

A trainer writes `loss(model, trees)`, one value an item (token, pair, sequence), and `num_items(trees)`. The loss of an
optimizer step is the sum over its items divided by their number in the whole step, over all micro-batches and
processes, so results do not depend on how a batch was cut.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import nullcontext
from typing import Any, Literal, TypeAlias

import torch
from datasets import Dataset, IterableDataset
from peft import PeftType
from torch import Tensor, nn
from transformers import (
    PreTrainedModel,
    PreTrainedTokenizerBase,
    PrinterCallback,
    ProcessorMixin,
    ProgressCallback,
    Trainer,
    TrainerCallback,
)
from transformers.trainer_utils import EvalLoopOutput

from tuneline.data.images import image_token_ids, tokenizer_of
from tuneline.data.tokenize import TokenizationReport, Tokenized
from tuneline.errors import ConfigError, DataError
from tuneline.logging import get_logger
from tuneline.metrics import Metrics, Recorded
from tuneline.models.adapters import check_adapter_acts
from tuneline.models.layouts import base_model, learns_a_prompt, policy_of, prepare_for_trees
from tuneline.models.loading import load_processor, load_tokenizer, reads_images, set_special_tokens, take_chat_template
from tuneline.models.padded import image_token_id
from tuneline.models.saved_names import take_saved_names
from tuneline.trainers.base_config import BaseConfig
from tuneline.trainers.older_names import taking_older_arguments
from tuneline.trainers.rich_progress import RichProgressCallback
from tuneline.trees import PromptTrees

logger = get_logger(__name__)

Rows: TypeAlias = Dataset | IterableDataset
Mode = Literal["train", "eval"]


class BaseTrainer(Trainer):
    """Base of all trainers. The constructor takes a model and rows that are ready; subclasses make them so."""

    loss_is_scaled_for_ga = True
    args: BaseConfig
    train_dataset: Any
    eval_dataset: Any

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if "__init__" in vars(cls):
            cls.__init__ = taking_older_arguments(cls.__init__)  # type: ignore[method-assign]

    def __init__(
        self,
        model: nn.Module,
        args: BaseConfig,
        tokenization_reports: dict[str, TokenizationReport] | None = None,
        **kwargs: Any,
    ):
        prepare_for_trees(model)
        take_saved_names(base_model(model))
        args.remove_unused_columns = False  # the collators know which columns they read
        args.include_num_input_tokens_seen = "no"  # counted here, from trees
        args.accelerator_config.dispatch_batches = False  # each process lays out its own rows of a stream
        self.tokenization_reports = tokenization_reports or {}
        self.mode: Mode = "train"
        self.metrics: dict[Mode, Metrics] = {"train": Metrics(), "eval": Metrics()}
        self._tokens_of_step = self._new_tokens = torch.zeros((), dtype=torch.long)
        self._counted = True
        super().__init__(model=model, args=args, **kwargs)
        if self.args.n_gpu > 1:
            raise ConfigError(
                f"one process sees {self.args.n_gpu} GPUs, and DataParallel is not supported; start one process a "
                "GPU with `accelerate launch`, or show it one with CUDA_VISIBLE_DEVICES."
            )
        if not (self.is_fsdp_enabled or self.is_deepspeed_enabled):  # whole weights, where they will train
            check_adapter_acts(self.model)
        self.add_callback(_StepEnd(self))
        if any(isinstance(one, RichProgressCallback) for one in self.callback_handler.callbacks):
            for other in (ProgressCallback, PrinterCallback):  # which would write across its panel
                self.remove_callback(other)

    # What a method writes

    def loss(self, model: nn.Module, trees: Any) -> Tensor:
        """(items,): the loss of each item of a batch, `PromptTrees` unless a trainer makes its own."""
        raise NotImplementedError

    def num_items(self, trees: Any) -> Tensor | int:
        """Items of a batch: what its loss is a mean over."""
        raise NotImplementedError

    def count_step(self, batches: list[Any]) -> None:
        """See all micro-batches of an optimizer step before the first of them is computed."""

    # What all share

    def get_batch_samples(
        self, epoch_iterator: Iterator[PromptTrees], num_batches: int, device: torch.device
    ) -> tuple[list[PromptTrees], Tensor]:
        if 0 < self.state.max_steps <= self.state.global_step:
            # resumed where it had ended: transformers would do one step more before it looks
            return [], torch.ones((), device=device)
        batches = [batch for _, batch in zip(range(num_batches), epoch_iterator, strict=False)]
        num_items = sum(torch.as_tensor(self.num_items(batch), device=device) for batch in batches)
        num_tokens = sum(batch.sequence_lengths.sum() for batch in batches)
        counts = torch.stack([torch.as_tensor(n, device=device) for n in (num_items, num_tokens)])
        num_items, num_tokens = self.accelerator.reduce(counts, "sum")
        self._tokens_of_step = num_tokens
        self.count_step(batches)
        return batches, num_items

    def compute_loss(
        self,
        model: nn.Module,
        inputs: PromptTrees,
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Any:
        with torch.autograd.graph.save_on_cpu() if self.args.activation_offloading else nullcontext():
            losses = self.loss(model, inputs)
        if num_items_in_batch is None:
            loss = losses.sum() / torch.as_tensor(self.num_items(inputs)).clamp(min=1)
        else:
            loss = (losses.sum() / num_items_in_batch * self.accelerator.num_processes).to(losses.dtype)
        return (loss, {}) if return_outputs else loss

    def prediction_step(
        self,
        model: nn.Module,
        inputs: Any,
        prediction_loss_only: bool,
        ignore_keys: list[str] | None = None,
    ) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        trees: PromptTrees = inputs.to(self.args.device)
        num_real = self._num_real_trees(len(trees))
        if 0 < num_real < len(trees):
            trees = trees.first(num_real)
        num_items = torch.as_tensor(self.num_items(trees), device=self.args.device)
        self._counted = num_real > 0
        with torch.no_grad(), self.compute_loss_context_manager():
            self.count_step([trees])
            losses = self.loss(model, trees)
        self.record({"loss": (losses.sum(), num_items)})
        self._counted = True
        return losses.sum() / num_items.clamp(min=1), None, None

    def _num_real_trees(self, num_trees: int) -> int:
        """Trees of an evaluation batch that are not repeats: the last batch is filled up so that all processes run
        alike."""
        state = self.accelerator.gradient_state
        if self.accelerator.num_processes == 1 or not state.end_of_dataloader or state.remainder <= 0:
            return num_trees
        before = self.accelerator.process_index * num_trees
        return min(max(state.remainder - before, 0), num_trees)

    def evaluation_loop(self, *args: Any, **kwargs: Any) -> EvalLoopOutput:
        self.mode = "eval"
        try:
            output = super().evaluation_loop(*args, **kwargs)
        finally:
            self.mode = "train"
        prefix = kwargs.get("metric_key_prefix", "eval")
        exact = self.flush_metrics("eval") | {"num_tokens": self.state.num_input_tokens_seen}
        output.metrics.update({f"{prefix}_{name}": value for name, value in exact.items()})
        return output

    def add_aux_loss(self, losses: Tensor, aux_loss: Tensor | None) -> Tensor:
        """(items,): losses with the load-balancing loss of a mixture of experts, weighed by the batch's share of the
        step."""
        if aux_loss is None or self.args.router_aux_loss_coef is None:
            return losses
        self.record({"aux_loss": aux_loss})
        return losses + self.args.router_aux_loss_coef * aux_loss

    def count_tokens(self) -> None:
        """Add the tokens of the step that has just been done; batches fetched and not trained on do not count."""
        self._new_tokens = self._new_tokens.to(self._tokens_of_step.device) + self._tokens_of_step

    def record(self, values: Mapping[str, Recorded]) -> None:
        """Add to the metrics of the current mode; see `Metrics.add`."""
        self.metrics[self.mode].add(values, counted=self._counted)

    def flush_metrics(self, mode: Mode) -> dict[str, float]:
        """What was recorded since the last call, over all processes; a method may add what follows from it."""
        return self.metrics[mode].flush(self.accelerator)

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        if "loss" in logs:
            self.state.num_input_tokens_seen += int(self._new_tokens)
            self._new_tokens = torch.zeros_like(self._new_tokens)
            logs.update(self.flush_metrics("train"))
            logs["num_tokens"] = self.state.num_input_tokens_seen
        super().log(logs, start_time)

    def floating_point_ops(self, inputs: Any) -> int:
        """6 a parameter and token, forward and backward, as transformers counts; prompts that are shared count once."""
        return 6 * inputs.num_tokens * sum(p.numel() for p in self.model.parameters())


class _StepEnd(TrainerCallback):
    """Counts the tokens of steps that were done, and makes a checkpoint a log line too.

    The running metrics are then empty at a checkpoint, so that a resumed run logs what the whole one did.
    """

    def __init__(self, trainer: BaseTrainer):
        self.trainer = trainer

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> Any:
        self.trainer.count_tokens()
        if control.should_save:
            control.should_log = True
        return control


# What the constructors share


def default_args(config_class: type, model: str | PreTrainedModel, method: str) -> Any:
    """A configuration with an output folder named after the model."""
    name = model if isinstance(model, str) else model.config.name_or_path
    return config_class(output_dir=f"{name.rstrip('/').split('/')[-1] or type(model).__name__}-{method}")


def ready_tokenizer(
    processing_class: Any,
    model: PreTrainedModel,
    args: Any,
    eos_token: str | None = None,
    chat_template_path: str | None = None,
    *,
    takes_images: bool = False,
) -> Any:
    """The tokenizer, with its special tokens; where the method takes images, the processor that holds it."""
    name, trust = model.config.name_or_path, args.trust_remote_code
    if processing_class is None and takes_images and reads_images(model.config):
        processing_class = load_processor(name, trust_remote_code=trust)
    elif processing_class is None:
        processing_class = load_tokenizer(name, trust_remote_code=trust)
    tokenizer = processing_class
    if isinstance(processing_class, ProcessorMixin):
        tokenizer = ready_processor(processing_class, model, args, takes_images)
    if not isinstance(tokenizer, PreTrainedTokenizerBase):
        raise ConfigError(f"processing_class is a {type(processing_class).__name__}; pass a tokenizer or a processor.")
    set_special_tokens(tokenizer, eos_token, args.pad_token)
    if chat_template_path is not None:
        take_chat_template(model, tokenizer, chat_template_path)
        processing_class.chat_template = tokenizer.chat_template
    for config in (model.config, model.config.get_text_config()):
        if getattr(config, "pad_token_id", None) is None:
            config.pad_token_id = tokenizer.pad_token_id
    return processing_class


def ready_processor(processor: ProcessorMixin, model: nn.Module, args: Any, takes_images: bool) -> Any:
    """The tokenizer of a processor that goes with the model.

    Raises:
        ConfigError: the method reads text alone, or the model and the processor name different image tokens.
    """
    if not takes_images:
        raise ConfigError(
            f"processing_class is a {type(processor).__name__}, and this method reads text alone; pass its tokenizer "
            "(processor.tokenizer). Images are read by SFT, DPO, KTO, GRPO and RLOO."
        )
    expected, given = image_token_id(model), image_token_ids(processor)
    if expected not in given:
        raise ConfigError(
            f"processing_class is a {type(processor).__name__} whose image tokens are {given}, and the model's "
            f"image_token_id is {expected}; pass the processor that belongs to the model."
        )
    # A batch without images leaves the part of the model that reads them without gradients.
    is_reentrant = (args.gradient_checkpointing_kwargs or {}).get("use_reentrant")
    if args.ddp_find_unused_parameters is None and not is_reentrant:
        args.ddp_find_unused_parameters = True
    tokenizer = tokenizer_of(processor)
    if tokenizer.chat_template is None:
        tokenizer.chat_template = processor.chat_template
    return tokenizer


def tokenize_all(
    tokenize: Callable[[Rows, bool], Tokenized], train_dataset: Rows | None, eval_dataset: Any
) -> tuple[Rows | None, Any, dict[str, TokenizationReport]]:
    """Tokenise the training set and the evaluation set or sets; what was cut or dropped is logged and returned."""
    reports = {}

    def one(name: str, rows: Rows | None) -> Rows | None:
        if rows is None:
            return None
        if not isinstance(rows, Dataset | IterableDataset):
            raise DataError(f"{name} is a {type(rows).__name__}; pass a datasets.Dataset or IterableDataset.")
        tokenized = tokenize(rows, name == "train_dataset")
        logger.info("%s: %s", name, tokenized.report.describe())
        reports[name] = tokenized.report
        return tokenized.dataset

    if isinstance(eval_dataset, Mapping):
        evaluation: Any = {key: one(f"eval_dataset[{key!r}]", rows) for key, rows in eval_dataset.items()}
    else:
        evaluation = one("eval_dataset", eval_dataset)
    return one("train_dataset", train_dataset), evaluation, reports


def reject_compute_metrics(compute_metrics: Any, preprocess_logits_for_metrics: Any) -> None:
    if compute_metrics is not None or preprocess_logits_for_metrics is not None:
        raise ConfigError(
            "compute_metrics and preprocess_logits_for_metrics read logits, which are never made; the metrics "
            "logged at each evaluation are exact over the whole set, and a callback's on_evaluate can add others."
        )


def check_prompt_learning(model: nn.Module, args: Any) -> None:
    """Raises:
    ConfigError: an adapter of virtual tokens that padded rows cannot serve either.
    """
    if not learns_a_prompt(model):
        return
    kind = policy_of(model).active_peft_config.peft_type
    if kind not in (PeftType.PROMPT_TUNING, PeftType.P_TUNING, PeftType.PREFIX_TUNING):
        raise ConfigError(
            f"{kind.value} wants more than tokens with each row; use prompt tuning, P-tuning, prefix tuning or LoRA."
        )
    if kind == PeftType.PREFIX_TUNING and args.gradient_checkpointing:
        raise ConfigError(
            "gradient_checkpointing=True (the default) drops the cache in which PREFIX_TUNING keeps what it learns; "
            "set it to False."
        )


def reject_prompt_learning(model: nn.Module, why: str) -> None:
    if learns_a_prompt(model):
        kind = policy_of(model).active_peft_config.peft_type.value
        raise ConfigError(f"{kind} puts virtual tokens before each sequence, and {why}; use LoRA, or SFT or DPO.")
