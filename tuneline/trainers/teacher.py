"""The teacher of a distillation: a model that is asked and never trained, a whole copy of it a process."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from tuneline.divergence import PendingLogits, pending_logits
from tuneline.errors import ConfigError
from tuneline.models.layouts import output_head, prepare_for_trees
from tuneline.models.loading import load_causal_lm
from tuneline.trees import PromptTrees


class Teacher:
    """What the teacher says of the targets of a batch.

    Args:
        model: a causal language model, its name or folder.
        student: whose vocabulary it has to share.
        init_kwargs: for `from_pretrained`, where the teacher is given by name.

    Raises:
        ConfigError: there is none, it is the student itself, or it has another vocabulary.
        ModelError: one that cannot be loaded.
    """

    def __init__(
        self,
        model: str | PreTrainedModel | None,
        student: nn.Module,
        device: torch.device,
        init_kwargs: dict[str, Any] | str | None = None,
        **kwargs: Any,
    ):
        if model is None:
            raise ConfigError("there is no teacher; pass teacher_model, or set teacher_model_name_or_path.")
        if init_kwargs is not None and not isinstance(model, str):
            raise ConfigError("teacher_model_init_kwargs are for a teacher given by name, and teacher_model is loaded.")
        teacher: Any = load_causal_lm(model, init_kwargs, **kwargs) if isinstance(model, str) else model
        if teacher is student:
            raise ConfigError("model and teacher_model are one object, which would train; load the teacher anew.")
        prepare_for_trees(teacher)
        heads: list[Any] = [output_head(one) for one in (student, teacher)]
        sizes = [len(head.weight) for head in heads]
        if sizes[0] != sizes[1]:
            raise ConfigError(
                f"the student has {sizes[0]} tokens and the teacher {sizes[1]}; whole next-token distributions are "
                "compared, which takes one vocabulary: use a teacher with the student's tokenizer."
            )
        self.model: nn.Module = teacher.to(device).eval().requires_grad_(False)

    def answer(self, trees: PromptTrees) -> PendingLogits:
        return pending_logits(self.model, trees)
