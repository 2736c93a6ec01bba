"""What the configurations of all trainers share: TRL's defaults on transformers' `TrainingArguments`."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Any, ClassVar

from transformers import TrainingArguments
from transformers.utils import is_liger_kernel_available, is_torch_bf16_gpu_available

from tuneline.errors import ConfigError


def read_json_object(name: str, text: str) -> dict[str, Any]:
    """An option that was given as text, such as on a command line.

    Raises:
        ConfigError: it is no JSON object.
    """
    try:
        found = json.loads(text)
    except ValueError:
        found = None
    if not isinstance(found, dict):
        raise ConfigError(f"{name}={text!r} is no JSON object; write it like '{{\"name\": value}}'.")
    return found


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
        if self.use_liger_kernel and not is_liger_kernel_available():
            raise ConfigError(
                "use_liger_kernel=True needs the package liger-kernel, which is not installed (pip install "
                "liger-kernel, for a GPU with Triton); without it leave the option out: what it saves most, logits, is "
                "never made here anyway."
            )
        if self.bf16 is None:
            self.bf16 = not self.fp16 and not self.use_cpu and is_torch_bf16_gpu_available()
        if self.gradient_checkpointing and self.gradient_checkpointing_kwargs is None:
            self.gradient_checkpointing_kwargs: dict[str, Any] | str | None = {"use_reentrant": False}
        for name in self._VALID_DICT_FIELDS:
            given = getattr(self, name)
            if isinstance(given, str) and (given.startswith("{") or name.endswith("_kwargs")):
                read_json_object(name, given)  # so that transformers, which reads it too, meets none that is broken
        super().__post_init__()


@dataclass
class OfflineConfig(BaseConfig):
    """What the methods share that train a policy on completions written before."""

    learning_rate: float = field(default=1e-6, metadata={"help": "Peak learning rate of AdamW."})
    disable_dropout: bool = field(default=True, metadata={"help": "Train without dropout."})
    beta: float = field(default=0.1, metadata={"help": "Scale of the implicit rewards."})

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.beta <= 0:
            raise ConfigError(f"beta={self.beta} must be above 0; TRL's default is {type(self).beta}.")


@dataclass
class ReferenceConfig(OfflineConfig):
    """What the methods share that hold the policy near a reference."""

    beta: float = field(default=0.1, metadata={"help": "Strength of the pull towards the reference."})
    precompute_ref_log_probs: bool = field(
        default=False, metadata={"help": "Ask the reference once, before training, and free it."}
    )
    precompute_ref_batch_size: int | None = field(
        default=None, metadata={"help": "Rows a forward pass of the precomputation. None: the training batch size."}
    )
    sync_ref_model: bool = field(
        default=False, metadata={"help": "Move the reference towards the policy (TR-DPO, arXiv:2404.09656)."}
    )
    ref_model_mixup_alpha: float = field(default=0.6, metadata={"help": "The policy's share in a moved reference."})
    ref_model_sync_steps: int = field(
        default=512, metadata={"help": "Optimizer steps between two moves of the reference."}
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.sync_ref_model and self.precompute_ref_log_probs:
            raise ConfigError(
                "sync_ref_model=True moves the reference, so precompute_ref_log_probs=True cannot hold; drop one."
            )
