"""Completions from the geometric mixture of two models, which is neither's to train: what Nash-MD's opponent is."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers.cache_utils import Cache, DynamicCache
from transformers.modeling_outputs import CausalLMOutput

from tuneline.errors import ConfigError, ModelError
from tuneline.rollout.protocol import Completion, Request, Sampling
from tuneline.rollout.readable import readable_model
from tuneline.rollout.transformers_engine import TransformersEngine, generating


class MixtureEngine(TransformersEngine):
    """Draws each token from the normalised p^(1 - share) q^share, where p is the model's distribution and q the
    partner's; the temperature divides the mixture's logits.

    Args:
        model, partner: causal language models of one vocabulary, see `TransformersEngine`; they may be one object.
        share: of the partner, in [0, 1].
        switch: makes the partner what it should be while it is called, such as a policy without its adapters.
        max_cached_tokens: as in `TransformersEngine`; each token is kept twice.

    Raises:
        ConfigError: a share out of its range.
        ModelError: a model that cannot be read this way, or two that do not go together.
    """

    def __init__(
        self,
        model: nn.Module,
        partner: nn.Module,
        share: float,
        *,
        switch: Callable[[], AbstractContextManager[None]] = nullcontext,
        max_cached_tokens: int = 2**18,
    ):
        if not 0 <= share <= 1:
            raise ConfigError(f"the partner's share is {share}; it must lie in [0, 1].")
        super().__init__(model, max_cached_tokens=max(1, max_cached_tokens // 2))
        self.partner = readable_model(partner)
        self.model = _Mixture(self.model, self.partner, share, switch)

    def generate(self, requests: Sequence[Request], sampling: Sampling) -> list[list[Completion]]:
        """See `TransformersEngine.generate`."""
        with generating(self.partner):
            return super().generate(requests, sampling)

    def sync_weights(self, model: nn.Module) -> None:
        """Nothing to do: parameters are read where they are."""


@dataclass
class _MixtureConfig:
    """What the engine reads of a configuration."""

    num_hidden_layers: int
    sliding_window: int | None
    layer_types: list[str] | None
    max_position_embeddings: int | None
    _attn_implementation: str

    def get_text_config(self) -> _MixtureConfig:
        return self


class _Mixture(nn.Module):
    """Two models behind the face of one; the cache holds the layers of the first and then those of the second."""

    def __init__(
        self,
        first: PreTrainedModel,
        second: PreTrainedModel,
        share: float,
        switch: Callable[[], AbstractContextManager[None]],
    ):
        super().__init__()
        self.first, self.second, self.share, self.switch = first, second, share, switch
        own, other = (_read(model) for model in (first, second))
        for name in ("vocabulary", "sliding_window", "layer_types"):
            if own[name] != other[name]:
                raise ModelError(
                    f"the two models of a mixture differ in {name}: {own[name]} and {other[name]}; take two of a kind."
                )
        self.num_first = own["num_hidden_layers"]
        lengths = [one["max_position_embeddings"] for one in (own, other) if one["max_position_embeddings"] is not None]
        self.config = _MixtureConfig(
            num_hidden_layers=own["num_hidden_layers"] + other["num_hidden_layers"],
            sliding_window=own["sliding_window"],
            layer_types=own["layer_types"],
            max_position_embeddings=min(lengths, default=None),
            _attn_implementation=first.config._attn_implementation or "sdpa",
        )

    @property
    def device(self) -> torch.device:
        return self.first.device

    def get_input_embeddings(self) -> nn.Module:
        return self.first.get_input_embeddings()

    def get_output_embeddings(self) -> nn.Module:
        return self.first.get_output_embeddings()

    def set_attn_implementation(self, name: str) -> None:
        """Of the first; the second is switched by the engine."""
        self.first.set_attn_implementation(name)

    def forward(self, past_key_values: Cache, **inputs: Any) -> CausalLMOutput:
        layers = past_key_values.layers
        reads_prompts = not layers  # into a cache that grows
        caches: list[Cache] = (
            [DynamicCache(), DynamicCache()]
            if reads_prompts
            else [Cache(layers=layers[: self.num_first]), Cache(layers=layers[self.num_first :])]
        )
        logits = self.first(past_key_values=caches[0], **inputs).logits.float()
        with self.switch():
            others = self.second(past_key_values=caches[1], **inputs).logits.float()
        if reads_prompts:
            past_key_values.layers = [*caches[0].layers, *caches[1].layers]
        return CausalLMOutput(logits=torch.lerp(logits, others, self.share))


def _read(model: PreTrainedModel) -> dict[str, Any]:
    config = model.config.get_text_config()
    head: Any = model.get_output_embeddings()
    return {
        "vocabulary": len(head.weight),
        "num_hidden_layers": config.num_hidden_layers,
        "sliding_window": getattr(config, "sliding_window", None),
        "layer_types": sorted(set(getattr(config, "layer_types", None) or ())),
        "max_position_embeddings": getattr(config, "max_position_embeddings", None),
    }
