"""Models and tokenizers by name or folder, and what is done to them before training."""

from __future__ import annotations

import json
from collections.abc import Callable
from itertools import count
from pathlib import Path
from typing import Any

import torch
from peft import PeftConfig, PeftModel, get_peft_model
from torch import nn
from transformers import (
    AddedToken,
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    AutoModelForSeq2SeqLM,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    AutoProcessor,
    AutoTokenizer,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    ProcessorMixin,
)

from tuneline.errors import ConfigError, ModelError
from tuneline.logging import get_logger

logger = get_logger(__name__)

REFERENCE_FILE = "reference.json"


def resolve_model(path: str | Path) -> tuple[str, str | None]:
    """The name and revision that a model folder stands for: its own path, or what its `reference.json` names."""
    reference = Path(path) / REFERENCE_FILE
    if not reference.is_file():
        return str(path), None
    named = json.loads(reference.read_text())
    return named["name_or_path"], named.get("revision")


def holds_model(folder: Path) -> bool:
    """Whether a folder holds a model, an adapter, or the name of one (`reference.json`)."""
    return any((folder / file).is_file() for file in ("config.json", "adapter_config.json", REFERENCE_FILE))


def load_causal_lm(name: str, init_kwargs: dict[str, Any] | str | None = None, **kwargs: Any) -> PreTrainedModel:
    """A causal language model in float32, unless `init_kwargs` names another dtype; one that reads images too where
    the checkpoint is one."""
    settings = json.loads(init_kwargs) if isinstance(init_kwargs, str) else init_kwargs or {}
    options = {"trust_remote_code": bool(kwargs.get("trust_remote_code")), "revision": settings.get("revision")}
    try:
        config = AutoConfig.from_pretrained(name, **options)
    except (OSError, ValueError):  # whatever it is, loading the model says it better
        config = PreTrainedConfig()
    return _load(
        AutoModelForImageTextToText if reads_images(config) else AutoModelForCausalLM, name, init_kwargs, **kwargs
    )


def reads_images(config: PreTrainedConfig) -> bool:
    """Whether a model of this configuration is a vision-language model."""
    return hasattr(config, "vision_config")


def given_model(
    model: Any, args: Any, quantization_config: Any = None, load: Callable[..., PreTrainedModel] = load_causal_lm
) -> Any:
    """A model as a trainer was given it, or loaded by its name with the options of `args`.

    Raises:
        ConfigError: a model that is there already, and how to quantise it.
        ModelError: it cannot be loaded.
    """
    if isinstance(model, str):
        quantization = {} if quantization_config is None else {"quantization_config": quantization_config}
        return load(model, args.model_init_kwargs, trust_remote_code=args.trust_remote_code, **quantization)
    if quantization_config is not None:
        raise ConfigError(
            f"quantization_config is for a model given by name, and this {type(model).__name__} is loaded already; "
            "load it with from_pretrained(..., quantization_config=...), or pass its name."
        )
    return model


def load_seq2seq_lm(name: str, init_kwargs: dict[str, Any] | str | None = None, **kwargs: Any) -> PreTrainedModel:
    """An encoder-decoder language model, as `load_causal_lm`."""
    return _load(AutoModelForSeq2SeqLM, name, init_kwargs, **kwargs)


def load_reward_model(name: str, init_kwargs: dict[str, Any] | str | None = None, **kwargs: Any) -> PreTrainedModel:
    """A sequence classifier with one label, on the backbone of any model; a missing head is drawn anew."""
    return _load(AutoModelForSequenceClassification, name, init_kwargs, num_labels=1, **kwargs)


def load_process_reward_model(
    name: str, init_kwargs: dict[str, Any] | str | None = None, **kwargs: Any
) -> PreTrainedModel:
    """A token classifier with two labels, on the backbone of any model; a missing head is drawn anew."""
    return _load(AutoModelForTokenClassification, name, init_kwargs, num_labels=2, **kwargs)


def _load(auto_class: Any, name: str, init_kwargs: dict[str, Any] | str | None, **kwargs: Any) -> PreTrainedModel:
    settings = json.loads(init_kwargs) if isinstance(init_kwargs, str) else dict(init_kwargs or {})
    settings = {"dtype": torch.float32, **kwargs, **settings}
    if isinstance(settings["dtype"], str) and settings["dtype"] != "auto":
        dtype = getattr(torch, settings["dtype"], None)
        if not isinstance(dtype, torch.dtype):
            raise ConfigError(f"dtype={settings['dtype']!r} is no torch dtype; use float32, bfloat16 or 'auto'.")
        settings["dtype"] = dtype
    if settings.get("use_safetensors") is None:
        settings["use_safetensors"] = True
    try:
        return auto_class.from_pretrained(name, **settings)
    except OSError as error:
        raise ModelError(f"cannot load the model {name!r}: {str(error).splitlines()[0]}") from error
    except (ImportError, ValueError) as error:
        raise ModelError(
            f"cannot load the model {name!r} as asked: {' '.join(str(error).split())[:300]} (from "
            f"{_asked_for(settings)})"
        ) from error


def _asked_for(settings: dict[str, Any]) -> str:
    """Which options may want a package that is not installed, or what the model cannot do."""
    names = [name for name in ("quantization_config", "use_kernels", "attn_implementation") if settings.get(name)]
    return ", ".join(names) or "its configuration"


