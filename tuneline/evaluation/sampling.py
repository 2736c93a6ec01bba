"""Completions of a causal language model, the same on every run.

Each prompt has random numbers of its own, drawn from (seed, prompt number): its sample does not depend on batch size,
order or the other prompts, and two policies asked with one seed are compared on common random numbers. A draw is the
Gumbel-max trick (Maddison, Tarlow and Minka 2014, arXiv:1411.0030): the token with the largest logit / temperature
- log E, with E exponential, is distributed as the softmax.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import (
    GenerationConfig,
    LogitsProcessor,
    LogitsProcessorList,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from tuneline.data.formats import is_messages
from tuneline.data.rendering import Rows, tokenize_values
from tuneline.rollout.stopping import stop_token_ids


@dataclass(frozen=True)
class Completion:
    """What a policy answered to one prompt."""

    ids: list[int]  # with the token that ended it, if one did
    text: str  # without special tokens
    finished: bool  # False when it was cut off at max_new_tokens

    @property
    def num_tokens(self) -> int:
        return len(self.ids)


def encode_prompts(tokenizer: PreTrainedTokenizerBase, columns: Mapping[str, list]) -> list[list[int]]:
    """Token ids of a column `prompt` of strings or dialogues, the latter with the mark that opens the answer.

    Raises:
        DataError, ModelError: as in training; a row that is no prompt, or no chat template.
    """
    rows = Rows(columns, range(len(columns["prompt"])))
    return tokenize_values(tokenizer, rows, rows.texts_or_messages("prompt"), add_generation_prompt=True)


def sample_completions(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[Sequence[int]],
    *,
    max_new_tokens: int,
    temperature: float,
    seed: int,
    batch_size: int,
    on_batch: Callable[[int], None] | None = None,
) -> list[Completion]:
    """One completion a prompt, in the order of the prompts.

    Prompts of like length share a batch, padded on the left. Penalties and filters that the model's own generation
    config asks for (top-k, repetition penalty, ...) are left out: what is measured is the policy itself.

    Args:
        prompts: token ids, at least one each.
        temperature: divides the logits; 0 takes the likeliest token.
        on_batch: told after each batch how many prompts are done.
    """
    stops = stop_token_ids(model, tokenizer)
    pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else next(iter(stops), 0)
    settings = GenerationConfig(
        max_new_tokens=max_new_tokens, do_sample=False, eos_token_id=stops or None, pad_token_id=pad
    )
    order = sorted(range(len(prompts)), key=lambda i: (len(prompts[i]), i))
    completions: dict[int, Completion] = {}
    own_settings = model.generation_config
    model.generation_config = settings  # generate would fill what is unset from the model's own
    model.eval()
    try:
        for start in range(0, len(order), batch_size):
            numbers = order[start : start + batch_size]
            batch = [list(prompts[i]) for i in numbers]
            draws = [_Draws(temperature, seed, numbers)] if temperature > 0 else []
            for i, ids in zip(numbers, _generate(model, batch, pad, settings, draws), strict=True):
                completions[i] = _completion(ids, tokenizer, stops)
            if on_batch is not None:
                on_batch(len(completions))
    finally:
        model.generation_config = own_settings
    return [completions[i] for i in range(len(prompts))]


def as_reply(prompt: Any, text: str) -> Any:
    """A completion in the notation of its prompt: a message of the assistant, or the text itself."""
    return [{"role": "assistant", "content": text}] if is_messages(prompt) else text


class _Draws(LogitsProcessor):
    """Adds each row's own Gumbel noise, so that the largest entry is a sample."""

    def __init__(self, temperature: float, seed: int, numbers: Sequence[int]):
        self.temperature = temperature
        states = [int(np.random.SeedSequence((seed, number)).generate_state(1, np.uint64)[0]) for number in numbers]
        self.generators = [torch.Generator().manual_seed(state) for state in states]

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """`scores` is (rows, vocab)."""
        noise = torch.empty(scores.shape)
        for row, generator in zip(noise, self.generators, strict=True):
            row.exponential_(generator=generator)
        return scores.float() / self.temperature - noise.log().to(scores.device)


@torch.inference_mode()
def _generate(
    model: PreTrainedModel, batch: list[list[int]], pad: int, settings: GenerationConfig, draws: list[_Draws]
) -> list[list[int]]:
    width = max(map(len, batch))
    input_ids = torch.tensor([[pad] * (width - len(ids)) + ids for ids in batch], device=model.device)
    mask = torch.tensor([[0] * (width - len(ids)) + [1] * len(ids) for ids in batch], device=model.device)
    output: Any = model.generate(
        input_ids=input_ids,
        attention_mask=mask,
        generation_config=settings,
        logits_processor=LogitsProcessorList(draws),
    )
    return output[:, width:].tolist()


def _completion(ids: list[int], tokenizer: PreTrainedTokenizerBase, stops: Sequence[int]) -> Completion:
    end = next((i for i, token in enumerate(ids) if token in stops), None)
    finished = end is not None
    body = ids[:end]
    text = tokenizer.decode(body, skip_special_tokens=True)
    assert isinstance(text, str)
    return Completion(ids[: len(body) + finished], text, finished)
