"""Which models the transformers engine can generate with, and why not the others."""

from __future__ import annotations

import inspect
from typing import Any

from peft import PeftModel, PeftType
from torch import Tensor, nn
from transformers import PreTrainedModel

from tuneline.errors import ModelError
from tuneline.models.layouts import base_model, num_virtual_tokens, policy_of

_LAYERS = {"full_attention", "sliding_attention"}


def readable_model(model: nn.Module) -> PreTrainedModel:
    """The transformers model to call; adapters inside it stay at work.

    Raises:
        ModelError: with the reason why not.
    """
    reason = why_not_readable(model)
    base = base_model(model)
    if reason:
        raise ModelError(
            f"the transformers engine cannot generate with {type(base).__name__}: {reason}. Use the vLLM engine, or "
            "another model."
        )
    return base


def why_not_readable(model: nn.Module) -> str | None:
    """What keeps the engine from a model; None where it can generate with it."""
    return _why_not_wrapper(model) or _why_not(base_model(model))


def _why_not_wrapper(model: Any) -> str | None:
    if isinstance(model, PeftModel) and model.active_peft_config.is_prompt_learning:
        kind = model.active_peft_config.peft_type
        if kind not in (PeftType.PROMPT_TUNING, PeftType.P_TUNING):
            return f"its adapter is a {kind.value}, whose virtual tokens are no embeddings"
        if base_model(model).config is not base_model(model).config.get_text_config():
            return f"its adapter is a {kind.value}, and it reads more than text"
    return None


def virtual_prefix(model: Any) -> Tensor | None:
    """(1, tokens, hidden): the embeddings that an adapter at work puts before every sequence (prompt tuning)."""
    if num_virtual_tokens(model) == 0:
        return None
    return policy_of(model).get_prompt(batch_size=1)


def _why_not(model: Any) -> str | None:
    if not isinstance(model, PreTrainedModel):
        return "it is no model of transformers"
    config = model.config.get_text_config()
    parameters = inspect.signature(model.forward).parameters
    if getattr(config, "is_encoder_decoder", False):
        return "it is an encoder-decoder"
    if model.get_output_embeddings() is None:
        return "it has no language-model head"
    missing = {"past_key_values", "position_ids", "attention_mask", "logits_to_keep"} - set(parameters)
    if missing:
        return f"its forward takes no {', '.join(sorted(missing))}"
    if not (model._supports_attention_backend and model._supports_sdpa):
        return "its attention is not built on transformers' AttentionInterface, or not on sdpa"
    other_layers = set(getattr(config, "layer_types", None) or ()) - _LAYERS
    if other_layers:
        return f"it has layers of type {', '.join(sorted(other_layers))}, which keep no keys and values"
    if getattr(config, "attn_logit_softcapping", None) is not None:
        return "its attn_logit_softcapping is beyond sdpa"
    return None
