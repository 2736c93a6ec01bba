"""The parts that a step trainer is made of, from what its caller has."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from tuneline.classic.reading import prepare_reference
from tuneline.errors import ConfigError, ModelError
from tuneline.logging import get_logger
from tuneline.models.reference_model import create_reference_model
from tuneline.models.value_head import AutoModelForCausalLMWithValueHead, AutoModelForSeq2SeqLMWithValueHead

logger = get_logger(__name__)

_WITH_VALUE_HEAD = (AutoModelForCausalLMWithValueHead, AutoModelForSeq2SeqLMWithValueHead)


def with_value_head(model: Any) -> Any:
    """The model, or a plain one with a head that is 0 everywhere, as `PolicyAndValue` has it."""
    if isinstance(model, _WITH_VALUE_HEAD):
        return model
    config = getattr(model, "config", None)
    if config is None:
        raise ModelError(
            f"model is a {type(model).__name__}; pass AutoModelForCausalLMWithValueHead.from_pretrained(...)."
        )
    wrapped = _WITH_VALUE_HEAD[bool(config.is_encoder_decoder)].from_pretrained(model)
    nn.init.zeros_(wrapped.v_head.summary.weight)
    nn.init.zeros_(wrapped.v_head.summary.bias)
    logger.info("%s got a value head, 0 everywhere at first", type(model).__name__)
    return wrapped


def make_reference(model: Any, given: Any, num_shared_layers: int | None) -> nn.Module | None:
    """A frozen language model; None where the policy without its adapter is the reference."""
    if given is not None:
        own = {id(parameter) for parameter in model.parameters() if parameter.requires_grad}
        if any(id(parameter) in own for parameter in given.parameters()):
            raise ConfigError(
                "ref_model holds parameters that the model trains, so it would move along; use "
                "create_reference_model(model), or leave it out."
            )
        if num_shared_layers is not None:
            raise ConfigError("num_shared_layers is for the reference made here; leave it or ref_model out.")
        return prepare_reference(given)
    if model.is_peft_model:
        if num_shared_layers is not None:
            raise ConfigError("num_shared_layers: a model with an adapter shares all of its base with the reference.")
        return None
    return prepare_reference(create_reference_model(model, num_shared_layers))


def make_optimizer(given: torch.optim.Optimizer | None, model: Any, learning_rate: float) -> torch.optim.Optimizer:
    """Adam, or the given one with the value head in it."""
    learning = [parameter for parameter in model.parameters() if parameter.requires_grad]
    if given is None:
        return torch.optim.Adam(learning, lr=learning_rate)
    known = {id(parameter) for group in given.param_groups for parameter in group["params"]}
    if not any(id(parameter) in known for parameter in learning):
        raise ConfigError("the optimizer knows no parameter of the model; make it from model.parameters().")
    head = [parameter for parameter in model.v_head.parameters() if id(parameter) not in known]
    if head:
        given.add_param_group({"params": head})
        logger.info("the optimizer got the parameters of the value head")
    return given
