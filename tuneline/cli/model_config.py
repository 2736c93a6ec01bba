"""Options of a model on the command line: names and defaults of TRL 1.16's `ModelConfig`."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from peft import LoraConfig, PeftConfig

from tuneline.errors import ConfigError

DTYPES = ("auto", "bfloat16", "float16", "float32")


@dataclass
class ModelConfig:
    """Which model to load, and whether to train an adapter on it.

    Raises:
        ConfigError: a dtype that is none, or both quantisations.
    """

    model_name_or_path: str | None = field(default=None, metadata={"help": "Name or folder of the model."})
    model_revision: str = field(default="main", metadata={"help": "Branch, tag or commit of the model on a hub."})
    dtype: str | None = field(
        default="float32", metadata={"help": "What the weights are loaded in.", "choices": DTYPES}
    )
    attn_implementation: str | None = field(
        default=None, metadata={"help": "Attention of calls on padded rows. None: transformers chooses."}
    )
    use_peft: bool = field(default=False, metadata={"help": "Train a LoRA adapter instead of the model."})
    lora_r: int = field(default=16, metadata={"help": "Rank of the adapter."})
    lora_alpha: int = field(default=32, metadata={"help": "Scale of the adapter, times the rank."})
    lora_dropout: float = field(default=0.05, metadata={"help": "Dropout before the adapter."})
    lora_target_modules: list[str] | None = field(
        default=None, metadata={"help": "Modules that get an adapter, or `all-linear`. None: peft's for the model."}
    )
    lora_target_parameters: list[str] | None = field(
        default=None, metadata={"help": "Parameters that get one, such as those of experts."}
    )
    lora_modules_to_save: list[str] | None = field(
        default=None, metadata={"help": "Modules that are trained whole, and saved with the adapter."}
    )
    lora_task_type: str = field(
        default="CAUSAL_LM", metadata={"help": "Kind of model for peft; a reward model's is always SEQ_CLS."}
    )
    use_rslora: bool = field(default=False, metadata={"help": "Scale by the root of the rank (arXiv:2312.03732)."})
    use_dora: bool = field(
        default=False, metadata={"help": "Weight-decomposed adapters, of magnitude and direction (arXiv:2402.09353)."}
    )
    load_in_8bit: bool = field(default=False, metadata={"help": "Quantise the frozen weights to 8 bits."})
    load_in_4bit: bool = field(default=False, metadata={"help": "Quantise the frozen weights to 4 bits (QLoRA)."})
    bnb_4bit_quant_type: str = field(
        default="nf4", metadata={"help": "The values that 4 bits stand for.", "choices": ("fp4", "nf4")}
    )
    use_bnb_nested_quant: bool = field(default=False, metadata={"help": "Quantise the scales of 4-bit blocks too."})
    bnb_4bit_quant_storage: str | None = field(default=None, metadata={"help": "Type that holds packed 4-bit values."})

    def __post_init__(self) -> None:
        if self.dtype is not None and self.dtype not in DTYPES:
            raise ConfigError(f"dtype={self.dtype!r} is unknown; use {', '.join(DTYPES)}.")
        if self.load_in_8bit and self.load_in_4bit:
            raise ConfigError("load_in_8bit and load_in_4bit exclude each other; drop one.")
        # peft takes `all-linear`, and a pattern, as a string
        if isinstance(self.lora_target_modules, list) and len(self.lora_target_modules) == 1:
            self.lora_target_modules = self.lora_target_modules[0]  # type: ignore[assignment]


def get_peft_config(model_args: ModelConfig) -> PeftConfig | None:
    """The adapter that the options ask for, or None."""
    if not model_args.use_peft:
        return None
    return LoraConfig(
        task_type=model_args.lora_task_type,
        r=model_args.lora_r,
        lora_alpha=model_args.lora_alpha,
        lora_dropout=model_args.lora_dropout,
        target_modules=model_args.lora_target_modules,
        target_parameters=model_args.lora_target_parameters,
        modules_to_save=model_args.lora_modules_to_save,
        use_rslora=model_args.use_rslora,
        use_dora=model_args.use_dora,
        bias="none",
    )


def get_quantization_config(model_args: ModelConfig) -> Any:
    """The `BitsAndBytesConfig` that the options ask for, or None."""
    from transformers import BitsAndBytesConfig

    if model_args.load_in_8bit:
        return BitsAndBytesConfig(load_in_8bit=True)
    if not model_args.load_in_4bit:
        return None
    # computed in the type of the other weights; `auto` is not known before the model is
    compute_dtype = None if model_args.dtype in (None, "auto") else getattr(torch, str(model_args.dtype))
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_compute_dtype=compute_dtype,
        bnb_4bit_quant_type=model_args.bnb_4bit_quant_type,
        bnb_4bit_use_double_quant=model_args.use_bnb_nested_quant,
        bnb_4bit_quant_storage=model_args.bnb_4bit_quant_storage,
    )
