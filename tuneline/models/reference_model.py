"""A frozen copy of a model, which may share its first layers with the model it is a copy of."""

from __future__ import annotations

import copy
from typing import Any, TypeVar

from torch import nn
from transformers.integrations import is_deepspeed_zero3_enabled

from tuneline.errors import ConfigError, ModelError

Model = TypeVar("Model", bound=nn.Module)


def create_reference_model(model: Model, num_shared_layers: int | None = None, pattern: str | None = None) -> Model:
    """A copy in evaluation mode that learns nothing.

    Args:
        model: a language model, with a value head or without.
        num_shared_layers: so many of its first layers, and what comes before them, are not copied: both models read
            the same memory. They are frozen in `model` too, in place, for a reference must not move.
        pattern: how a layer's parameters begin, with "{layer}" for its number, such as "transformer.h.{layer}"; None to
            find the layers.

    Raises:
        ConfigError: more layers than there are, or a pattern that fits no parameter.
        ModelError: parameters that are sharded over processes (DeepSpeed ZeRO-3), or layers that are not found.
    """
    if is_deepspeed_zero3_enabled():
        raise ModelError(
            "create_reference_model copies parameters, and under DeepSpeed ZeRO-3 a process holds only a part of them; "
            "load the reference by from_pretrained."
        )
    shared = [] if num_shared_layers is None else _first_layers(model, num_shared_layers, pattern)
    for parameter in shared:
        parameter.requires_grad_(False)
    # what the memo knows is taken as it is, not copied
    reference = copy.deepcopy(model, {id(parameter): parameter for parameter in shared})
    return reference.eval().requires_grad_(False)


def _first_layers(model: nn.Module, num_layers: int, pattern: str | None) -> list[nn.Parameter]:
    """The parameters up to the end of layer `num_layers - 1`, in the order of the model."""
    template = pattern or _layer_pattern(model)
    parameters = list(model.named_parameters())

    def places(layer: int) -> list[int]:
        start = f".{template.format(layer=layer)}."
        return [place for place, (name, _) in enumerate(parameters) if start in f".{name}"]

    if not places(0):
        raise ConfigError(f"pattern={template!r} fits no parameter of this {type(model).__name__}.")
    if num_layers < 1 or not places(num_layers - 1):
        raise ConfigError(f"num_shared_layers={num_layers}: use from 1 to the number of the model's layers, or None.")
    return [parameter for _, parameter in parameters[: max(places(num_layers - 1)) + 1]]


def _layer_pattern(model: nn.Module) -> str:
    """How the names of the parameters of a layer begin: of the first list of all layers."""
    config: Any = getattr(model, "config", None)
    num_layers = None if config is None else config.get_text_config().num_hidden_layers
    for name, module in model.named_modules():
        if isinstance(module, nn.ModuleList) and len(module) == num_layers:
            return name + ".{layer}"
    raise ModelError(
        f"the layers of this {type(model).__name__} were not found; name them by pattern, such as "
        "'transformer.h.{layer}'."
    )
