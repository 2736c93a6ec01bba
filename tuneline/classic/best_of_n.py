"""The best of several responses by a score: alignment without training (Stiennon et al. 2020, arXiv:2009.01325,
section 4.3)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import GenerationConfig, PreTrainedTokenizerBase

from tuneline.classic.generating import respond
from tuneline.errors import ConfigError, DataError
from tuneline.rollout.protocol import rollout_seed


class BestOfNSampler:
    """Draws `sample_size` responses a query, and keeps those that `queries_to_scores` likes best.

    All responses of all queries are drawn side by side, and scored in one call.

    Args:
        model: a language model, with a value head or without.
        queries_to_scores: takes texts, query and response together, and gives a score each.
        length_sampler: gives the most new tokens, of each query.
        sample_size: responses drawn a query.
        seed: of the tokens drawn; None for a seed from torch's generator at each call.
        n_candidates: responses kept a query.
        generation_config: how to draw; the model's own by default.

    Raises:
        ConfigError: sizes below 1, more to keep than to draw, or no tokenizer.
    """

    def __init__(
        self,
        model: Any,
        tokenizer: PreTrainedTokenizerBase,
        queries_to_scores: Callable[[list[str]], Sequence[float] | Tensor],
        length_sampler: Callable[[], int],
        sample_size: int = 4,
        seed: int | None = None,
        n_candidates: int = 1,
        generation_config: GenerationConfig | None = None,
    ):
        if not isinstance(tokenizer, PreTrainedTokenizerBase):
            raise ConfigError(f"tokenizer is a {type(tokenizer).__name__}; pass the model's tokenizer.")
        if not 1 <= n_candidates <= sample_size:
            raise ConfigError(
                f"n_candidates={n_candidates} of sample_size={sample_size}: keep at least 1, and at most what is drawn."
            )
        self.model, self.tokenizer, self.queries_to_scores = model, tokenizer, queries_to_scores
        self.length_sampler, self.sample_size, self.n_candidates = length_sampler, sample_size, n_candidates
        self.seed, self.generation_config = seed, generation_config
        self._num_calls = 0

    def generate(
        self,
        tokenized_query: Tensor | list[Tensor] | list[int] | list[list[int]],
        skip_special_tokens: bool = True,
        device: str | torch.device | None = None,
        **generation_kwargs: Any,
    ) -> list[list[str]]:
        """The best responses for each query.

        Args:
            tokenized_query: one query (length,), or several: a list of them, or a tensor (queries, length).
            skip_special_tokens: whether texts leave out special tokens.
            device: moves the model there.
            generation_kwargs: those of transformers' `generate`, over `generation_config`.

        Returns:
            For each query its `n_candidates` texts, query and response together, the best first.

        Raises:
            DataError: an empty query, or another number of scores than of texts.
        """
        queries = _queries(tokenized_query)
        model = getattr(self.model, "pretrained_model", self.model)
        if device is not None:
            model.to(device)
        options = {} if self.generation_config is None else self.generation_config.to_diff_dict()
        total = len(queries) * self.sample_size
        responses = respond(
            model,
            self.tokenizer,
            queries,
            self._seeds(total),
            length_sampler=self.length_sampler,
            options={"do_sample": True, **options, **generation_kwargs},
            copies=self.sample_size,
        )
        written = [
            (ids if model.config.is_encoder_decoder else queries[i // self.sample_size] + ids)
            for i, ids in enumerate(responses)
        ]
        texts = self.tokenizer.batch_decode(written, skip_special_tokens=skip_special_tokens)
        scores = torch.as_tensor(self.queries_to_scores(texts), dtype=torch.float32).flatten()
        if len(scores) != total:
            raise DataError(f"queries_to_scores gave {len(scores)} scores for {total} texts; it must give one each.")
        best = scores.view(-1, self.sample_size).topk(self.n_candidates).indices
        return [[texts[i * self.sample_size + j] for j in row] for i, row in enumerate(best.tolist())]

    def _seeds(self, total: int) -> list[int]:
        self._num_calls += 1
        seed = int(torch.randint(2**62, ())) if self.seed is None else self.seed
        return [rollout_seed("best of n", seed, self._num_calls, i) for i in range(total)]


def _queries(given: Any) -> list[list[int]]:
    if isinstance(given, Tensor):
        given = given[None] if given.ndim == 1 else given
    elif given and isinstance(given[0], int):
        given = [given]
    queries = [one.tolist() if isinstance(one, Tensor) else list(one) for one in given]
    if not queries or not all(queries):
        raise DataError("tokenized_query is empty; a query needs at least one token.")
    return queries
