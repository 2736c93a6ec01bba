"""Prompts with images in the transformers engine: how they are read, and what a vision-language model may not write."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel
from transformers.cache_utils import Cache

from tuneline.errors import DataError, RolloutError
from tuneline.models.padded import image_token_id, token_types
from tuneline.rollout.protocol import Request

_NEVER = -1e30  # finite, since what is drawn from has to be


def read_with_images(model: PreTrainedModel, ids: Sequence[int], images: Mapping[str, Tensor], cache: Cache) -> int:
    """Read all of a prompt but its last token, with its images, into a cache.

    Returns:
        What is added to the place of a token behind it to have its position: below 0 for models that count an image
        as fewer positions than it has tokens (Qwen's M-RoPE, Wang et al. 2024, arXiv:2409.12191), else 0.

    Raises:
        DataError: the prompt ends with an image, or its image tokens are not as many as its images take.
    """
    if ids[-1] == image_token_id(model):
        raise DataError("a prompt ends with an image; let words follow it, or the mark that opens the answer.")
    input_ids = torch.tensor([ids[:-1]], device=model.device)
    inputs: dict[str, Any] = {name: tensor.to(model.device) for name, tensor in images.items()}
    inputs |= token_types(model, input_ids)
    model(input_ids=input_ids, past_key_values=cache, use_cache=True, logits_to_keep=1, **inputs)
    shift = getattr(model.base_model, "rope_deltas", None)
    return 0 if shift is None else int(shift[0, 0])


def without_image_tokens(model: PreTrainedModel, logits: Tensor) -> Tensor:
    """(rows, vocab) logits where the token that stands for an image, which no one can write, has no probability."""
    token = image_token_id(model)
    if token is None or token >= logits.shape[1]:
        return logits
    return logits.index_fill(1, torch.tensor([token], device=logits.device), _NEVER)


def attention_of_text(model: PreTrainedModel) -> str:
    """The attention that the layers which read text have."""
    return model.config.get_text_config()._attn_implementation


def set_attention_of_text(model: PreTrainedModel, name: str) -> None:
    """Set the attention of the layers that read text; those that read images keep theirs."""
    text = model.config.get_text_config()
    if text is model.config:
        model.set_attn_implementation(name)
    else:
        part = next(key for key in model.config.sub_configs if getattr(model.config, key) is text)
        model.set_attn_implementation({part: name})


def refuse_images(requests: Sequence[Request], engine: str) -> None:
    """Raises:
    RolloutError: a request has images.
    """
    if any(request.images for request in requests):
        raise RolloutError(
            f"{engine}: the prompts have images, which this engine does not send; leave use_vllm at False, and the "
            "model in training draws the completions."
        )
