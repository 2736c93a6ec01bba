"""Models made on the machine from a configuration: weights from a seed, a tokenizer from an alphabet or from texts.

Nothing is downloaded. The same sizes, seed and texts give the same weights and the same tokenizer, to the last bit.
"""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import (
    CONFIG_MAPPING,
    AutoModelForCausalLM,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
from transformers.models.qwen2.tokenization_qwen2 import PRETOKENIZE_REGEX

from tuneline.errors import ConfigError

PAD, UNKNOWN, END = "<|pad|>", "<|unk|>", "<|end|>"
TURNS = ("<|system|>", "<|user|>", "<|assistant|>", "<|tool|>")
SPECIAL_TOKENS = (PAD, UNKNOWN, END, *TURNS)

# A dialogue is its turns, one after the other: a token for who speaks, the words, the end token. A turn depends on
# nothing that follows it, so the text of a dialogue begins with the text of each of its beginnings.
CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{% if message.role not in ('system', 'user', 'assistant', 'tool') %}"
    "{{ raise_exception('unknown role ' ~ message.role ~ '; use system, user, assistant or tool') }}"
    "{% endif %}"
    "{{ '<|' ~ message.role ~ '|>' }}"
    "{% if message.role == 'assistant' %}"
    "{% generation %}{{ message.content ~ '<|end|>' }}{% endgeneration %}"
    "{% else %}"
    "{{ message.content ~ '<|end|>' }}"
    "{% endif %}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)

_OWN_SETTINGS = ("model_type", "tokenizer", "vocab_size")


def make_model(
    init: Mapping[str, Any], seed: int, texts: Iterable[str] | None = None
) -> tuple[PreTrainedModel, PreTrainedTokenizerFast]:
    """A causal language model with random weights, and its tokenizer with a chat template.

    Args:
        init: `model_type`, an architecture of transformers; `tokenizer`, `characters` (the default) or `bpe`;
            `vocab_size`, for bpe; all else are fields of that architecture's configuration.
        seed: the weights come from it; torch's own generator is left as it was.
        texts: what a bpe tokenizer learns from.

    Raises:
        ConfigError: an unknown architecture, tokenizer or field, or sizes that do not fit each other.
    """
    config_class = _config_class(init.get("model_type"))
    sizes = {name: value for name, value in init.items() if name not in _OWN_SETTINGS}
    _reject_unknown(sizes, config_class)
    tokenizer = make_tokenizer(init.get("tokenizer", "characters"), init.get("vocab_size"), texts)
    tokens = {
        "vocab_size": len(tokenizer),
        "pad_token_id": tokenizer.pad_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "bos_token_id": None,
    }
    try:
        config = config_class(**{**tokens, **sizes})
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
        with torch.no_grad():  # sizes that do not fit each other show at the first use, not before
            model.eval()(input_ids=torch.zeros(1, 2, dtype=torch.long), use_cache=False)
        model.train()
    except (StrictDataclassError, ValueError, TypeError, RuntimeError, AssertionError) as error:
        reason = " ".join(str(error).split())
        raise ConfigError(f"model.init: these sizes make no {config_class.model_type} model: {reason}") from error
    length = getattr(model.config, "max_position_embeddings", None)
    if length is not None:
        tokenizer.model_max_length = length
    return model, tokenizer


def make_tokenizer(
    kind: str = "characters", vocab_size: int | None = None, texts: Iterable[str] | None = None
) -> PreTrainedTokenizerFast:
    """A tokenizer with a chat template; padding, unknown words, the end and the start of a turn have a token each.

    Args:
        kind: `characters`, one token a byte, which is a character in ASCII; or `bpe`, merges of bytes that it learns.
            Digits are never merged, so numbers have one spelling.
        vocab_size: of bpe, special tokens included; fewer where the texts give no more merges.

    Raises:
        ConfigError: an unknown kind, a vocabulary size that does not go with it, or bpe without texts.
    """
    match kind:
        case "characters":
            if vocab_size is not None:
                raise ConfigError(
                    f"model.init.vocab_size={vocab_size}: a characters tokenizer has as many tokens as there are "
                    "characters; leave it out, or use tokenizer: bpe."
                )
            backend = _in_pieces(_characters())
        case "bpe":
            backend = _bpe(vocab_size, texts)
        case _:
            raise ConfigError(f"model.init.tokenizer={kind!r} is unknown; use 'characters' or 'bpe'.")
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        pad_token=PAD,
        unk_token=UNKNOWN,
        eos_token=END,
        additional_special_tokens=list(TURNS),
        chat_template=CHAT_TEMPLATE,
        clean_up_tokenization_spaces=False,
    )


def _characters() -> Tokenizer:
    """Byte-level BPE that never merged: what a characters tokenizer is for ASCII, and loses nothing of other texts."""
    symbols = [*SPECIAL_TOKENS, *sorted(pre_tokenizers.ByteLevel.alphabet())]
    return Tokenizer(models.BPE({symbol: i for i, symbol in enumerate(symbols)}, []))


def _bpe(vocab_size: int | None, texts: Iterable[str] | None) -> Tokenizer:
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    smallest = len(alphabet) + len(SPECIAL_TOKENS)
    if vocab_size is None or vocab_size < smallest:
        raise ConfigError(
            f"model.init.vocab_size={vocab_size}: a bpe tokenizer needs at least {smallest}, all bytes and special "
            "tokens; each further one is a merge that it learns."
        )
    if texts is None:
        raise ConfigError("model.init.tokenizer='bpe' learns from texts, and there are none; use 'characters'.")
    tokenizer = _in_pieces(Tokenizer(models.BPE()))
    tokenizer.train_from_iterator(
        texts,
        trainers.BpeTrainer(
            vocab_size=vocab_size,
            special_tokens=list(SPECIAL_TOKENS),
            initial_alphabet=alphabet,
            show_progress=False,
        ),
    )
    return tokenizer


def _in_pieces(tokenizer: Tokenizer) -> Tokenizer:
    """Cut texts as Qwen2 does (words with the space before them, digits one by one), then into bytes.

    transformers exchanges whatever a folder's tokenizer does before its merges for this, wherever the model is a Qwen2.
    """
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(PRETOKENIZE_REGEX), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def _config_class(model_type: Any) -> type[PretrainedConfig]:
    if model_type not in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES:
        hint = _nearest(str(model_type), MODEL_FOR_CAUSAL_LM_MAPPING_NAMES)
        raise ConfigError(f"model.init.model_type={model_type!r} is no causal language model of transformers{hint}.")
    return CONFIG_MAPPING[model_type]


def _reject_unknown(sizes: Mapping[str, Any], config_class: type[PretrainedConfig]) -> None:
    known = {field.name for field in dataclasses.fields(config_class)} | set(config_class.attribute_map)
    unknown = [f"{name!r}{_nearest(name, known)}" for name in sizes if name not in known]
    if unknown:
        raise ConfigError(
            f"model.init: the configuration of {config_class.model_type} has no field {', nor '.join(unknown)}."
        )


def _nearest(name: str, known: Iterable[str]) -> str:
    found = difflib.get_close_matches(name, list(known), n=1)
    return f" (nearest: {found[0]!r})" if found else ""
