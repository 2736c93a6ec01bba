"""Responses for queries, many at a time: by the library's own engine where it knows the model and the options, else by
the model's `generate`."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import Tensor
from transformers import GenerationConfig, PreTrainedTokenizerBase

from tuneline.errors import ConfigError, DataError
from tuneline.logging import get_logger
from tuneline.models.layouts import base_model
from tuneline.rollout.protocol import Request, Sampling
from tuneline.rollout.readable import why_not_readable
from tuneline.rollout.transformers_engine import TransformersEngine

logger = get_logger(__name__)

# What the engine does as `generate` does, and what changes nothing about what is drawn.
_KNOWN = {"max_new_tokens", "max_length", "do_sample", "temperature", "top_k", "top_p", "min_p", "repetition_penalty"}
_HARMLESS = {
    *("pad_token_id", "bos_token_id", "eos_token_id", "decoder_start_token_id", "use_cache", "transformers_version"),
    *("output_scores", "output_logits", "output_attentions", "output_hidden_states", "return_dict_in_generate"),
}
_WITHOUT_EFFECT: dict[str, tuple[Any, ...]] = {
    "min_length": (-1, 0),
    "min_new_tokens": (0,),
    "num_beams": (1,),
    "num_return_sequences": (1,),
    "typical_p": (1.0,),
    "length_penalty": (1.0,),
    "no_repeat_ngram_size": (0,),
}
_ROWS_PADDED = 4  # queries a call of `generate`, as TRL has it


class Generation(NamedTuple):
    """How responses are drawn."""

    sampling: Sampling
    max_length: int | None  # of query and response together, where that is the limit
    needs_generate: list[str]  # options that only the model's own `generate` knows
    options: dict[str, Any]  # for it


def read_options(model: Any, tokenizer: PreTrainedTokenizerBase, given: dict[str, Any]) -> Generation:
    """What `generate` would do with these keywords: they stand over those of the model's generation configuration.

    Raises:
        ConfigError: a keyword that `generate` does not know.
    """
    config: GenerationConfig = copy.deepcopy(base_model(model).generation_config)
    unknown = config.update(**given)
    if unknown:
        raise ConfigError(f"generate got {', '.join(sorted(unknown))}, which transformers does not know.")
    if "max_new_tokens" in given:
        config.max_length = None
    elif "max_length" in given:
        config.max_new_tokens = None
    samples = bool(config.do_sample)
    stops = given.get("eos_token_id", [config.eos_token_id, tokenizer.eos_token_id])
    sampling = Sampling(
        max_new_tokens=config.max_new_tokens or 20,  # as many as `generate` writes where nothing is said
        temperature=_or(config.temperature, 1.0) if samples else 0.0,
        top_p=_or(config.top_p, 1.0) if samples else 1.0,
        top_k=int(_or(config.top_k, 50)) if samples else 0,
        min_p=config.min_p if samples else None,
        repetition_penalty=_or(config.repetition_penalty, 1.0),
        stop_token_ids=tuple(sorted({stop for stop in _flat(stops) if stop is not None and stop >= 0})),
    )
    set_options = {name: value for name, value in config.to_diff_dict().items() if not name.startswith("_")}
    others = [
        name
        for name, value in set_options.items()
        if name not in _KNOWN | _HARMLESS and value not in (None, False, *_WITHOUT_EFFECT.get(name, ()))
    ]
    max_length = config.max_length if config.max_new_tokens is None else None
    return Generation(sampling, max_length, others, given)


def _or(value: Any, default: Any) -> Any:
    return default if value is None else value


def _flat(values: Any) -> list[int | None]:
    if isinstance(values, Tensor):
        values = values.tolist()
    if not isinstance(values, list | tuple):
        return [values]
    return [one for value in values for one in _flat(value)]


def respond(
    model: Any,
    tokenizer: PreTrainedTokenizerBase,
    queries: Sequence[list[int]],
    seeds: Sequence[int],
    *,
    batch_size: int | None = None,
    length_sampler: Callable[[], int] | None = None,
    options: dict[str, Any] | None = None,
    copies: int = 1,
) -> list[list[int]]:
    """What the model writes after each query, without the query; for an encoder-decoder with its start token.

    Args:
        model: a language model, its adapters at work as they are.
        seeds: one a response, `copies` behind one another for each query. Read by the engine; `generate` draws from
            torch's generator.
        batch_size: responses written side by side; None for what suits.
        length_sampler: gives the most new tokens: of each query, and where `generate` is needed of each batch of them.
        options: keywords of `generate`.
        copies: responses a query.

    Raises:
        DataError: an empty query, or one that leaves no room.
        ConfigError: a keyword that `generate` does not know.
    """
    given = dict(options or {})
    if length_sampler is not None:
        given["max_new_tokens"] = 1
    generation = read_options(model, tokenizer, given)
    reason = why_not_readable(model) or (
        f"{', '.join(generation.needs_generate)} is for transformers' generate" if generation.needs_generate else None
    )
    if reason is not None:
        logger.debug("generating with the model's own generate: %s", reason)
        return _by_generate(model, tokenizer, queries, generation, batch_size or _ROWS_PADDED, length_sampler, copies)
    limits = [_limit(query, generation, length_sampler, number) for number, query in enumerate(queries)]
    requests = [
        Request(query, seeds[copies * i : copies * (i + 1)], max_new_tokens=limit)
        for i, (query, limit) in enumerate(zip(queries, limits, strict=True))
    ]
    sampling = replace(generation.sampling, max_new_tokens=max(limits, default=1))
    written = TransformersEngine(model, batch_size=batch_size).generate(requests, sampling)
    return [completion.ids for group in written for completion in group]


def _limit(query: list[int], generation: Generation, length_sampler: Callable[[], int] | None, number: int) -> int:
    if length_sampler is not None:
        return length_sampler()
    if generation.max_length is None:
        return generation.sampling.max_new_tokens
    if generation.max_length <= len(query):
        raise DataError(
            f"query {number} has {len(query)} tokens, and max_length={generation.max_length} counts them too; give "
            "max_new_tokens."
        )
    return generation.max_length - len(query)


@torch.no_grad()
def _by_generate(
    model: Any,
    tokenizer: PreTrainedTokenizerBase,
    queries: Sequence[list[int]],
    generation: Generation,
    batch_size: int,
    length_sampler: Callable[[], int] | None,
    copies: int,
) -> list[list[int]]:
    """By `generate`, queries padded on the left."""
    is_encoder_decoder = base_model(model).config.is_encoder_decoder
    pad = next(i for i in (tokenizer.pad_token_id, tokenizer.eos_token_id, 0) if i is not None)
    options: dict[str, Any] = {"pad_token_id": pad, **generation.options}
    options |= {"eos_token_id": list(generation.sampling.stop_token_ids) or None, "return_dict_in_generate": False}
    if generation.max_length is None:
        options["max_new_tokens"] = generation.sampling.max_new_tokens
    training = [module for module in model.modules() if module.training]
    model.eval()
    repeated = [query for query in queries for _ in range(copies)]
    responses: list[list[int]] = []
    for start in range(0, len(repeated), batch_size):
        some = repeated[start : start + batch_size]
        width = max(len(query) for query in some)
        if length_sampler is not None:
            options["max_new_tokens"] = length_sampler()
        ids = torch.tensor([[pad] * (width - len(query)) + query for query in some], device=model.device)
        mask = torch.tensor([[0] * (width - len(query)) + [1] * len(query) for query in some], device=model.device)
        written = model.generate(input_ids=ids, attention_mask=mask, **options)
        first = 0 if is_encoder_decoder else width
        responses += [_cut(row[first:], generation.sampling, int(is_encoder_decoder)) for row in written.tolist()]
    for module in training:
        module.training = True
    return responses


def _cut(ids: list[int], sampling: Sampling, first: int) -> list[int]:
    """Up to the stop token; what follows it is padding."""
    for place in range(first, len(ids)):
        if ids[place] in sampling.stop_token_ids:
            return ids[: place + 1]
    return ids
