"""The value function of PPO, in three forms, trained in one module with the policy.

- `head`: a linear map of the policy's last hidden states; log-probabilities and values come from one pass.
- `model`: a sequence classifier with one label, whose score head is read before every target.
- `adapter`: an adapter beside the policy's on one frozen backbone, with a head of its own. A backbone computes other
  hidden states with other adapters, so this takes two passes, within one call of the module.

The module is what DDP and FSDP wrap, so that one call of it gives both answers. The policy in it is a plain causal
language model, or a PEFT model of one, and is saved alone.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Literal

import torch
from peft import LoraConfig, PeftConfig, PeftModel
from torch import Tensor, nn
from transformers import PreTrainedModel

from tuneline.attention import Segments
from tuneline.errors import ConfigError, ModelError
from tuneline.heads import ScalarHead, scalars
from tuneline.logprobs import TargetLogprobs, token_logprobs
from tuneline.models.adapters import VALUE_ADAPTER, adapter_parameters, add_adapter_beside, drop_unlisted_adapter
from tuneline.models.hidden_states import Reading, hidden_states, input_of, reading, reads_trees, rows_of
from tuneline.models.layouts import (
    HoldsPolicy,
    base_model,
    output_head,
    prepare_for_trees,
    score_head,
    unwrapped,
)
from tuneline.models.loading import disable_dropout, load_reward_model
from tuneline.models.saved_adapter import read_scored_adapter
from tuneline.trees import PromptTrees

Form = Literal["head", "model", "adapter"]


class PolicyAndValue(HoldsPolicy):
    """A policy and its value function. Called like a causal language model, it answers as its policy does.

    Make it with `policy_and_value`. A new value head is zero: the first values are then 0 everywhere, so that the first
    advantages are the rewards themselves and not noise, and no gradient of the value loss reaches a shared backbone
    before the head has learned a direction. Its gradient is not zero, so it learns from the first step on.

    Attributes:
        policy: saved and generated with on its own.
        value_model: of the form `model`.
        value_head: of the forms `head` and `adapter`, float32.
    """

    value_model: nn.Module | None
    value_head: ScalarHead | None

    def __init__(self, policy: Any, form: Form, *, value_model: nn.Module | None = None):
        super().__init__()
        self.policy = policy
        self.form: Form = form
        self.value_model = value_model
        self.value_head = None
        if form != "model":
            reads = base_model(policy).get_output_embeddings()
            if reads is None:
                raise ModelError(
                    f"{type(base_model(policy)).__name__} has no language-model head; pass a causal model."
                )
            self.value_head = ScalarHead(
                base_model(policy).config.get_text_config().hidden_size, device=reads.weight.device
            )
            nn.init.zeros_(self.value_head.weight)
            nn.init.zeros_(self.value_head.bias)

    @classmethod
    def with_head(cls, policy: Any) -> PolicyAndValue:
        """Values by a linear map of the policy's own hidden states; on a PEFT model the policy's adapter learns from
        both losses."""
        prepare_for_trees(policy)
        return cls(policy, "head")

    @classmethod
    def with_model(cls, policy: Any, value_model: nn.Module | str) -> PolicyAndValue:
        """Values by a sequence classifier with one label, or its name or folder. Its dropout is set to zero.

        Raises:
            ModelError: several labels, no score head, a smaller vocabulary than the policy's, or nothing to train.
        """
        model: Any = load_reward_model(value_model) if isinstance(value_model, str) else value_model
        _check_value_model(policy, model)
        for one in (policy, model):
            prepare_for_trees(one)
        disable_dropout(model)
        return cls(policy, "model", value_model=model)

    @classmethod
    def with_adapter(cls, policy: PeftModel, start: PeftConfig | str | None = None) -> PolicyAndValue:
        """Values by an adapter named `value` beside the policy's, and a head of its own.

        Args:
            start: the configuration of a new adapter; the folder of one that `RewardTrainer` saved, whose weights and
                head are where it starts; or None for a new one like the policy's, without modules that it trains whole.
                The value function has no dropout: what it said is compared with what it says.

        Raises:
            ModelError: a policy without adapters, or with its own named `value`; a saved adapter of another model.
        """
        if not isinstance(policy, PeftModel):
            raise ModelError(
                f"a value function by adapter needs a policy with an adapter, and this is a {type(policy).__name__}; "
                "pass peft_config, or take the value function 'head' or 'model'."
            )
        prepare_for_trees(policy)
        drop_unlisted_adapter(policy, VALUE_ADAPTER)
        if not isinstance(start, str):
            if isinstance(start, LoraConfig):
                start = replace(start, lora_dropout=0.0)
            add_adapter_beside(policy, VALUE_ADAPTER, start, trains=True, is_saved=False)
            return cls(policy, "adapter")
        saved = read_scored_adapter(start)
        saved.load_beside(policy, VALUE_ADAPTER, trains=True)
        both = cls(policy, "adapter")
        assert both.value_head is not None
        both.value_head.load_state_dict(saved.head.state_dict(), strict=False)  # which may have no bias
        return both

    def forward(self, *, value_at: Tensor | None = None, value_reading: Reading | None = None, **inputs: Any) -> Any:
        """The policy's output; with one of the first two, a pair: the policy's output and the values.

        Args:
            value_at: (targets,), where the form `head` reads, of what the policy's head reads, (rows, positions) end
                to end.
            value_reading: a pass of the value function's own.
            inputs: of the policy.
        """
        if value_at is not None:
            assert self.value_head is not None
            with input_of(output_head(self.policy)) as heard:
                output = self.policy(**inputs)
            return output, self.value_head(rows_of(heard[0], value_at))
        if value_reading is None:
            return self.policy(**inputs)
        output = self.policy(**inputs)
        adapter = VALUE_ADAPTER if self.form == "adapter" else None
        return output, scalars(self._head(), hidden_states(self.read_by_value, value_reading, adapter))

    @property
    def read_by_value(self) -> Any:
        """The model whose hidden states the value function is a linear map of."""
        return self.policy if self.value_model is None else self.value_model

    def _head(self) -> nn.Linear:
        head = self.value_head if self.value_model is None else score_head(self.value_model)
        assert isinstance(head, nn.Linear)
        return head

    # What belongs to the value function alone

    def value_state_dict(self) -> dict[str, Tensor]:
        """All that the value function has beside the policy, for a checkpoint."""
        if self.value_model is not None:
            return dict(self.value_model.state_dict())
        assert self.value_head is not None
        own = {f"value_head.{name}": tensor for name, tensor in self.value_head.state_dict().items()}
        return own | {name: parameter.detach() for name, parameter in self._adapter().items()}

    def load_value_state_dict(self, tensors: dict[str, Tensor]) -> None:
        """Take what `value_state_dict` gave.

        Raises:
            ModelError: tensors of another form or size.
        """
        own = self.value_state_dict()
        differing = own.keys() ^ tensors.keys() or {n for n in own if own[n].shape != tensors[n].shape}
        if differing:
            raise ModelError(
                f"these weights fit no value function of the form {self.form!r} on this model: they differ in "
                f"{sorted(differing)[0]!r}; take those that were saved with the same form, model and adapter."
            )
        if self.value_model is not None:
            self.value_model.load_state_dict(tensors)
            return
        with torch.no_grad():
            for name, tensor in own.items():  # which share their memory with the parameters
                tensor.copy_(tensors[name])

    def _adapter(self) -> dict[str, nn.Parameter]:
        own = set(adapter_parameters(self.policy, VALUE_ADAPTER))
        return {name: parameter for name, parameter in self.policy.named_parameters() if parameter in own}

    # What transformers' Trainer asks of a model

    @property
    def config(self) -> Any:
        return self.policy.config

    @property
    def device(self) -> torch.device:
        return self.policy.device

    @property
    def dtype(self) -> torch.dtype:
        return self.policy.dtype

    @property
    def is_gradient_checkpointing(self) -> bool:
        return bool(base_model(self.policy).is_gradient_checkpointing)

    @property
    def _no_split_modules(self) -> Any:
        return base_model(self.policy)._no_split_modules

    def get_input_embeddings(self) -> nn.Module:
        return base_model(self.policy).get_input_embeddings()

    def gradient_checkpointing_enable(
        self, gradient_checkpointing_kwargs: dict[str, Any] | None = None, **options: Any
    ) -> None:
        """As of a transformers model, `options` included; of both models where there are two."""
        for model in self._models():
            model.gradient_checkpointing_enable(gradient_checkpointing_kwargs, **options)

    def gradient_checkpointing_disable(self) -> None:
        for model in self._models():
            model.gradient_checkpointing_disable()

    def enable_input_require_grads(self) -> None:
        for model in self._models():
            model.enable_input_require_grads()

    def _models(self) -> list[PreTrainedModel]:
        return [base_model(one) for one in (self.policy, self.value_model) if one is not None]


def policy_and_value(
    policy: Any, *, value_model: nn.Module | str | PeftConfig | None = None, form: Form
) -> PolicyAndValue:
    """A policy with its value function, made ready to read prompt trees.

    Args:
        policy: a causal language model, or a PEFT model of one; its own module, changed in place.
        value_model: of the form `model`, a sequence classifier with one label, its name or folder; of `adapter`, the
            configuration of the value's adapter, the folder of a saved reward adapter that it starts from, or None for
            one like the policy's.
        form: see the module.

    Raises:
        ConfigError: a form that there is not, or a `value_model` that does not go with it.
        ModelError: models that do not go together.
    """
    match form:
        case "head" if value_model is None:
            return PolicyAndValue.with_head(policy)
        case "model" if isinstance(value_model, nn.Module | str):
            return PolicyAndValue.with_model(policy, value_model)
        case "adapter" if value_model is None or isinstance(value_model, PeftConfig | str):
            return PolicyAndValue.with_adapter(policy, value_model)
        case "head" | "model" | "adapter":
            wanted = {"head": "none", "model": "a sequence classifier", "adapter": "a PeftConfig, a folder, or none"}[
                form
            ]
            raise ConfigError(
                f"the value function {form!r} takes as value_model {wanted}, and got {type(value_model).__name__}."
            )
        case _:
            raise ConfigError(f"value function {form!r}: there are 'head', 'model' and 'adapter'.")


def logprobs_and_values(
    model: nn.Module,
    trees: PromptTrees,
    *,
    temperature: float = 1.0,
    with_entropy: bool = False,
    support: Tensor | None = None,
) -> tuple[TargetLogprobs, Tensor]:
    """What the policy says of every target, and the value of the state before it, from one call of the module.

    Args:
        model: a `PolicyAndValue`, wrapped or not (DDP, FSDP).
        temperature, with_entropy, support: see `token_logprobs`.

    Returns:
        The log-probabilities, and values (targets,), float32, in the unit of the rewards.
    """
    held = _held(model)
    values: list[Tensor] = []

    def call(**inputs: Any) -> Any:
        if held.form == "head":
            output, found = model(value_at=_before_targets(inputs, trees), **inputs)
        else:
            output, found = model(value_reading=_value_reading(held, trees, inputs.get("segments")), **inputs)
        values.append(found)
        return output

    logprobs = token_logprobs(
        model, trees, temperature=temperature, with_entropy=with_entropy, support=support, call=call
    )
    return logprobs, values[0]


def _value_reading(held: PolicyAndValue, trees: PromptTrees, segments: Segments | None = None) -> Reading:
    model, adapter = held.read_by_value, VALUE_ADAPTER if held.form == "adapter" else None
    if adapter and held.training and held.is_gradient_checkpointing and not reads_trees(model):
        raise ModelError(
            f"{type(base_model(model)).__name__} takes padded rows, whose checkpointed layers do not know which "
            "adapter was at work; set gradient_checkpointing=False, or take the value function 'head' or 'model'."
        )
    return reading(model, trees, trees.target_positions, trees.sequence_ids, adapter=adapter, segments=segments)


def _before_targets(inputs: dict[str, Any], trees: PromptTrees) -> Tensor:
    """(targets,): where, of what the policy's head reads, the hidden state before each target lies."""
    kept = inputs.get("logits_to_keep")  # in order, each once
    if "segments" in inputs:
        return torch.searchsorted(inputs["logits_to_keep"], trees.target_positions)
    # padded: a row a sequence
    columns, width = trees.position_ids[0, trees.target_positions], inputs["input_ids"].shape[1]
    if kept is not None:
        columns, width = torch.searchsorted(kept, columns), len(kept)
    return trees.sequence_ids * width + columns


