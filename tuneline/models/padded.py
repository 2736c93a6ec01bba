"""How a model reads padded rows: the keywords of its forward, with the images beside the text where there are any."""

from __future__ import annotations

import inspect
from typing import Any

from torch import Tensor, nn

from tuneline.errors import DataError
from tuneline.models.layouts import base_model, pad_token_id
from tuneline.trees import PaddedRows, PromptTrees, pad_out

_TOKEN_TYPES = ("mm_token_type_ids", "token_type_ids")  # as Qwen and as Gemma call them


def padded_inputs(model: nn.Module, trees: PromptTrees) -> tuple[PaddedRows, dict[str, Any]]:
    """Every sequence on a row of its own, and what the model is called with.

    Raises:
        DataError: images for a model that reads none.
    """
    rows = pad_out(trees, pad_token_id(model))
    inputs: dict[str, Any] = {
        "input_ids": rows.input_ids,
        "attention_mask": rows.attention_mask,
        "use_cache": False,
        **token_types(model, rows.input_ids),
    }
    if trees.images is not None:
        if image_token_id(model) is None:
            raise DataError(f"the batch has images, and {type(base_model(model)).__name__} reads text alone.")
        inputs |= trees.images.of_sequences(trees.tree_ids)
    return rows, inputs


def padded_logits(model: nn.Module, trees: PromptTrees) -> Tensor:
    """(targets, vocab): the logits that predict each target, by a model that reads padded rows."""
    rows, inputs = padded_inputs(model, trees)
    return model(**inputs).logits[rows.target_rows, rows.target_columns]


def image_token_id(model: nn.Module) -> int | None:
    """The token that stands where an image goes; None for a model that reads text alone."""
    return getattr(base_model(model).config, "image_token_id", None)


def token_types(model: nn.Module, input_ids: Tensor) -> dict[str, Tensor]:
    """1 where an image token stands, under the name by which the model asks for it; nothing where it does not."""
    image_token = image_token_id(model)
    if image_token is None:
        return {}
    parameters = inspect.signature(base_model(model).forward).parameters
    return {name: (input_ids == image_token).long() for name in _TOKEN_TYPES if name in parameters}


def takes_logits_to_keep(model: nn.Module) -> bool:
    """Whether the model's head can be asked about chosen columns alone."""
    return "logits_to_keep" in inspect.signature(base_model(model).forward).parameters
