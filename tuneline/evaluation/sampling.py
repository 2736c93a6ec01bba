"""Completions of a causal language model, the same on every run.

Each completion has random numbers of its own, drawn from (seed, prompt number, copy): it depends neither on batch size
nor on order or the other prompts, and two policies asked with one seed are compared on common random numbers.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import (
    GenerationConfig,
    LogitsProcessor,
    LogitsProcessorList,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from tuneline.data.rendering import Rows, tokenize_values
from tuneline.logging import get_logger
from tuneline.rollout.protocol import Request, Sampling, rollout_seed
from tuneline.rollout.readable import why_not_readable
from tuneline.rollout.stopping import stop_token_ids
from tuneline.rollout.transformers_engine import TransformersEngine

logger = get_logger(__name__)


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
    num_completions: int = 1,
    on_progress: Callable[[int], None] | None = None,
) -> list[list[Completion]]:
    """So many completions of each prompt, in the order of the prompts; the first ones are those that fewer would be.

    The transformers engine writes them. A model that it cannot read is asked by transformers' `generate`, which takes
    longer. Penalties and filters that the model's own generation config asks for (top-k, repetition penalty, ...) are
    left out: what is measured is the policy itself.

    Args:
        prompts: token ids, at least one each.
        temperature: divides the logits; 0 takes the likeliest token.
        batch_size: completions written side by side.
        on_progress: told how many completions are done, once in about `batch_size` of them and at the end.
    """
    stops = stop_token_ids(model, tokenizer)
    sampling = Sampling(max_new_tokens, temperature, stop_token_ids=tuple(stops))
    requests = [
        Request(ids, [rollout_seed(seed, number, copy) for copy in range(num_completions)])
        for number, ids in enumerate(prompts)
    ]
    tell = _Steps(batch_size, on_progress)
    reason = why_not_readable(model)
    if reason is None:
        engine = TransformersEngine(model, batch_size=batch_size, on_progress=tell)
        written = [[one.ids for one in group] for group in engine.generate(requests, sampling)]
    else:
        logger.info("%s is asked by its generate, as the engine cannot: %s", type(model).__name__, reason)
        pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else next(iter(stops), 0)
        written = _generate_all(model, requests, sampling, pad, batch_size, tell)
    return [[_completion(ids, tokenizer, stops) for ids in group] for group in written]


class _Steps:
    """Passes progress on once in so many completions."""

    def __init__(self, every: int, listener: Callable[[int], None] | None):
        self.every, self.listener, self.told = every, listener, 0

    def __call__(self, num_done: int, total: int) -> None:
        if self.listener is not None and (num_done - self.told >= self.every or num_done == total):
            self.told = num_done
            self.listener(num_done)


class _Draws(LogitsProcessor):
    """Adds each row's own Gumbel noise, so that the largest entry is a sample (Maddison, Tarlow and Minka 2014,
    arXiv:1411.0030): logit / temperature - log E, with E exponential."""

    def __init__(self, temperature: float, seeds: Sequence[int]):
        self.temperature = temperature
        self.generators = [torch.Generator().manual_seed(seed) for seed in seeds]

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """`scores` is (rows, vocab)."""
        noise = torch.empty(scores.shape)
        for row, generator in zip(noise, self.generators, strict=True):
            row.exponential_(generator=generator)
        return scores.float() / self.temperature - noise.log().to(scores.device)


def _generate_all(
    model: PreTrainedModel,
    requests: Sequence[Request],
    sampling: Sampling,
    pad: int,
    batch_size: int,
    tell: Callable[[int, int], None],
) -> list[list[list[int]]]:
    """By `generate`: prompts of like length share a batch, padded on the left."""
    settings = GenerationConfig(
        max_new_tokens=sampling.max_new_tokens,
        do_sample=False,
        eos_token_id=list(sampling.stop_token_ids) or None,
        pad_token_id=pad,
    )
    wanted = [(number, copy) for number, request in enumerate(requests) for copy in range(len(request.seeds))]
    wanted.sort(key=lambda place: (len(requests[place[0]].prompt_ids), place))
    written: list[list[list[int]]] = [[[] for _ in request.seeds] for request in requests]
    own_settings = model.generation_config
    model.generation_config = settings  # generate would fill what is unset from the model's own
    model.eval()
    try:
        for start in range(0, len(wanted), batch_size):
            batch = wanted[start : start + batch_size]
            prompts = [list(requests[number].prompt_ids) for number, _ in batch]
            seeds = [requests[number].seeds[copy] for number, copy in batch]
            draws = [_Draws(sampling.temperature, seeds)] if sampling.temperature > 0 else []
            for (number, copy), ids in zip(batch, _generate(model, prompts, pad, settings, draws), strict=True):
                written[number][copy] = ids
            tell(start + len(batch), len(wanted))
    finally:
        model.generation_config = own_settings
    return written


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