def _held(model: nn.Module) -> PolicyAndValue:
    held = unwrapped(model)
    if not isinstance(held, PolicyAndValue):
        raise TypeError(f"values need a PolicyAndValue, and this is a {type(held).__name__}; see policy_and_value.")
    return held


def _check_value_model(policy: Any, model: Any) -> None:
    config = getattr(base_model(model), "config", None)
    if config is None or not isinstance(score_head(model), nn.Linear):
        raise ModelError(
            f"{type(model).__name__} is no value model: it takes a sequence classifier of transformers on a decoder, "
            "with a linear 'score' head."
        )
    if config.num_labels != 1:
        raise ModelError(
            f"a value model has one label; this {type(model).__name__} has num_labels={config.num_labels}."
        )
    if not any(parameter.requires_grad for parameter in model.parameters()):
        raise ModelError(
            f"the value model, a {type(model).__name__}, has no parameter that is trained; call "
            "requires_grad_(True), or load its adapter with is_trainable=True."
        )
    sizes = [base_model(one).get_input_embeddings().num_embeddings for one in (policy, model)]
    if sizes[1] < sizes[0]:
        raise ModelError(
            f"the value model embeds {sizes[1]} tokens and the policy {sizes[0]}, so that it cannot read what the "
            "policy writes; train it from a model with the policy's tokenizer."
        )
