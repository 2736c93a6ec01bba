"""The faster matrix products are the same products, forward and backward, whichever rows they are filled up to."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.testing import assert_close

from tests.models import tiny_causal_lm
from tuneline import products
from tuneline.logprobs import token_logprobs
from tuneline.models.layouts import prepare_for_trees
from tuneline.products import FastLinear, fill_up, linear, prefers_onednn, use_fast_products
from tuneline.trees import Branch, Tree, lay_out

needs_onednn = pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="this torch has no oneDNN")


@pytest.fixture
def everything_by_onednn(monkeypatch):
    monkeypatch.setattr(products, "prefers_onednn", lambda: True)
    monkeypatch.setattr(products, "_LEAST_ROWS", 1)
    monkeypatch.setattr(products, "_LEAST_PRODUCTS", 1)


@needs_onednn
@pytest.mark.parametrize("shape", [(5,), (1, 5), (3, 1, 5), (2, 70, 5)])
@pytest.mark.parametrize("bias", [False, True])
def test_products_and_their_gradients_are_those_of_torch(everything_by_onednn, shape, bias):
    layer = nn.Linear(5, 7, bias=bias)
    hidden = torch.randn(shape, requires_grad=True)
    weights = torch.randn(*shape[:-1], 7)
    found = torch.autograd.grad(
        (linear(hidden, layer.weight, layer.bias) * weights).sum(), [hidden, *layer.parameters()]
    )
    expected = torch.autograd.grad((layer(hidden) * weights).sum(), [hidden, *layer.parameters()])
    assert_close(linear(hidden, layer.weight, layer.bias), layer(hidden))
    for one, other in zip(found, expected, strict=True):
        assert_close(one, other)


@needs_onednn
def test_a_frozen_weight_gets_no_gradient_and_passes_one_on(everything_by_onednn):
    hidden, weight = torch.randn(9, 5, requires_grad=True), torch.randn(7, 5)
    linear(hidden, weight).sum().backward()
    assert_close(hidden.grad, weight.sum(0).expand(9, 5))


@needs_onednn
def test_other_precisions_and_empty_rows_stay_with_torch(everything_by_onednn):
    hidden, weight = torch.randn(2, 5), torch.randn(7, 5)
    with torch.autocast("cpu", torch.bfloat16):
        assert linear(hidden, weight).dtype == torch.bfloat16
    assert_close(linear(hidden.double(), weight.double()), hidden.double() @ weight.double().T)
    assert linear(hidden[:0], weight).shape == (0, 7)


def test_small_products_stay_with_torch(monkeypatch):
    monkeypatch.setattr(products, "prefers_onednn", lambda: True)
    monkeypatch.setattr(products, "_onednn", None)  # would raise
    assert linear(torch.ones(1, 2), torch.ones(3, 2)).tolist() == [[2.0, 2.0, 2.0]]


def test_the_choice_is_the_same_every_time():
    prefers_onednn.cache_clear()
    first = prefers_onednn()
    prefers_onednn.cache_clear()
    assert prefers_onednn() == first


@needs_onednn
def test_few_shapes_reach_onednn_however_many_rows_there_are(everything_by_onednn, monkeypatch):
    shapes = set()
    multiply = torch.ops.mkldnn._linear_pointwise

    def noted(rows, *rest):
        shapes.add(len(rows))
        return multiply(rows, *rest)

    monkeypatch.setattr(torch.ops.mkldnn, "_linear_pointwise", noted)
    weight = torch.randn(3, 4)
    for num_rows in range(1, 4200):
        rows = torch.randn(num_rows, 4)
        assert_close(linear(rows, weight), rows @ weight.T)
    assert len(shapes) < 60
    assert {1, 2, 4, 8, 16, 32, 64, 128, 512, 576, 2048, 2304, 4096} <= shapes


@needs_onednn
@pytest.mark.parametrize("architecture", ["qwen2", "gpt2"])
def test_a_filled_row_gives_the_log_probabilities_and_gradients_of_the_plain_one(architecture, monkeypatch):
    plain = tiny_causal_lm(architecture)
    fast = copy.deepcopy(plain)
    trees = lay_out([Tree([1, 2, 3], [Branch([4, 5]), Branch([6, 7, 8, 9])]), Tree([2] * 60, [Branch([3] * 30)])])
    monkeypatch.setattr(products, "prefers_onednn", lambda: False)
    prepare_for_trees(plain)
    expected = token_logprobs(plain, trees).logprobs
    expected.sum().backward()
    monkeypatch.setattr(products, "prefers_onednn", lambda: True)
    monkeypatch.setattr(products, "_LEAST_PRODUCTS", 1)
    monkeypatch.setattr(products, "_LEAST_TOKENS", 1)
    prepare_for_trees(fast)
    assert fill_up(trees).num_tokens == 128 > trees.num_tokens
    found = token_logprobs(fast, trees).logprobs
    found.sum().backward()
    assert_close(found, expected, rtol=1e-5, atol=1e-5)
    for one, other in zip(fast.parameters(), plain.parameters(), strict=True):
        assert_close(one.grad, other.grad, rtol=1e-4, atol=1e-5)


def test_a_model_keeps_its_modules_parameters_and_hooks(monkeypatch):
    monkeypatch.setattr(products, "prefers_onednn", lambda: True)
    model = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))
    names, called = list(model.state_dict()), []
    model[0].register_forward_hook(lambda *_: called.append(1))
    use_fast_products(model)
    assert type(model[0]) is FastLinear
    assert list(model.state_dict()) == names
    assert_close(
        model(torch.ones(2, 3)),
        F.linear(F.linear(torch.ones(2, 3), *model[0].parameters()).relu(), *model[2].parameters()),
    )
    assert called == [1]
