"""Which of a model's adapters are at work, chosen pass by pass.

PEFT's `set_adapter` and `disable_adapter` also decide what is trained: they switch `requires_grad` off for every other
adapter. Where a policy and a value function learn at once on one backbone, both must keep it, so only the choice is
changed here. A checkpointed layer runs again in the backward pass, when the choice is over; it finds the adapter of its
pass on the `Segments` that travel with the call.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from peft import LoraConfig, PeftConfig, PeftModel, set_peft_model_state_dict
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils.other import AuxiliaryTrainingWrapper
from torch import Tensor, nn

from tuneline.errors import ConfigError, ModelError
from tuneline.logging import get_logger
from tuneline.models.layouts import base_model, learns_a_prompt, policy_of

logger = get_logger(__name__)

VALUE_ADAPTER, REWARD_ADAPTER, REFERENCE_ADAPTER = "value", "reward", "ref"

_Choice = list[tuple[Any, Any]]


@contextmanager
def active_adapter(model: nn.Module, name: str) -> Iterator[None]:
    """Let one adapter be at work; what is trained stays as it is."""
    if isinstance(model, PeftModel) and learns_a_prompt(model):
        active = model.active_adapter
        model.active_adapter = name
        try:
            yield
        finally:
            model.active_adapter = active
        return
    before = _choose(model, name)
    try:
        yield
    finally:
        _take_back(before)


@contextmanager
def adapters_off(model: nn.Module) -> Iterator[None]:
    """Let no adapter be at work: the base model. What is trained stays as it is."""
    if isinstance(model, PeftModel) and learns_a_prompt(model):
        with model.disable_adapter():
            yield
        return
    switched = [module for module in _adapted(model) if not module._disable_adapters]
    for module in switched:
        module._disable_adapters = True
    try:
        yield
    finally:
        for module in switched:
            module._disable_adapters = False


def add_adapter_beside(
    model: PeftModel, name: str, config: PeftConfig | None = None, *, trains: bool, is_saved: bool = True
) -> None:
    """Add an adapter; those that are there stay active, and trained or frozen, as they were.

    Args:
        config: by default that of the active adapter, without modules that it trains whole and without dropout.
        trains: whether the new adapter is trained.
        is_saved: whether the model lists it (`peft_config`), and so saves and loads it. What serves the policy's
            training alone should not be part of the policy.

    Raises:
        ModelError: an adapter of that name is there.
    """
    if name in model.peft_config or adapter_parameters(model, name):
        raise ModelError(f"the model has an adapter named {name!r} already; delete or rename it.")
    trained = {parameter for parameter in model.parameters() if parameter.requires_grad}
    model.add_adapter(name, config if config is not None else _like(model.active_peft_config))
    for parameter in model.parameters():
        parameter.requires_grad_(parameter in trained)
    for parameter in adapter_parameters(model, name):
        parameter.requires_grad_(trains)
    if not is_saved:
        del model.peft_config[name]
    _follow_segments(model)


def load_adapter_beside(
    model: PeftModel, name: str, config: PeftConfig, tensors: dict[str, Tensor], *, trains: bool = False
) -> None:
    """Add an adapter with the weights of one that PEFT saved, as no part of what the model saves.

    Raises:
        ModelError: an adapter of that name is there, or the weights belong to another model.
    """
    add_adapter_beside(model, name, config, trains=trains)
    try:
        result = set_peft_model_state_dict(model, tensors, adapter_name=name)
    except RuntimeError as error:  # of other sizes
        raise ModelError(f"the adapter does not fit the model: {' '.join(str(error).split())[:300]}") from error
    finally:
        del model.peft_config[name]
    wrong = [*result.unexpected_keys, *(key for key in result.missing_keys if f".{name}." in key)]
    if wrong:
        raise ModelError(
            f"the adapter does not fit the model: {len(wrong)} tensors are missing or have no place, first "
            f"{wrong[0]!r}; both must be on the same base model."
        )


def drop_unlisted_adapter(model: PeftModel, name: str) -> None:
    """Take out an adapter that an earlier training added beside the model's own, if there is one."""
    if name in model.peft_config or not adapter_parameters(model, name):
        return
    for module in model.modules():
        if isinstance(module, BaseTunerLayer):
            module.delete_adapter(name)
    logger.info("dropped the adapter %r of an earlier training", name)


def adapter_parameters(model: nn.Module, name: str) -> list[nn.Parameter]:
    """The parameters of one adapter."""
    found: list[nn.Parameter] = []
    for module in model.modules():
        if isinstance(module, BaseTunerLayer):
            parts = (getattr(module, layer_name) for layer_name in module.adapter_layer_names)
            for part in (part[name] for part in parts if name in part):
                found += [part] if isinstance(part, nn.Parameter) else list(part.parameters())
    return found


