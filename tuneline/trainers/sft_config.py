"""Configuration of supervised fine-tuning."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

from transformers import TrainingArguments

from tuneline.errors import ConfigError
from tuneline.trainers.base_config import BaseConfig
from tuneline.trainers.older_names import takes_older_options


@takes_older_options
@dataclass
class SFTConfig(BaseConfig):
    """Options of `SFTTrainer`: names and defaults of TRL 1.16."""

    _VALID_DICT_FIELDS: ClassVar[list[str]] = [
        *TrainingArguments._VALID_DICT_FIELDS,
        "model_init_kwargs",
        "dataset_kwargs",
    ]

    learning_rate: float = field(default=2e-5, metadata={"help": "Peak learning rate of AdamW."})
    chat_template_path: str | None = field(
        default=None, metadata={"help": "A .jinja file, or a tokenizer whose chat template and special tokens to take."}
    )
    dataset_text_field: str = field(default="text", metadata={"help": "Column that holds plain texts."})
    dataset_kwargs: dict[str, Any] | str | None = field(
        default=None, metadata={"help": "`{'skip_prepare_dataset': True}` takes tokenised rows as they are."}
    )
    eos_token: str | None = field(default=None, metadata={"help": "Token that ends a text. None: the tokenizer's."})
    truncation_mode: Literal["keep_start", "keep_end"] = field(
        default="keep_start", metadata={"help": "Which end of a sequence over max_length is kept."}
    )
    shuffle_dataset: bool = field(default=False, metadata={"help": "Shuffle the rows once, before packing."})
    packing: bool = field(default=False, metadata={"help": "Join short sequences into rows of max_length tokens."})
    packing_strategy: Literal["bfd", "bfd_split", "wrapped"] = field(
        default="bfd",
        metadata={"help": "bfd: best fit decreasing; bfd_split: splits what is too long; wrapped: one stream, cut."},
    )
    padding_free: bool = field(
        default=False, metadata={"help": "Accepted from TRL's configurations; rows of prompt trees have no padding."}
    )
    eval_packing: bool | None = field(
        default=None, metadata={"help": "Packing of the evaluation set. None: as packing."}
    )
    completion_only_loss: bool | None = field(
        default=None, metadata={"help": "Only completions are targets. None: for prompt-completion data."}
    )
    assistant_only_loss: bool = field(
        default=False, metadata={"help": "Only what the assistant says is a target; its template marks it."}
    )
    loss_type: Literal["nll", "dft"] = field(
        default="nll", metadata={"help": "Negative log-likelihood, or dynamic fine-tuning (arXiv:2508.05629)."}
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.loss_type not in ("nll", "dft"):
            raise ConfigError(f"loss_type={self.loss_type!r} is unknown; use 'nll' or 'dft'.")
        if self.packing and self.max_length is None:
            raise ConfigError("packing=True needs max_length, the number of tokens of a packed row; it is None.")
