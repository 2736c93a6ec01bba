"""How much likelier a prompt is among desirable rows than among undesirable ones, by a classifier of embeddings.

For rows whose labels come from different prompts: "underlying distribution matching" of Binary Classifier Optimization
(Jung et al. 2024, arXiv:2404.04656).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from datasets import Dataset
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from tuneline.data.formats import render_dialogue, to_messages
from tuneline.errors import DataError
from tuneline.logging import get_logger

logger = get_logger(__name__)

DENSITY_RATIO = "density_ratio"


@dataclass(frozen=True)
class PromptEmbeddings:
    """Prompts to vectors, by a frozen model of the user's.

    Attributes:
        embed: takes `input_ids` and `attention_mask`, each (prompts, tokens), and gives (prompts, dimensions).
        tokenizer: the embedding model's.
        renderer: the policy's tokenizer, whose chat template makes text of dialogues.
    """

    embed: Callable[..., Tensor]
    tokenizer: PreTrainedTokenizerBase
    renderer: PreTrainedTokenizerBase
    batch_size: int
    device: torch.device

    @torch.no_grad()
    def __call__(self, prompts: Sequence[Any]) -> Tensor:
        """(prompts, dimensions), float64, on the CPU."""
        found = []
        for start in range(0, len(prompts), self.batch_size):
            texts = [self._text(prompt) for prompt in prompts[start : start + self.batch_size]]
            batch = self.tokenizer(texts, padding=True, truncation=True, return_tensors="pt").to(self.device)
            vectors = self.embed(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"])
            found.append(vectors.double().cpu())
        return torch.cat(found)

    def _text(self, prompt: Any) -> str:
        if isinstance(prompt, str):
            return prompt
        return render_dialogue(self.renderer, to_messages(prompt), add_generation_prompt=True)


class DensityRatio:
    """The ratio, fitted to a sample of the training rows' prompts; repeats to the bit for the same rows and seed.

    Raises:
        DataError: the rows stream, or all have the same label.
    """

    def __init__(
        self, rows: Any, embeddings: PromptEmbeddings, *, sample_size: int, bounds: tuple[float, float], seed: int
    ):
        if not isinstance(rows, Dataset):
            raise DataError("embedding_func needs training rows of known length; these stream.")
        self.embeddings, self.bounds = embeddings, bounds
        labels = torch.tensor([bool(label) for label in rows["label"]])
        generator = torch.Generator().manual_seed(seed)
        sampled = []
        for label in (True, False):
            indices = (labels == label).nonzero()[:, 0]
            if not len(indices):
                raise DataError(f"embedding_func compares prompts of both labels, and no row has label={label}.")
            sampled.append(indices[torch.randperm(len(indices), generator=generator)[:sample_size]])
        vectors = embeddings(rows.select(torch.cat(sampled).tolist())["prompt"][:])
        is_desirable = torch.tensor([True] * len(sampled[0]) + [False] * len(sampled[1]))
        self.weight, self.bias = fit_logistic_regression(vectors, is_desirable)
        right = (self._logits(vectors) > 0) == is_desirable
        logger.info(
            "density ratio: %.2f of %d desirable and %.2f of %d undesirable prompts told apart",
            right[is_desirable].double().mean(),
            len(sampled[0]),
            right[~is_desirable].double().mean(),
            len(sampled[1]),
        )

    def added_to(self, rows: Any) -> Dataset:
        """The rows with a column `density_ratio`, 1 for desirable ones."""
        _check(rows)
        undesirable = [i for i, label in enumerate(rows["label"]) if not label]
        ratios = torch.ones(len(rows), dtype=torch.double)
        if undesirable:
            logits = self._logits(self.embeddings(rows.select(undesirable)["prompt"][:]))
            lowest, highest = map(math.log, self.bounds)
            ratios[undesirable] = logits.clamp(lowest, highest).exp()
        return rows.add_column(DENSITY_RATIO, ratios.tolist())

    def _logits(self, vectors: Tensor) -> Tensor:
        return vectors @ self.weight + self.bias


def _check(rows: Any) -> None:
    if not isinstance(rows, Dataset):
        raise DataError("embedding_func needs rows of known length; these stream.")
    if not {"prompt", "label"} <= set(rows.column_names):
        raise DataError(f"The dataset has the columns {', '.join(rows.column_names)}; expected 'prompt' and 'label'.")


def fit_logistic_regression(vectors: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Weights and bias of a logistic regression with an L2 penalty of 1/2 on the weights, both labels counting alike.

    Args:
        vectors: (rows, dimensions), float64.
        labels: (rows,), bool, of both kinds.

    Returns:
        (dimensions,) and ().
    """
    weight = torch.zeros(vectors.shape[1], dtype=vectors.dtype, requires_grad=True)
    bias = torch.zeros((), dtype=vectors.dtype, requires_grad=True)
    targets = labels.to(vectors.dtype)
    share = targets.mean()
    importance = torch.where(labels, 0.5 / share, 0.5 / (1 - share))
    optimizer = torch.optim.LBFGS(
        [weight, bias], max_iter=500, tolerance_grad=1e-8, tolerance_change=1e-12, line_search_fn="strong_wolfe"
    )

    def closure() -> Tensor:
        optimizer.zero_grad()
        logits = vectors @ weight + bias
        losses = torch.nn.functional.binary_cross_entropy_with_logits(logits, targets, importance, reduction="sum")
        loss = losses + weight.square().sum() / 2
        loss.backward()
        return loss

    with torch.enable_grad():
        optimizer.step(closure)
    return weight.detach(), bias.detach()
