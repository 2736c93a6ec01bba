"""What the configurations of all trainers share: TRL's defaults on transformers' `TrainingArguments`."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, ClassVar

from transformers import TrainingArguments
from transformers.utils import is_torch_bf16_gpu_available


@dataclass
class BaseConfig(TrainingArguments):
    """`TrainingArguments` with the defaults that TRL 1.16 gives its trainers."""

    _VALID_DICT_FIELDS: ClassVar[list[str]] = [*TrainingArguments._VALID_DICT_FIELDS, "model_init_kwargs"]

    logging_steps: float = field(default=10, metadata={"help": "Optimizer steps between two log lines."})
    gradient_checkpointing: bool = field(
        default=True, metadata={"help": "Compute activations again in the backward pass rather than keep them."}
    )
    bf16: bool | None = field(
        default=None,
        metadata={"help": "bfloat16 autocast over float32 weights. None: on a GPU that has it, unless fp16 is on."},
    )
    model_init_kwargs: dict[str, Any] | str | None = field(
        default=None, metadata={"help": "Keywords for `from_pretrained`, when the model is given by name."}
    )
    trust_remote_code: bool = field(
        default=False, metadata={"help": "Let a model or tokenizer given by name run code from its repository."}
    )
    router_aux_loss_coef: float | None = field(
        default=None, metadata={"help": "Weight of a mixture-of-experts model's load-balancing loss. None: none."}
    )
    dataset_num_proc: int | None = field(default=None, metadata={"help": "Processes that tokenise the data set."})
    max_length: int | None = field(
        default=1024,
        metadata={"help": "Longest sequence in tokens; what is cut or dropped is counted. None: no limit."},
    )
    pad_token: str | None = field(
        default=None,
        metadata={"help": "Padding token, where a padded layout is needed. None: the tokenizer's, or its EOS."},
    )
    pad_to_multiple_of: int | str | None = field(
        default="auto", metadata={"help": "Accepted from TRL's configurations; rows of prompt trees have no padding."}
    )
    activation_offloading: bool = field(
        default=False, metadata={"help": "Keep the activations that the backward pass needs in the CPU's memory."}
    )

    def __post_init__(self) -> None:
        if self.bf16 is None:
            self.bf16 = not self.fp16 and not self.use_cpu and is_torch_bf16_gpu_available()
        if self.gradient_checkpointing and self.gradient_checkpointing_kwargs is None:
            self.gradient_checkpointing_kwargs: dict[str, Any] | str | None = {"use_reentrant": False}
        super().__post_init__()
