"""Completions from a plain transformers model: the engine that needs nothing but the model in training.

Prompts are read first, once each however many completions they have, those of like length together. Completions are
then written side by side, a token each a step; one that is done leaves its row to the next in line. All randomness of
a completion comes from a Philox generator of its own (Salmon et al. 2011, doi:10.1145/2063384.2063405), so that the
rest of the batch has no part in it. What remains is the rounding of matrix products, which differs with the number of
rows: in float32 it decides one draw in some hundred thousand.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.cache_utils import DynamicCache

from tuneline.errors import ConfigError, DataError
from tuneline.models.layouts import num_virtual_tokens
from tuneline.products import use_fast_products
from tuneline.rollout.cache import ROW_ATTENTION, RowCache
from tuneline.rollout.drawing import BLOCK, check_sampling, draw, num_blocks, penalize_repetition
from tuneline.rollout.images import (
    attention_of_text,
    read_with_images,
    set_attention_of_text,
    without_image_tokens,
)
from tuneline.rollout.protocol import Completion, Request, Sampling
from tuneline.rollout.readable import readable_model, virtual_prefix

# Rows side by side where no batch_size is given. A CPU's matrix products gain little beyond; a GPU's do.
_BATCH_SIZE = {"cpu": 64}
_BATCH_SIZE_GPU = 256


class TransformersEngine:
    """Implements `RolloutEngine` on the model itself.

    Args:
        model: a causal language model of transformers whose attention is built on its AttentionInterface (Llama,
            Qwen, Gemma, GPT-2, ...), also inside PEFT or after `prepare_for_trees`. It generates in evaluation mode
            and under the caller's autocast; the mode of every module is restored.
        batch_size: completions written side by side; None for 64 on a CPU and 256 elsewhere.
        max_cached_tokens: keys and values kept at once, in tokens; fewer rows are used where prompts and limits are
            so long that `batch_size` rows would hold more. One token takes 2 x layers x kv heads x head size numbers.
        prefill_tokens: prompt tokens, with padding, read in one forward pass.
        on_progress: told (completions done, completions asked for) whenever some are done.

    Raises:
        ModelError: a model that cannot be read this way; the message has the reason.
        ConfigError: a size below 1.
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        batch_size: int | None = None,
        max_cached_tokens: int = 2**18,
        prefill_tokens: int = 4096,
        on_progress: Callable[[int, int], None] | None = None,
    ):
        sizes = {"batch_size": batch_size, "max_cached_tokens": max_cached_tokens, "prefill_tokens": prefill_tokens}
        for name, value in sizes.items():
            if value is not None and value < 1:
                raise ConfigError(f"{name}={value} must be at least 1.")
        self.batch_size, self.max_cached_tokens, self.prefill_tokens = batch_size, max_cached_tokens, prefill_tokens
        self.on_progress = on_progress
        self.policy, self.model = model, readable_model(model)

    def generate(self, requests: Sequence[Request], sampling: Sampling) -> list[list[Completion]]:
        """For each request a completion a seed, in order.

        Raises:
            ConfigError: a sampling value out of its range.
            DataError: an empty prompt, a token that is not in the vocabulary, or a prompt with no room for its
                completions.
            RolloutError: logits that are not finite.
        """
        check_sampling(sampling)
        prompts = _prompts(requests, sampling, self.model, num_virtual_tokens(self.policy))
        completions: list[list[Completion | None]] = [[None] * len(request.seeds) for request in requests]
        total = sum(len(prompt.waiting) for prompt in prompts)
        num_done = 0
        if prompts:
            with generating(self.model):
                for rows in _Writing(self, prompts, sampling).steps():
                    for row in rows:
                        completions[row.request][row.copy] = row.completion()
                    num_done += len(rows)
                    if rows and self.on_progress is not None:
                        self.on_progress(num_done, total)
        assert num_done == total
        return [[completion for completion in group if completion is not None] for group in completions]

    def sync_weights(self, model: nn.Module) -> None:
        """Generate with this model from now on: its parameters are read where they are."""
        self.policy, self.model = model, readable_model(model)

    def close(self) -> None:
        """Nothing outlives a call of `generate`."""

    def num_rows(self, num_completions: int, capacity: int) -> int:
        """Completions written side by side, of at most `capacity` tokens each with their prompts."""
        batch_size = self.batch_size or _BATCH_SIZE.get(self.model.device.type, _BATCH_SIZE_GPU)
        return max(1, min(num_completions, batch_size, self.max_cached_tokens // capacity))


@dataclass
class _Row:
    """A completion being written."""

    request: int
    copy: int
    limit: int  # tokens at most
    seed: int
    next_id: int  # the last token, which is not in the cache yet
    length: int  # tokens in the cache
    shift: int  # position of a token less its place
    ids: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    support: list[list[int]] | None = None
    is_finished: bool = False

    def __post_init__(self) -> None:
        self.generator = np.random.Generator(np.random.Philox(self.seed))

    @property
    def is_done(self) -> bool:
        return self.is_finished or len(self.ids) == self.limit

    def completion(self) -> Completion:
        return Completion(self.ids, self.logprobs, self.is_finished, self.support)


@dataclass
class _Prompt:
    """A prompt, and its completions that have no row yet: (request, copy, seed, limit)."""

    ids: tuple[int, ...]
    images: Mapping[str, Tensor] = field(default_factory=dict)
    waiting: deque[tuple[int, int, int, int]] = field(default_factory=deque)
    states: list[tuple[Tensor, Tensor]] | None = None  # a layer: keys and values (kv heads, tokens, head size)
    shift: int = 0  # see `read_with_images`
    num_virtual: int = 0  # tokens that an adapter puts before it

    @property
    def num_cached(self) -> int:
        """All but the last token, which each completion reads in its first step."""
        return self.num_virtual + len(self.ids) - 1


class _Writing:
    """The state of one call of `generate`."""

    def __init__(self, engine: TransformersEngine, prompts: list[_Prompt], sampling: Sampling):
        self.model, self.sampling, self.prefill_tokens = engine.model, sampling, engine.prefill_tokens
        self.device = engine.model.device
        self.stops = frozenset(sampling.stop_token_ids)
        self.queue = deque(sorted(prompts, key=lambda prompt: len(prompt.ids), reverse=True))
        self.prefix = virtual_prefix(engine.policy)
        capacity = max(prompt.num_cached + 1 + limit for prompt in prompts for *_, limit in prompt.waiting)
        self.num_rows = engine.num_rows(sum(len(prompt.waiting) for prompt in prompts), capacity)
        text_config = engine.model.config.get_text_config()
        self.cache = RowCache(text_config.num_hidden_layers, self.num_rows, capacity)
        self.window = getattr(text_config, "sliding_window", None)
        self.layer_types = set(getattr(text_config, "layer_types", None) or ())
        self.rows: list[_Row] = []
        self.seen: Tensor | None = None  # (rows, vocab) bool, only for the repetition penalty
        if sampling.repetition_penalty != 1:
            vocab = engine.model.get_output_embeddings().weight.shape[0]
            self.seen = torch.zeros(self.num_rows, vocab, dtype=torch.bool, device=self.device)

    def steps(self) -> Iterator[list[_Row]]:
        """Write a token of each row; after each step the completions that are done."""
        while self.rows or self.queue:
            # New rows come several at a time, so that their prompts are read together.
            if self.queue and (not self.rows or 4 * (self.num_rows - len(self.rows)) >= self.num_rows):
                self._admit()
            self._write()
            yield self._dismiss()

    def _admit(self) -> None:
        """Fill the free rows from the queue."""
        num_free = self.num_rows - len(self.rows)
        entering: list[_Prompt] = []
        for prompt in self.queue:
            if sum(len(p.waiting) for p in entering) >= num_free:
                break
            entering.append(prompt)
        unread = [p for p in entering if p.num_cached and p.states is None]
        for group in _like_lengths([p for p in unread if not p.images], self.prefill_tokens):
            self._prefill(group)
        for prompt in unread:
            if prompt.images:
                cache = DynamicCache()
                prompt.shift = read_with_images(self.model, prompt.ids, prompt.images, cache)
                prompt.states = [(layer.keys[0], layer.values[0]) for layer in cache.layers]
        for prompt in entering:
            while prompt.waiting and len(self.rows) < self.num_rows:
                self._place(prompt)
            if not prompt.waiting:
                self.queue.popleft()
                prompt.states = None

    def _prefill(self, prompts: list[_Prompt]) -> None:
        """Keys and values of prompts, padded on the right where causal attention never looks."""
        width = prompts[0].num_cached  # the longest comes first
        # Padded with a token of the prompt: some models warn of padding tokens without a mask.
        rows = [p.ids[:-1] + p.ids[-1:] * (width - p.num_cached) for p in prompts]
        cache = DynamicCache()
        ids = torch.tensor(rows, dtype=torch.long, device=self.device)
        inputs: dict[str, Tensor] = {"input_ids": ids}
        if self.prefix is not None:
            own = self.model.get_input_embeddings()(ids)
            inputs = {"inputs_embeds": torch.cat([self.prefix.to(own).expand(len(rows), -1, -1), own], 1)}
        self.model(**inputs, past_key_values=cache, use_cache=True, logits_to_keep=1)
        for i, prompt in enumerate(prompts):
            n = prompt.num_cached
            # A copy where others are in the batch, which would otherwise live as long as this one.
            states = [(layer.keys[i, :, :n], layer.values[i, :, :n]) for layer in cache.layers]
            prompt.states = states if len(prompts) == 1 else [(k.clone(), v.clone()) for k, v in states]

    def _place(self, prompt: _Prompt) -> None:
        request, copy, seed, limit = prompt.waiting.popleft()
        place = len(self.rows)
        if prompt.states is not None:
            self.cache.fill(place, prompt.states)
        if self.seen is not None:
            self.seen[place] = False
            self.seen[place, torch.tensor(prompt.ids, device=self.device)] = True
        support: list[list[int]] | None = [] if self.sampling.cuts_support else None
        self.rows.append(
            _Row(request, copy, limit, seed, prompt.ids[-1], prompt.num_cached, prompt.shift, support=support)
        )

    def _write(self) -> None:
        """One forward pass of the newest token of each row, and the token drawn after it."""
        rows = self.rows
        lengths = torch.tensor([row.length for row in rows], device=self.device)
        positions = lengths + torch.tensor([row.shift for row in rows], device=self.device)
        visible = self.cache.begin_step(lengths)
        output = self.model(
            input_ids=torch.tensor([[row.next_id] for row in rows], device=self.device),
            attention_mask=self._mask(visible, lengths),
            position_ids=positions[:, None],
            past_key_values=self.cache,
            use_cache=True,
            logits_to_keep=1,
        )
        logits = without_image_tokens(self.model, output.logits[:, -1].float())
        if self.seen is not None:
            logits = penalize_repetition(logits, self.seen[: len(rows)], self.sampling.repetition_penalty)
        drawn = draw(logits, self._exponentials(logits.shape[1]), self.sampling)
        if self.seen is not None:
            self.seen[torch.arange(len(rows), device=self.device), drawn.ids] = True
        for row, token, logprob in zip(rows, drawn.ids.tolist(), drawn.logprobs.tolist(), strict=True):
            row.ids.append(token)
            row.logprobs.append(logprob)
            row.next_id = token
            row.length += 1
            row.is_finished = token in self.stops
        if drawn.kept is not None:
            for row, kept in zip(rows, drawn.kept.cpu(), strict=True):
                assert row.support is not None
                row.support.append(kept.nonzero()[:, 0].tolist())

    def _exponentials(self, vocab: int) -> Tensor:
        """The random numbers of this step, each row's from its own generator."""
        noise = np.empty((len(self.rows), num_blocks(vocab) + BLOCK))
        if self.sampling.temperature > 0:
            for numbers, row in zip(noise, self.rows, strict=True):
                row.generator.standard_exponential(out=numbers)
            np.maximum(noise, np.finfo(noise.dtype).tiny, out=noise)
        return torch.from_numpy(noise).to(self.device)

    def _mask(self, visible: Tensor, lengths: Tensor) -> Tensor | dict[str, Tensor]:
        """What the model is given as its mask: one, or one for each type of layer where they differ."""
        if self.window is None or self.layer_types == {"full_attention"}:
            return visible
        columns = torch.arange(visible.shape[-1], device=self.device)
        near = visible & (columns > (lengths[:, None] - self.window))[:, None, None]
        if not self.layer_types:
            return near
        return {"full_attention": visible, "sliding_attention": near}

    def _dismiss(self) -> list[_Row]:
        """Take out the completions that are done; the last rows move into their places."""
        done = [row for row in self.rows if row.is_done]
        if done:
            num_left = len(self.rows) - len(done)
            holes = [i for i in range(num_left) if self.rows[i].is_done]
            movers = [i for i in range(num_left, len(self.rows)) if not self.rows[i].is_done]
            if holes:
                self.cache.move(movers, holes, max(self.rows[i].length for i in movers))
                if self.seen is not None:
                    self.seen[holes] = self.seen[movers]
            for hole, mover in zip(holes, movers, strict=True):
                self.rows[hole] = self.rows[mover]
            del self.rows[num_left:]
        return done


@contextmanager
def generating(model: PreTrainedModel) -> Iterator[None]:
    """Evaluation mode, no gradients, attention by rows; all as before afterwards.

    In training mode gradient checkpointing would turn the cache off.
    """
    training = [module for module in model.modules() if module.training]
    attention = attention_of_text(model)
    model.eval()
    use_fast_products(model)
    set_attention_of_text(model, ROW_ATTENTION)
    try:
        with torch.no_grad():
            yield
    finally:
        set_attention_of_text(model, attention)
        for module in training:
            module.training = True
        # Autocast keeps its copies of the weights; those made here know no gradient.
        torch.clear_autocast_cache()


def _prompts(
    requests: Sequence[Request], sampling: Sampling, model: PreTrainedModel, num_virtual: int
) -> list[_Prompt]:
    """Each prompt once, with all completions that requests want of it; checked."""
    vocab = model.get_input_embeddings().weight.shape[0]
    max_length = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    prompts: dict[tuple[tuple[int, ...], int], _Prompt] = {}
    for number, request in enumerate(requests):
        ids = tuple(request.prompt_ids)
        limit = sampling.max_new_tokens
        if request.max_new_tokens is not None:
            limit = min(limit, request.max_new_tokens)
        if not ids:
            raise DataError(f"request {number}: the prompt is empty; it needs at least one token.")
        if not 0 <= min(ids) <= max(ids) < vocab:
            wrong = next(i for i in ids if not 0 <= i < vocab)
            raise DataError(
                f"request {number}: token {wrong} is not among the model's {vocab}; the prompt was made with the "
                "tokenizer of another model."
            )
        if limit < 1:
            raise ConfigError(f"request {number}: max_new_tokens={limit} must be at least 1.")
        length = num_virtual + len(ids)
        if max_length is not None and length + limit > max_length:
            raise DataError(
                f"request {number}: a prompt of {length} tokens and {limit} new ones are {length + limit}, and the "
                f"model's max_position_embeddings is {max_length}; lower max_new_tokens or leave the prompt out."
            )
        key = (ids, id(request.images) if request.images else 0)
        prompt = prompts.setdefault(key, _Prompt(ids, request.images or {}, num_virtual=num_virtual))
        prompt.waiting.extend((number, copy, seed, limit) for copy, seed in enumerate(request.seeds))
    return [prompt for prompt in prompts.values() if prompt.waiting]


def _like_lengths(prompts: list[_Prompt], max_tokens: int) -> Iterator[list[_Prompt]]:
    """Groups that are read together: at most `max_tokens` with padding, and no more than a quarter of it padding.

    `prompts` come longest first, so a group is as wide as its first.
    """
    group: list[_Prompt] = []
    num_real = 0
    for prompt in prompts:
        padded = (len(group) + 1) * (group[0].num_cached if group else prompt.num_cached)
        if group and (padded > max_tokens or 4 * (num_real + prompt.num_cached) < 3 * padded):
            yield group
            group, num_real = [], 0
        group.append(prompt)
        num_real += prompt.num_cached
    if group:
        yield group
