"""Tiny models of each architecture, made from a config."""

import torch
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    GemmaConfig,
    GPT2Config,
    LlamaConfig,
    PretrainedConfig,
    PreTrainedModel,
    Qwen2Config,
    Qwen3Config,
)

VOCAB = 97
_SIZES = dict(
    vocab_size=VOCAB,
    hidden_size=32,
    intermediate_size=48,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=8,
    max_position_embeddings=128,
    bos_token_id=None,
    eos_token_id=1,
    pad_token_id=0,
)
ARCHITECTURES = ("llama", "qwen2", "qwen3", "gemma", "gpt2")


def tiny_config(architecture: str, **overrides) -> PretrainedConfig:
    sizes = {**_SIZES, **overrides}
    match architecture:
        case "llama":
            return LlamaConfig(**sizes)
        case "qwen2":
            sizes.pop("head_dim")
            return Qwen2Config(**{"tie_word_embeddings": True, **sizes})
        case "qwen3":
            return Qwen3Config(**sizes)
        case "gemma":
            return GemmaConfig(**sizes)
        case "gpt2":
            return GPT2Config(
                vocab_size=VOCAB,
                n_embd=32,
                n_layer=2,
                n_head=4,
                n_positions=128,
                bos_token_id=1,
                eos_token_id=1,
                pad_token_id=0,
                resid_pdrop=0.0,
                embd_pdrop=0.0,
                attn_pdrop=0.0,
            )
    raise ValueError(architecture)


def tiny_causal_lm(architecture: str = "qwen2", seed: int = 0, **overrides) -> PreTrainedModel:
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(tiny_config(architecture, **overrides), attn_implementation="sdpa")
    return spread(model)


def tiny_reward_model(architecture: str = "qwen2", seed: int = 0, **overrides) -> PreTrainedModel:
    torch.manual_seed(seed)
    config = tiny_config(architecture, **overrides)
    config.num_labels = 1
    model = AutoModelForSequenceClassification.from_config(config, attn_implementation="sdpa")
    return spread(model)


def tiny_step_classifier(architecture: str = "qwen2", seed: int = 0, **overrides) -> PreTrainedModel:
    torch.manual_seed(seed)
    config = tiny_config(architecture, **overrides)
    model = AutoModelForTokenClassification.from_config(config, attn_implementation="sdpa")
    return spread(model)


def spread(model: PreTrainedModel) -> PreTrainedModel:
    """Larger weights than at initialisation, so that a wrong mask or position shows."""
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.normal_(0, 0.25)
    return model
