"""A reward model that is an adapter on the policy's own base model: no second model in memory.

>>> from tuneline import GRPOTrainer                                                # doctest: +SKIP
>>> GRPOTrainer("base", reward_funcs=RewardAdapter("runs/reward"), peft_config=...)  # doctest: +SKIP
"""

from __future__ import annotations

import os
from typing import Any

import torch
from peft import PeftModel
from torch import Tensor
from torch.distributed.fsdp import FSDPModule, FullyShardedDataParallel
from transformers import PreTrainedTokenizerBase

from tuneline.errors import ConfigError, ModelError
from tuneline.models.adapters import REWARD_ADAPTER, adapter_parameters
from tuneline.models.hidden_states import hidden_states, reading
from tuneline.models.layouts import policy_of, prepare_for_trees
from tuneline.models.loading import load_tokenizer
from tuneline.models.saved_adapter import read_scored_adapter
from tuneline.rewards.models import SequenceScorer
from tuneline.trees import PromptTrees


class RewardAdapter(SequenceScorer):
    """The score that a reward adapter gives to prompt and completion, on the backbone of the policy in training.

    It is what `RewardTrainer` with a `peft_config` saved: the adapter's weights and its score head. The adapter is
    loaded beside the policy's, under the name `reward`, frozen; the trainer attaches it before training and calls it
    when the policy does nothing else. Nothing of it is saved with the policy.

    Args:
        folder: of the adapter, or its name on a hub.
        tokenizer: by default that of the folder.

    Raises:
        ModelError: no adapter there, one without a score head of one label, or one that changed its base's weights.
    """

    def __init__(self, folder: str | os.PathLike[str], tokenizer: PreTrainedTokenizerBase | None = None):
        super().__init__()
        self.folder = os.fspath(folder)
        self.tokenizer = tokenizer if tokenizer is not None else load_tokenizer(self.folder)
        self.__name__ = self.folder.rstrip("/").rpartition("/")[2]
        self.name: str | None = None  # of the adapter on the policy
        self._saved = read_scored_adapter(self.folder)
        self._saved.config.inference_mode = True

    def __reduce__(self) -> tuple:
        return RewardAdapter, (self.folder, self.tokenizer)

    def attach(self, policy: Any) -> None:
        """Load the adapter beside the policy's.

        Raises:
            ModelError: a policy without adapters, or another base model than the reward's.
        """
        policy = policy_of(policy)
        if self.name is not None and self.model is policy:
            return
        if not isinstance(policy, PeftModel):
            raise ModelError(
                f"the reward adapter {self.folder!r} needs the base model that the policy's own adapter leaves as it "
                f"is, and the policy is a {type(policy).__name__} that trains whole; pass peft_config, or a reward "
                "model of its own."
            )
        name, number = REWARD_ADAPTER, 1
        while adapter_parameters(policy, name):
            number += 1
            name = f"{REWARD_ADAPTER}_{number}"
        self.reads_trees = prepare_for_trees(policy)
        self._saved.load_beside(policy, name, trains=False)
        self.model, self.name = policy, name

    def __call__(self, prompts: list, completions: list, **columns: Any) -> list[float]:
        """One score a completion.

        Raises:
            ModelError: it was not attached to a policy.
        """
        if self.name is None:
            raise ModelError(
                f"the reward adapter {self.folder!r} is on no policy; give it to a trainer as a reward function, or "
                "call attach(policy)."
            )
        return super().__call__(prompts, completions)

    def scores(self, trees: PromptTrees) -> Tensor:
        """(sequences,), float32.

        Raises:
            ConfigError: the policy's weights are spread over processes.
        """
        if any(isinstance(module, FSDPModule | FullyShardedDataParallel) for module in self.model.modules()):
            raise ConfigError(
                f"the reward adapter {self.folder!r} reads the policy's base outside of its wrapper, and FSDP has "
                "spread that over processes; train with DDP, or use a reward model of its own."
            )
        sequences = torch.arange(trees.num_sequences, device=trees.input_ids.device)
        was_training = self.model.training
        self.model.eval()
        try:
            what = reading(self.model, trees, trees.sequence_ends, sequences, adapter=self.name)
            hidden = hidden_states(self.model, what, self.name)
        finally:
            self.model.train(was_training)
        return self._saved.head.to(hidden.device)(hidden)
