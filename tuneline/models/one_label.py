"""A classifier of two labels as a reward model."""

from __future__ import annotations

import torch
from torch import nn
from transformers import PreTrainedModel

from tuneline.logging import get_logger

logger = get_logger(__name__)

_HEADS = ("score", "classifier.out_proj", "classifier")


def score_of_two_labels(model: PreTrainedModel) -> PreTrainedModel:
    """The model, changed in place to score with the log-odds of its second label against its first.

    That is what it knew (logit 1 less logit 0, and softmax over two logits is the sigmoid of it), and what the
    Bradley-Terry loss takes. A model whose head is not one linear layer of two outputs is left as it is.
    """
    for name in _HEADS:
        parent, _, child = name.rpartition(".")
        holder = getattr(model, parent, None) if parent else model
        head = getattr(holder, child, None)
        if isinstance(head, nn.Linear) and head.out_features == 2:
            setattr(holder, child, _difference(head))
            model.config.num_labels = model.num_labels = 1
            logger.warning(
                "%s has two labels: its score is the logit of the second less that of the first; load it with "
                "num_labels=1 for a new head",
                type(model).__name__,
            )
            break
    return model


@torch.no_grad()
def _difference(head: nn.Linear) -> nn.Linear:
    new = nn.Linear(head.in_features, 1, bias=head.bias is not None).to(head.weight)
    new.weight.copy_(head.weight[1:] - head.weight[:1])
    if head.bias is not None:
        new.bias.copy_(head.bias[1:] - head.bias[:1])
    return new.train(head.training)
