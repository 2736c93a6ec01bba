"""An adapter with a score head, as `RewardTrainer` with a `peft_config` saves it: a reward on a base model that others
use too, or what a value function starts from."""

from __future__ import annotations

import os
from dataclasses import dataclass

from peft import LoraConfig, PeftConfig, PeftModel, load_peft_weights
from torch import Tensor

from tuneline.errors import ModelError
from tuneline.heads import ScalarHead
from tuneline.logging import get_logger
from tuneline.models.adapters import load_adapter_beside
from tuneline.models.layouts import base_model

logger = get_logger(__name__)


@dataclass(frozen=True)
class SavedAdapter:
    """What a folder holds."""

    folder: str
    config: PeftConfig
    tensors: dict[str, Tensor]  # without those of the head
    head: ScalarHead

    def load_beside(self, model: PeftModel, name: str, *, trains: bool) -> None:
        """Add the adapter to a model under another name, outside of what the model saves.

        Raises:
            ModelError: another base model.
        """
        own, other = self.config.base_model_name_or_path, base_model(model).config.name_or_path
        if own and other and own != other:
            logger.warning(
                "the adapter %s was trained on %s, and this base model is %s: what it says holds only if these are the "
                "same weights",
                self.folder,
                own,
                other,
            )
        load_adapter_beside(model, name, self.config, self.tensors, trains=trains)


def read_scored_adapter(folder: str | os.PathLike[str]) -> SavedAdapter:
    """The adapter of a folder, or of a name on a hub.

    Raises:
        ModelError: no adapter there, one without a score head of one label, or one that changed its base's weights.
    """
    folder = os.fspath(folder)
    try:
        config = PeftConfig.from_pretrained(folder)
        tensors = load_peft_weights(folder, device="cpu")
    except (OSError, ValueError) as error:
        raise ModelError(
            f"{folder!r} holds no adapter ({str(error).splitlines()[0]}); name the folder that RewardTrainer saved to "
            "when it trained with a peft_config."
        ) from error
    start = config.init_lora_weights if isinstance(config, LoraConfig) else True
    if start not in (True, False, "gaussian"):
        raise ModelError(
            f"the adapter in {folder!r} began with init_lora_weights={start!r}, which changes the weights of its base "
            "model, and other roles have the base as it was; save it with path_initial_model_for_weight_conversion, "
            "or train it from another start."
        )
    config.modules_to_save = None
    if isinstance(config, LoraConfig):
        config.lora_dropout = 0.0  # the new role knows no dropout
    if isinstance(config.target_modules, list | set):
        config.target_modules = set(config.target_modules) - {"score"}
    without_head = {name: tensor for name, tensor in tensors.items() if ".score." not in name}
    return SavedAdapter(folder, config, without_head, _score_head(tensors, folder))


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