def check_adapter_acts(model: Any) -> None:
    """See that the model's answers depend on what its adapter trains, by the gradient of one short text; a new LoRA
    adapter, which changes nothing yet, passes.

    Raises:
        ConfigError: nothing of the adapter is trained, or it has no effect, with the reason.
    """
    policy = policy_of(model)
    if not isinstance(policy, PeftModel):
        return
    base, names = base_model(policy), policy.active_adapters
    if learns_a_prompt(policy):
        own = [one for name in names for one in policy.prompt_encoder[name].parameters()]
    else:
        own = [one for name in names for one in adapter_parameters(policy, name)]
    what = f"the adapter {', '.join(names)!r} ({policy.active_peft_config.peft_type.value})"
    if not own:
        return
    if not any(parameter.requires_grad for parameter in own):
        raise ConfigError(
            f"{what} does not train: it was loaded for use (PeftModel.from_pretrained needs is_trainable=True to go on "
            "training it) or is disabled (enable_adapter_layers)."
        )
    trained = [parameter for parameter in own if parameter.requires_grad]
    config = base.config.get_text_config()
    is_text_alone = config is base.config and not getattr(config, "is_encoder_decoder", False)
    if not is_text_alone or any(one.is_meta or not one.numel() for one in trained):
        return  # an adapter may sit on what reads images
    gradients = _gradients(policy, trained, config.vocab_size)
    if any(gradient is not None and gradient.count_nonzero() for gradient in gradients):
        return
    modules = getattr(policy.active_peft_config, "target_modules", None)
    said = f"{what} has no effect on what {type(base).__name__} answers: no gradient reaches its {len(own)} tensors"
    if modules is None:  # of kinds that may act on few tokens alone
        logger.warning("%s", said)
        return
    named = sorted(modules) if isinstance(modules, set | list) else modules
    raise ConfigError(
        f"{said}. Its target_modules are {named}; name layers that the text goes through, such as 'all-linear', and "
        "see that the adapter is enabled."
    )


@torch.enable_grad()
def _gradients(policy: PeftModel, weights: list[nn.Parameter], vocab_size: int) -> tuple[Tensor | None, ...]:
    ids = torch.arange(8, device=next(policy.parameters()).device) * 7 % vocab_size
    was_training = {module: module.training for module in policy.modules()}
    policy.eval()  # without dropout, so that no random number is drawn
    try:
        logits = policy(input_ids=ids[None], attention_mask=torch.ones_like(ids)[None]).logits.float()
    finally:
        for module, training in was_training.items():
            module.training = training
    weighed = (logits * torch.arange(logits.numel(), device=logits.device).cos().view_as(logits)).sum()
    return torch.autograd.grad(weighed, weights, allow_unused=True) if weighed.requires_grad else (None,)


def _follow_segments(model: nn.Module) -> None:
    """Let each layer work with the adapter that its call's `Segments` name, in a checkpoint's second pass too."""
    layer: Any
    for stack in base_model(model).base_model.children():
        for layer in stack if isinstance(stack, nn.ModuleList) else ():
            if "adapters_before" not in layer.__dict__:
                layer.adapters_before = None
                layer.register_forward_pre_hook(_follow, with_kwargs=True)
                # always: a checkpoint ends a second pass by an exception, once it has what it needs
                layer.register_forward_hook(_return, always_call=True)


def _follow(layer: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    segments = kwargs.get("segments")
    if segments is not None and segments.adapter is not None:
        layer.adapters_before = _choose(layer, segments.adapter)


def _return(layer: Any, args: tuple[Any, ...], output: Any) -> None:
    if layer.adapters_before is not None:
        _take_back(layer.adapters_before)
        layer.adapters_before = None


def _choose(model: nn.Module, name: str) -> _Choice:
    before = []
    for module in _adapted(model):
        before.append((module, module._active_adapter))
        knows = isinstance(module, BaseTunerLayer) or name in module._adapters
        module._active_adapter = [name] if knows else []
    return before


def _take_back(before: _Choice) -> None:
    for module, active in before:
        module._active_adapter = active


def _adapted(model: nn.Module) -> Iterator[Any]:
    return (one for one in model.modules() if isinstance(one, BaseTunerLayer | AuxiliaryTrainingWrapper))


def _like(config: PeftConfig) -> PeftConfig:
    config = copy.deepcopy(config)
    config.inference_mode = False
    if hasattr(config, "modules_to_save"):
        config.modules_to_save = None
    if isinstance(config, LoraConfig):
        config.lora_dropout = 0.0
    if isinstance(config, LoraConfig) and config.init_lora_weights not in (True, False, "gaussian"):
        config.init_lora_weights = True  # the others (PiSSA, OLoRA, ...) change the base's weights
    return config
