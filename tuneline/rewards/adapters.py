"""A reward model that is an adapter on the policy's own base model: no second model in memory.

>>> from tuneline import GRPOTrainer                                                # doctest: +SKIP
>>> GRPOTrainer("base", reward_funcs=RewardAdapter("runs/reward"), peft_config=...)  # doctest: +SKIP
"""

from __future__ import annotations

import os
from typing import Any

import torch
from peft import LoraConfig, PeftConfig, PeftModel, load_peft_weights
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from tuneline.errors import ModelError
from tuneline.heads import ScalarHead
from tuneline.logging import get_logger
from tuneline.models.adapters import REWARD_ADAPTER, adapter_parameters, load_adapter_beside
from tuneline.models.hidden_states import hidden_states, reading
from tuneline.models.layouts import base_model, policy_of, prepare_for_trees
from tuneline.models.loading import load_tokenizer
from tuneline.rewards.models import SequenceScorer
from tuneline.trees import PromptTrees

logger = get_logger(__name__)


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
        try:
            self._config = PeftConfig.from_pretrained(self.folder)
            tensors = load_peft_weights(self.folder, device="cpu")
        except (OSError, ValueError) as error:
            raise ModelError(
                f"{self.folder!r} holds no adapter ({str(error).splitlines()[0]}); name the folder that RewardTrainer "
                "saved to when it trained with a peft_config."
            ) from error
        self._head = _score_head(tensors, self.folder)
        self._tensors = {name: tensor for name, tensor in tensors.items() if ".score." not in name}
        _check_start(self._config, self.folder)
        self._config.inference_mode = True
        self._config.modules_to_save = None
        if isinstance(self._config.target_modules, list | set):
            self._config.target_modules = set(self._config.target_modules) - {"score"}

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
        own, other = self._config.base_model_name_or_path, base_model(policy).config.name_or_path
        if own and other and own != other:
            logger.warning(
                "the reward adapter %s was trained on %s, and the policy's base is %s: its scores hold only if these "
                "are the same weights",
                self.folder,
                own,
                other,
            )
        name, number = REWARD_ADAPTER, 1
        while adapter_parameters(policy, name):
            number += 1
            name = f"{REWARD_ADAPTER}_{number}"
        self.reads_trees = prepare_for_trees(policy)
        load_adapter_beside(policy, name, self._config, self._tensors)
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
        """(sequences,), float32."""
        sequences = torch.arange(trees.num_sequences, device=trees.input_ids.device)
        was_training = self.model.training
        self.model.eval()
        try:
            what = reading(self.model, trees, trees.sequence_ends, sequences, adapter=self.name)
            hidden = hidden_states(self.model, what, self.name)
        finally:
            self.model.train(was_training)
        return self._head.to(hidden.device)(hidden)


def _score_head(tensors: dict[str, Tensor], folder: str) -> ScalarHead:
    own = {name.rpartition(".")[2]: tensor for name, tensor in tensors.items() if ".score." in name}
    if "weight" not in own or own["weight"].dim() != 2 or len(own["weight"]) != 1:
        found = tuple(own["weight"].shape) if "weight" in own else "none"
        raise ModelError(
            f"the adapter in {folder!r} has no score head of one label (score.weight: {found}); train it with "
            "RewardTrainer, which saves the head along, or with a PEFT task_type of SEQ_CLS."
        )
    head = ScalarHead(own["weight"].shape[1], bias="bias" in own)
    head.load_state_dict(own)
    return head.requires_grad_(False)


def _check_start(config: PeftConfig, folder: str) -> None:
    start = config.init_lora_weights if isinstance(config, LoraConfig) else True
    if start not in (True, False, "gaussian"):
        raise ModelError(
            f"the adapter in {folder!r} began with init_lora_weights={start!r}, which changes the weights of its base "
            "model, and the policy's base has them unchanged; save it with path_initial_model_for_weight_conversion, "
            "or train it from another start."
        )
