"""Policies with a value function in each form, and what they should say, sequence by sequence."""

import torch
from peft import LoraConfig, get_peft_model
from torch import nn

from tests.models import tiny_causal_lm, tiny_reward_model
from tests.trees.test_equality import sequences
from tuneline.values import PolicyAndValue, logprobs_and_values, policy_and_value

FORMS = ("head", "model", "adapter")


def with_lora(model, seed=0):
    """An adapter that changes the model from the first step on."""
    torch.manual_seed(seed)
    config = LoraConfig(
        r=4,
        target_modules="all-linear",
        init_lora_weights=False,
        task_type="CAUSAL_LM",
        fan_in_fan_out=model.config.model_type == "gpt2",
    )
    return get_peft_model(model, config)


def build_policy(form: str, architecture: str = "qwen2", **sizes):
    policy = tiny_causal_lm(architecture, **sizes)
    return with_lora(policy) if form == "adapter" else policy


def build(form: str, architecture: str = "qwen2", *, policy=None, **sizes) -> PolicyAndValue:
    """With a value head that is not zero, and of the form `adapter` a value adapter that is none of the policy's."""
    policy = build_policy(form, architecture, **sizes) if policy is None else policy
    value_model = tiny_reward_model(architecture, seed=3, **sizes) if form == "model" else None
    torch.manual_seed(7)
    both = policy_and_value(policy, form=form, value_model=value_model)
    if both.value_head is not None:
        nn.init.normal_(both.value_head.weight, std=0.5)
        nn.init.normal_(both.value_head.bias)
    return both


def values_of(both: nn.Module, trees) -> torch.Tensor:
    return logprobs_and_values(both, trees)[1]


def separate_values(form: str, model, head: nn.Linear, trees):
    """(targets,) one forward pass a sequence, of an unprepared causal model or classifier."""
    found = []
    for prompt, branch in sequences(trees):
        stack = model.get_base_model().base_model if form == "adapter" else model.base_model
        hidden = stack(input_ids=torch.tensor([prompt + branch]), use_cache=False).last_hidden_state
        found.append(head(hidden[0, len(prompt) - 1 : -1].float()).reshape(-1))
    return torch.cat(found)
