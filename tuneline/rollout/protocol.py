"""What every rollout engine takes and gives: token ids in, token ids and the sampler's log-probabilities out.

Text is never tokenised again on the way. An engine draws the same completions for the same weights and seeds, whatever
else is in the batch.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from torch import Tensor, nn


@dataclass(frozen=True)
class Sampling:
    """How completions are drawn.

    Attributes:
        temperature: divides the logits; 0 takes the likeliest token.
        top_p, top_k, min_p: cut the support; 1.0, 0 and None leave it whole.
        stop_token_ids: tokens that end a completion; the one that did is its last.
    """

    max_new_tokens: int
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float | None = None
    repetition_penalty: float = 1.0
    stop_token_ids: tuple[int, ...] = ()

    @property
    def cuts_support(self) -> bool:
        return self.temperature > 0 and (self.top_p < 1 or self.top_k > 0 or bool(self.min_p))


@dataclass(frozen=True)
class Request:
    """Completions wanted of one prompt, one for each seed."""

    prompt_ids: Sequence[int]
    seeds: Sequence[int]  # each below 2**63; all that is random in a completion comes from its seed
    max_new_tokens: int | None = None  # fewer than the sampling's, where a conversation has less room left
    images: Mapping[str, Tensor] | None = None  # of the prompt, as keywords that the model's forward reads


@dataclass(frozen=True)
class Completion:
    """What an engine drew.

    Attributes:
        ids: at least one token, with the stop token that ended it, if one did.
        logprobs: one a token: the sampler's, at its temperature. Where the support was cut they are normalised over
            what was left of it.
        is_finished: a stop token ended it, not the limit.
        support: one list a token, the ids that could be drawn; None where none was cut.
    """

    ids: list[int]
    logprobs: list[float]
    is_finished: bool
    support: list[list[int]] | None = None


class RolloutEngine(Protocol):
    """Draws completions from the policy.

    Raises:
        RolloutError: the engine cannot be reached, timed out, or gave an answer that is not one; it names the engine.
    """

    def generate(self, requests: Sequence[Request], sampling: Sampling) -> list[list[Completion]]:
        """For each request a completion a seed, in order."""
        ...

    def sync_weights(self, model: nn.Module) -> None:
        """Take over the policy's weights; `model` is unwrapped, and may be a PEFT model."""
        ...

    def close(self) -> None:
        """Free what the engine holds: memory, a server it started."""
        ...


@dataclass(frozen=True)
class Rollout:
    """One trajectory: a prompt, and what the policy and, between, an environment wrote after it.

    Attributes:
        completion_ids: all that follows the prompt, in order.
        logprobs: one a completion token, the sampler's; 0 where the environment wrote.
        is_target: one a completion token, 1 where the policy wrote; None where it wrote all.
        is_finished: it came to an end by itself; False where a limit cut it off.
        support: as in `Completion`, an empty list where the environment wrote; None where none was cut.
        messages: the conversation after the prompt, where there were turns; None for a single completion.
        columns: what an environment or a rollout function adds for the reward functions, by name.
        images: of the prompt, as in `Request`; one object for all rollouts of a prompt.
    """

    prompt_ids: list[int]
    completion_ids: list[int]
    logprobs: list[float]
    is_finished: bool
    is_target: list[int] | None = None
    support: list[list[int]] | None = None
    messages: list[dict[str, Any]] | None = None
    columns: dict[str, Any] = field(default_factory=dict)
    images: Mapping[str, Tensor] | None = None


def rollout_seed(*key: int | str) -> int:
    """A seed from what names a completion, such as (seed, step, prompt, copy): below 2**63, independent between
    keys."""
    digest = hashlib.sha256(repr(key).encode()).digest()
    return int.from_bytes(digest[:8], "little") >> 1