def load_tokenizer(
    name: str, *, trust_remote_code: bool = False, revision: str | None = None
) -> PreTrainedTokenizerBase:
    try:
        tokenizer = AutoTokenizer.from_pretrained(name, trust_remote_code=trust_remote_code, revision=revision)
    except (OSError, ValueError) as error:
        raise ModelError(
            f"cannot load a tokenizer from {name!r} ({str(error).splitlines()[0]}); pass one as processing_class."
        ) from error
    # How it was loaded is not what it is: saved with it, the same tokenizer would differ where HF_HUB_OFFLINE does.
    tokenizer.init_kwargs.pop("local_files_only", None)
    return tokenizer


def load_processor(name: str, *, trust_remote_code: bool = False) -> ProcessorMixin:
    """The processor of a vision-language model: a tokenizer and an image processor."""
    try:
        processor = AutoProcessor.from_pretrained(name, trust_remote_code=trust_remote_code)
    except (OSError, ValueError, ImportError) as error:
        raise ModelError(
            f"cannot load a processor from {name!r} ({str(error).splitlines()[0]}); pass one as processing_class."
        ) from error
    if not isinstance(processor, ProcessorMixin):
        raise ModelError(
            f"{name!r} is a vision-language model and has no processor beside it, only a {type(processor).__name__}; "
            "pass one as processing_class."
        )
    return processor


def set_special_tokens(tokenizer: PreTrainedTokenizerBase, eos_token: str | None, pad_token: str | None) -> None:
    """Set the end and padding tokens by name; without a padding token, the end token pads.

    Nothing is masked by token id, so a shared token does no harm.
    """
    for role, token in (("eos_token", eos_token), ("pad_token", pad_token)):
        if token is None:
            continue
        if token not in tokenizer.get_vocab():
            raise ConfigError(f"{role}={token!r} is not in the tokenizer's vocabulary; name a token that it knows.")
        setattr(tokenizer, role, token)
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token


def take_chat_template(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, path: str) -> None:
    """Give a tokenizer the chat template of a .jinja file, or the template and special tokens of another tokenizer."""
    if path.endswith(".jinja"):
        try:
            tokenizer.chat_template = Path(path).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(f"chat_template_path={path!r} cannot be read ({error}).") from error
        return
    clone_chat_template(model, tokenizer, path)


def clone_chat_template(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    source_tokenizer_path: str,
    resize_to_multiple_of: int | None = 64,
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase, list[int]]:
    """Give a tokenizer the chat template, the added tokens and the end token of another, and its model rows for them.

    Name, arguments and result are TRL's. An embedding that has room for all tokens keeps its size, where TRL would cut
    it; of one that grows, the tokenizer names the spare rows `<extra_id_0>` and so on.

    Args:
        resize_to_multiple_of: what the number of rows is rounded up to, in rows; None rounds nothing.

    Returns:
        The model and the tokenizer, changed in place, and the ids of the tokens that were added.

    Raises:
        ModelError: the other tokenizer cannot be loaded.
        ConfigError: it has no chat template.
    """
    source = load_tokenizer(source_tokenizer_path)
    if source.chat_template is None:
        raise ConfigError(
            f"chat_template_path={source_tokenizer_path!r}: that tokenizer has no chat template; name one that has."
        )
    tokenizer.chat_template = source.chat_template
    known = tokenizer.get_vocab()
    added = [token for token in source.added_tokens_decoder.values() if token.content not in known]
    tokenizer.add_tokens(added)
    tokenizer.eos_token = source.eos_token
    if len(tokenizer) > model.get_input_embeddings().num_embeddings:
        model.resize_token_embeddings(len(tokenizer), pad_to_multiple_of=resize_to_multiple_of)
        names = (f"<extra_id_{i}>" for i in count())
        while len(tokenizer) < model.get_input_embeddings().num_embeddings:
            spare = AddedToken(next(names))
            added += [spare] * tokenizer.add_tokens(spare)  # 0 for a name that it has already
    model.config.get_text_config().eos_token_id = tokenizer.eos_token_id
    if getattr(model, "generation_config", None) is not None:
        model.generation_config.eos_token_id = tokenizer.eos_token_id
    return model, tokenizer, tokenizer.convert_tokens_to_ids([token.content for token in added])


def add_adapter(model: nn.Module, peft_config: PeftConfig | None) -> nn.Module:
    """Wrap a model with a new adapter; a model that has one already is merged first, as its weights are the start.

    Raises:
        ConfigError: the adapter has no place in the model, or the one that it has cannot be merged.
    """
    module: Any
    for module in model.modules():
        if type(module).__name__ == "Linear4bit":  # on a CPU it would pack its weights as if never to be trained with
            module.support_avx512bf16_for_cpu = False
    if peft_config is None:
        return model
    if isinstance(model, PeftModel):
        if model.active_peft_config.is_prompt_learning:
            raise ConfigError(
                f"the model has a {model.active_peft_config.peft_type.value} adapter, which cannot be merged to put "
                "another on top; leave peft_config out to go on training it, or pass the base model."
            )
        model = model.merge_and_unload()
        logger.info("merged the model's adapter before adding a new one")
    try:
        return get_peft_model(model, peft_config)
    except ValueError as error:
        linear = {name.rpartition(".")[2] for name, module in model.named_modules() if isinstance(module, nn.Linear)}
        raise ConfigError(
            f"peft_config does not fit {type(model).__name__}: {' '.join(str(error).split())[:300]} Its linear layers "
            f"are {', '.join(sorted(linear))}; target_modules='all-linear' takes all but the head."
        ) from error


def disable_dropout(model: nn.Module) -> None:
    """Set every dropout to zero, in the modules and in the configuration that attention reads."""
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
        for name in ("attention_dropout", "attn_dropout"):
            if isinstance(getattr(module, name, None), float):
                setattr(module, name, 0.0)
