"""The same batch gives the same bits, whatever the threads do."""

import torch

from tests.models import tiny_causal_lm
from tests.trees.test_equality import random_trees
from tuneline.logprobs import token_logprobs
from tuneline.models.layouts import prepare_for_trees
from tuneline.trees import lay_out


def test_no_position_is_read_twice():
    # transformers reads the head's positions by x[:, positions, :]. Where one is named twice, threads add up its
    # gradient in the order in which they come to it, and the last digit differs from run to run; so each is named once,
    # and index_select, which adds in order, hands it to the targets that share it.
    model = tiny_causal_lm()
    prepare_for_trees(model)
    asked = []
    hook = lambda module, args, kwargs: asked.append(kwargs["logits_to_keep"])  # noqa: E731
    model.register_forward_pre_hook(hook, with_kwargs=True)
    trees = lay_out(random_trees())
    assert len(token_logprobs(model, trees).logprobs) == trees.num_targets
    (positions,) = asked
    assert len(positions) < trees.num_targets  # the branches of a tree share their prompt's end
    assert torch.equal(positions, trees.target_positions.unique())
