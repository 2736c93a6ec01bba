"""Checkpoints in the names that an architecture's first release gave its weights.

`save_pretrained` writes some models' weights under other names than they have in memory, so that older code reads them
(`model.visual.blocks` of Qwen2.5-VL as `visual.blocks`, experts one by one). transformers' Trainer, which resumes by
`load_state_dict`, then finds none of them, warns, and goes on from whatever the model held (5.19).
"""

from __future__ import annotations

from typing import Any

from torch import nn
from transformers import PreTrainedModel

from tuneline.logging import get_logger

logger = get_logger(__name__)


def take_saved_names(model: nn.Module) -> None:
    """Let `load_state_dict` of a transformers model take weights by the names that `save_pretrained` writes."""
    if isinstance(model, PreTrainedModel):
        model.register_load_state_dict_pre_hook(_translate)


def _translate(model: PreTrainedModel, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
    own = model.state_dict().keys()
    if prefix or not state_dict.keys() - own or not own - state_dict.keys():
        return
    saved = dict(state_dict)
    loaded = type(model).from_pretrained(None, config=model.config, state_dict=saved, dtype=model.dtype)
    state_dict.clear()
    state_dict.update(loaded.state_dict())
    logger.info("%s: weights taken by the names they were saved with", type(model).__name__)
