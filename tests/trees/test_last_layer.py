"""What the last layer and a checkpointed layer need not compute is not computed, and nothing changes by it."""

import pytest
import torch
from torch.testing import assert_close
from torch.utils._python_dispatch import TorchDispatchMode

from tests.models import ARCHITECTURES, tiny_reward_model
from tests.trees.test_equality import gradients, random_trees
from tuneline.attention import Segments
from tuneline.models.layouts import prepare_for_trees
from tuneline.scores import sequence_scores
from tuneline.trees import lay_out

FLASH = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu.default


class Counted(TorchDispatchMode):
    """Counts the calls of one operator."""

    def __init__(self, operator):
        super().__init__()
        self.operator, self.calls = operator, 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.calls += func is self.operator
        return func(*args, **(kwargs or {}))


def scored(model, trees):
    scores = sequence_scores(model, trees)
    (scores * torch.linspace(-1, 2, len(scores))).sum().backward()
    return scores, gradients(model)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_the_last_layer_feeds_forward_at_sequence_ends_alone(architecture):
    model = tiny_reward_model(architecture)
    prepare_for_trees(model)
    trees = lay_out(random_trees())
    mlps = [module for name, module in model.named_modules() if name.endswith(".mlp")]
    seen = {}
    for i, mlp in enumerate(mlps):
        child = next(module for module in mlp.modules() if not list(module.children()))
        child.register_forward_pre_hook(lambda module, args, i=i: seen.update({i: args[0].shape[1]}))
    scored(model, trees)
    assert seen == {0: trees.num_tokens, 1: trees.num_sequences}


def test_where_most_positions_are_read_the_last_layer_is_whole():
    model = tiny_reward_model()
    prepare_for_trees(model)
    trees = lay_out(random_trees())
    segments = Segments(trees.segments, trees.num_tokens, read=torch.arange(trees.num_tokens - 1))
    last = model.model.layers[-1]
    shapes = []
    last.mlp.gate_proj.register_forward_pre_hook(lambda module, args: shapes.append(args[0].shape[1]))
    model(input_ids=trees.input_ids, position_ids=trees.position_ids, segments=segments, use_cache=False)
    assert shapes == [trees.num_tokens]


def test_a_checkpointed_layer_computes_its_attention_once():
    trees = lay_out(random_trees())
    plain, checkpointed = tiny_reward_model(), tiny_reward_model()
    for model in (plain, checkpointed):
        prepare_for_trees(model)
        model.train()
    checkpointed.gradient_checkpointing_enable({"use_reentrant": False})
    with Counted(FLASH) as once:
        expected, expected_gradients = scored(plain, trees)
    with Counted(FLASH) as again:
        found, found_gradients = scored(checkpointed, trees)
    assert once.calls > 0
    assert again.calls == once.calls
    assert torch.equal(found, expected)
    assert all(torch.equal(found_gradients[name], gradient) for name, gradient in expected_gradients.items())


def test_two_backward_passes_through_one_graph_agree():
    model = tiny_reward_model().train()
    prepare_for_trees(model)
    model.gradient_checkpointing_enable({"use_reentrant": False})
    scores = sequence_scores(model, lay_out(random_trees()))
    scores.sum().backward(retain_graph=True)
    first = gradients(model)
    model.zero_grad()
    scores.sum().backward()
    assert_close(gradients(model), first)
