"""`tuneline merge ADAPTER OUTPUT`: a saved adapter and its base as one model, with its tokenizer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from peft import PeftConfig, PeftModel

from tuneline.errors import ConfigError, ModelError
from tuneline.models.loading import (
    load_causal_lm,
    load_process_reward_model,
    load_processor,
    load_reward_model,
    load_tokenizer,
    reads_images,
)


def merge(adapter: str, output: str, *, base: str | None = None, dtype: str = "auto") -> str:
    """Write the merged model; gives back a line that says so.

    Args:
        base: the model below the adapter; None for the one that the adapter names.
        dtype: of the weights, such as bfloat16; auto keeps the base's.

    Raises:
        ConfigError: an output that is there, an adapter of a kind of model that is not known here, or one that changes
            no weights.
        ModelError: no adapter there, a base that cannot be loaded, or that is not the adapter's.
    """
    if Path(output).exists():
        raise ConfigError(f"{output} exists; name another folder, or remove it.")
    try:
        config = PeftConfig.from_pretrained(adapter)
    except (OSError, ValueError) as error:
        raise ModelError(f"{adapter!r} holds no adapter ({str(error).splitlines()[0]}).") from error
    name = base or config.base_model_name_or_path
    if not name:
        raise ConfigError(f"the adapter in {adapter!r} does not name its base; pass --base.")
    if config.is_prompt_learning:
        raise ConfigError(f"the adapter in {adapter!r} is of {config.peft_type}, which changes no weights to merge.")
    whole = _base(str(config.task_type or "CAUSAL_LM"), name, dtype)
    has_tokenizer = (Path(adapter) / "tokenizer_config.json").is_file()
    load = load_processor if reads_images(whole.config) else load_tokenizer
    beside = load(adapter if has_tokenizer else name)  # before anything is written, so that nothing stays half there
    try:
        model: Any = PeftModel.from_pretrained(whole, adapter)
    except (OSError, RuntimeError, ValueError) as error:
        raise ModelError(f"the adapter in {adapter!r} does not fit {name!r} ({str(error).splitlines()[0]}).") from error
    merged = model.merge_and_unload()
    merged.save_pretrained(output)
    beside.save_pretrained(output)
    num_parameters = sum(parameter.numel() for parameter in merged.parameters())
    return f"{output}: {name} with {adapter}, {num_parameters:,} parameters of {merged.dtype}"


def _base(task: str, name: str, dtype: str) -> Any:
    match task.rpartition(".")[2]:
        case "CAUSAL_LM":
            return load_causal_lm(name, {"dtype": dtype})
        case "SEQ_CLS":
            return load_reward_model(name, {"dtype": dtype})
        case "TOKEN_CLS":
            return load_process_reward_model(name, {"dtype": dtype})
    raise ConfigError(f"the adapter is of a {task} model; CAUSAL_LM, SEQ_CLS and TOKEN_CLS can be merged.")
