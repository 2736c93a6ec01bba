"""TRL's trainer and ours on the same tiny model and rows."""

from collections.abc import Iterator
from contextlib import contextmanager
from copy import deepcopy
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import torch
from datasets import Dataset
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

import tuneline
from tests.data import tiny_tokenizers
from tests.trainers.rows import character_tokenizer

# short, since what float32 leaves uncertain in a summed log-probability grows with it
PAIRS = [
    {"prompt": "two and two?", "chosen": " four.", "rejected": " five or so"},
    {"prompt": "a very much longer question than the first one, is it not?", "chosen": " yes it is", "rejected": " no"},
    {"prompt": "of equal length?", "chosen": " left", "rejected": " same"},  # both 5 tokens
    {"prompt": "begin alike?", "chosen": " the answer is 1", "rejected": " the answer is 20"},
    {
        "prompt": "?",
        "chosen": "a",
        "rejected": " a long tail",
    },  # the shortest prompt and completion
    {"prompt": "last one", "chosen": " good bye", "rejected": " bye"},
]
MARGINS = [0.0, 0.5, 1.0, 0.25, 2.0, 0.1]


class Outcome(NamedTuple):
    loss: float
    gradients: dict[str, Tensor]  # a parameter's name: what it would move by


def make(
    library: ModuleType,
    method: str,
    model: nn.Module,
    folder: Path,
    rows: Dataset,
    *,
    ref_model: nn.Module | None = None,
    tokenizer: PreTrainedTokenizerBase | None = None,
    **options: Any,
) -> Any:
    """The trainer of a method as a user of either library makes it; `options` go to its configuration."""
    settings: dict[str, Any] = {
        "output_dir": str(folder / library.__name__),
        "per_device_train_batch_size": len(PAIRS),
        "train_sampling_strategy": "sequential",
        "gradient_checkpointing": False,
        "bf16": False,
        "use_cpu": True,
        "report_to": "none",
        "save_strategy": "no",
        "logging_steps": 1,
        "disable_tqdm": True,
        **options,
    }
    reference = {} if ref_model is None else {"ref_model": deepcopy(ref_model)}
    return getattr(library, f"{method}Trainer")(
        model=deepcopy(model),
        args=getattr(library, f"{method}Config")(**settings),
        train_dataset=rows,
        processing_class=tokenizer or character_tokenizer(),
        **reference,
    )


def train(
    library: ModuleType, method: str, model: nn.Module, folder: Path, rows: Dataset, **options: Any
) -> tuple[Outcome, dict[str, float]]:
    """Plain descent, one step unless `options` say more: how each weight moved at rate 1, and the last log line.

    At a rate this high the weights move by much more than their rounding.
    """
    descent: dict[str, Any] = {
        "optim": "sgd",
        "learning_rate": 100.0,
        "lr_scheduler_type": "constant",
        "max_grad_norm": 0.0,
        "max_steps": 1,
    }
    trainer = make(library, method, model, folder, rows, **{**descent, **options})
    trained = {name: parameter for name, parameter in trainer.model.named_parameters() if parameter.requires_grad}
    before = {name: parameter.detach().clone() for name, parameter in trained.items()}
    trainer.train()
    line = [line for line in trainer.state.log_history if "loss" in line][-1]
    rate = trainer.args.learning_rate
    return Outcome(line["loss"], {name: (before[name] - trained[name].detach()) / rate for name in trained}), line


def evaluate_batch(trainer: Any) -> Outcome:
    """Loss and gradients of the trainer's first batch, without a step."""
    trainer.model.zero_grad()
    batch = next(iter(trainer.get_train_dataloader()))
    if isinstance(trainer, tuneline.trainers.base.BaseTrainer):
        [batch], num_items = trainer.get_batch_samples(iter([batch]), 1, trainer.args.device)
        loss = trainer.compute_loss(trainer.model, batch, num_items_in_batch=num_items)
    else:
        loss = trainer.compute_loss(trainer.model, batch)
    loss.backward()
    return Outcome(
        loss.item(), {name: p.grad.clone() for name, p in trainer.model.named_parameters() if p.grad is not None}
    )


@contextmanager
def settings(thing: Any, **values: Any) -> Iterator[None]:
    """Attributes set for a while."""
    before = {name: getattr(thing, name) for name in values}
    for name, value in values.items():
        setattr(thing, name, value)
    try:
        yield
    finally:
        for name, value in before.items():
            setattr(thing, name, value)


def assert_same(ours: Outcome, theirs: Outcome, tolerance: float = 1e-5) -> None:
    """Loss and gradients within the tolerance, relative to the loss and to the largest of all gradients."""
    assert abs(ours.loss - theirs.loss) <= tolerance * abs(theirs.loss), (ours.loss, theirs.loss)
    assert ours.gradients.keys() == theirs.gradients.keys()
    largest = max(gradient.abs().max().item() for gradient in theirs.gradients.values())
    assert largest > 0, "no gradient to compare"
    for name, expected in theirs.gradients.items():
        difference = (ours.gradients[name] - expected).abs().max().item()
        assert difference <= tolerance * largest, (name, difference, largest)


def chat_tokenizer() -> PreTrainedTokenizerBase:
    """One token a character, and a chat template that marks what the assistant says."""
    return tiny_tokenizers.character_tokenizer(tiny_tokenizers.CHATML_WITH_MARKS)


def as_dialogue(row: dict[str, str]) -> dict[str, Any]:
    role_of = {"prompt": "user", "completion": "assistant", "chosen": "assistant", "rejected": "assistant"}
    return {column: [{"role": role_of[column], "content": text}] for column, text in row.items()}


def nudged(model: nn.Module, by: float = 0.005) -> nn.Module:
    """A copy whose weights differ a little, as a reference's do after some training of the policy."""
    copy = deepcopy(model)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in copy.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=by)
    return copy
