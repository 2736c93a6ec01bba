"""The module that PPO trains: which value function a policy is given, and how the two are written and read."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import torch
from peft import PeftConfig, PeftModel
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import PreTrainedModel

from tuneline.errors import ConfigError, ModelError
from tuneline.logging import get_logger
from tuneline.models.adapters import VALUE_ADAPTER, adapter_parameters
from tuneline.models.layouts import base_model
from tuneline.values import PolicyAndValue, policy_and_value

logger = get_logger(__name__)

_VALUE_FILE = "value.safetensors"


def with_value_function(
    policy: PreTrainedModel | PeftModel,
    form: str | None,
    value_model: nn.Module | str | PeftConfig | None,
    reward_model: nn.Module | None,
) -> PolicyAndValue:
    """The policy with a value function of the form asked for.

    Args:
        form: None for `model` where there is a model to take, `adapter` beside an adapter, else `head`.
        value_model: a sequence classifier, its name or folder; or the configuration of an adapter.
        reward_model: what a value model starts from, as a copy, where none is given.

    Raises:
        ConfigError, ModelError: a form that cannot be had with these models.
    """
    if value_model is not None and value_model is reward_model:  # which must not learn
        value_model, form = None, form or "model"
    if form is None:
        form = "head"
        if value_model is not None:
            form = "adapter" if isinstance(value_model, PeftConfig) else "model"
        elif isinstance(policy, PeftModel):
            form = "adapter"
        elif reward_model is not None:
            try:
                return _from_reward_model(policy, reward_model)
            except ModelError as error:
                logger.info("the value function is a head on the policy, not a copy of the reward model: %s", error)
    if form == "model" and value_model is None:
        if reward_model is None:
            raise ConfigError(
                "value_function='model' has no model to begin with; pass value_model or reward_model, or use 'head'."
            )
        return _from_reward_model(policy, reward_model)
    return policy_and_value(policy, value_model=value_model, form=form)  # type: ignore[arg-type]


def _from_reward_model(policy: Any, reward_model: Any) -> PolicyAndValue:
    model = copy.deepcopy(reward_model)
    if isinstance(model, PeftModel):
        model = model.merge_and_unload()
    model = model.to(base_model(policy).dtype).requires_grad_(True)
    return policy_and_value(policy, value_model=model, form="model")


def with_reward_model(
    functions: Any, tokenizers: Any, reward_model: nn.Module, tokenizer: Any
) -> tuple[list[Any], list[Any]]:
    """Reward functions and their tokenizers with the reward model behind them, which reads the policy's tokens."""
    functions = list(functions) if isinstance(functions, list | tuple) else [] if functions is None else [functions]
    known = list(tokenizers) if isinstance(tokenizers, list | tuple) else [tokenizers] * len(functions)
    return [*functions, reward_model], [*known, tokenizer]


def policy_parameters(module: PolicyAndValue) -> list[nn.Parameter]:
    """What is trained of the policy, without the value function."""
    own: list[nn.Parameter] = []
    for part in (module.value_model, module.value_head):
        own += [] if part is None else part.parameters()
    if module.form == "adapter":
        own += adapter_parameters(module.policy, VALUE_ADAPTER)
    known = {id(parameter) for parameter in own}
    return [one for one in module.parameters() if one.requires_grad and id(one) not in known]


def read_policies_alone(module: PolicyAndValue) -> None:
    """Let `load_state_dict` take the weights of the policy alone too: of those a checkpoint's model file consists, so
    that it is an ordinary model."""

    def rename(module: PolicyAndValue, tensors: dict[str, Any], prefix: str, *unused: Any) -> None:
        known = set(module.policy.state_dict())
        for name in [name for name in tensors if name in known]:
            tensors[f"policy.{name}"] = tensors.pop(name)

    def forgive(module: PolicyAndValue, keys: Any) -> None:
        keys.missing_keys.clear()  # the value function has a file of its own, a frozen base is there

    module.register_load_state_dict_pre_hook(rename)
    module.register_load_state_dict_post_hook(forgive)


def save_policy(module: PolicyAndValue, folder: str | Path, *, to_resume: bool, tensors: Any = None) -> None:
    """Write the policy as a plain model, or its adapter.

    Args:
        to_resume: for a checkpoint: in one file, and of a policy with adapters what is trained beside it, since
            transformers reads adapters back into a model of PEFT alone.
        tensors: the module's, gathered, where they are spread over processes.
    """
    policy: Any = module.policy
    if tensors is not None:
        tensors = {n.removeprefix("policy."): value for n, value in tensors.items() if n.startswith("policy.")}
    if not isinstance(policy, PeftModel):
        size = {"max_shard_size": "1000GB"} if to_resume else {}
        policy.save_pretrained(folder, state_dict=tensors, **size)
        return
    policy.save_pretrained(folder, state_dict=tensors, selected_adapters=list(policy.active_adapters))
    if to_resume:
        trained = {name: p.detach().contiguous() for name, p in module.named_parameters() if p.requires_grad}
        save_file(trained, Path(folder) / "model.safetensors", metadata={"format": "pt"})


def save_value_function(module: PolicyAndValue, folder: Path) -> None:
    tensors = {name: tensor.detach().clone().contiguous() for name, tensor in module.value_state_dict().items()}
    save_file(tensors, folder / _VALUE_FILE)


def load_value_function(module: PolicyAndValue, folder: Path) -> None:
    path = folder / _VALUE_FILE
    if not path.is_file():
        raise ConfigError(f"cannot resume: {path} is missing, which holds the value function.")
    with torch.no_grad():
        module.load_value_state_dict(load_file(path))
