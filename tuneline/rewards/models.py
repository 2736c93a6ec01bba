"""A sequence classifier as a reward function."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from tuneline.data.rendering import Rows, tokenize_values
from tuneline.errors import ModelError
from tuneline.models.layouts import base_model, prepare_for_trees
from tuneline.models.loading import load_reward_model, load_tokenizer
from tuneline.scores import sequence_scores, tree_of_whole
from tuneline.trees import PromptTrees, lay_out

_TOKENS_AT_ONCE = 8192


class SequenceScorer:
    """What scores prompt and completion by a model; a subclass says how trees are scored.

    Text ends with the tokenizer's end token and dialogues as their chat template has them end: so a reward model reads
    them in training. Completions of one prompt share it where the model reads trees; other models take padded rows,
    sequences of like length together.
    """

    model: nn.Module
    tokenizer: PreTrainedTokenizerBase
    reads_trees: bool
    __name__: str

    def __init__(self) -> None:
        self._lock = threading.Lock()

    def scores(self, trees: PromptTrees) -> Tensor:
        """(sequences,)"""
        raise NotImplementedError

    @torch.no_grad()  # not inference_mode: a model that also learns may keep tensors of this pass
    def __call__(self, prompts: list, completions: list, **columns: Any) -> list[float]:
        """One score a completion."""
        sequences = self._encode(prompts, completions)
        scores = [0.0] * len(sequences)
        device = next(self.model.parameters()).device
        with self._lock:
            for batch in self._batches(prompts, sequences):
                trees = lay_out([tree_of_whole([sequences[i] for i in group]) for group in batch]).to(device)
                given = self.scores(trees).tolist()
                for i, score in zip([i for group in batch for i in group], given, strict=True):
                    scores[i] = score
        return scores

    def _encode(self, prompts: list, completions: list) -> list[list[int]]:
        rows = Rows({"prompt": prompts, "completion": completions}, range(len(prompts)))
        return tokenize_values(
            self.tokenizer, rows, rows.joined("prompt", "completion"), eos_token=self.tokenizer.eos_token
        )

    def _batches(self, prompts: list, sequences: list[list[int]]) -> Iterator[list[list[int]]]:
        """Groups of numbers of sequences that are computed together: of one prompt, or alone; short groups first."""
        groups: dict[str, list[int]] = {}
        for i, prompt in enumerate(prompts):
            groups.setdefault(repr(prompt) if self.reads_trees else str(i), []).append(i)
        batch: list[list[int]] = []
        for group in sorted(groups.values(), key=lambda group: max(len(sequences[i]) for i in group)):
            together = [*batch, group]
            longest = max(len(sequences[i]) for i in group)
            num_tokens = (
                sum(len(sequences[i]) for one in together for i in one) if self.reads_trees else longest * len(together)
            )
            if batch and num_tokens > _TOKENS_AT_ONCE:
                yield batch
                batch = []
            batch.append(group)
        if batch:
            yield batch


class RewardModel(SequenceScorer):
    """The score that a sequence classifier gives to prompt and completion.

    Args:
        model: a sequence classifier; of several labels the first is the score. It is put into eval mode; a trainer
            moves it from the CPU to its own device.
        tokenizer: by default that of the model's folder.

    Raises:
        ModelError: a model without a configuration, or without a tokenizer.
    """

    def __init__(self, model: nn.Module, tokenizer: PreTrainedTokenizerBase | None = None):
        super().__init__()
        config = getattr(base_model(model), "config", None)
        if config is None:
            raise ModelError(
                f"{type(model).__name__} is no sequence classifier of transformers; wrap it in a function."
            )
        name = getattr(config, "_name_or_path", "") or ""
        if tokenizer is None and not name:
            raise ModelError("a reward model that was not loaded from a folder needs its tokenizer; give it along.")
        self.tokenizer = tokenizer if tokenizer is not None else load_tokenizer(name)
        self.model = model.eval()
        self.__name__ = name.rstrip("/").rpartition("/")[2] or type(base_model(model)).__name__
        text_config = config.get_text_config()
        if text_config.pad_token_id is None:
            text_config.pad_token_id = self.tokenizer.pad_token_id or 0
        self.reads_trees = config.num_labels == 1 and prepare_for_trees(model)

    @classmethod
    def load(cls, name: str, tokenizer: PreTrainedTokenizerBase | None = None) -> RewardModel:
        """A model by its name or folder, with one label."""
        return cls(load_reward_model(name), tokenizer or load_tokenizer(name))

    def move_to(self, device: torch.device) -> None:
        """From the CPU to a device; a model that lies on one, or on several, stays."""
        if all(parameter.device.type == "cpu" for parameter in self.model.parameters()):
            self.model.to(device)

    def __reduce__(self) -> tuple:
        return RewardModel, (self.model, self.tokenizer)

    def scores(self, trees: PromptTrees) -> Tensor:
        """(sequences,), float32."""
        return sequence_scores(self.model, trees)
