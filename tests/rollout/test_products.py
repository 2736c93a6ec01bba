"""The faster matrix products are the same products."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.testing import assert_close

from tuneline.rollout.products import _OneDNN, fast_products, prefers_onednn

CPU = torch.device("cpu")
needs_onednn = pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="this torch has no oneDNN")


@needs_onednn
@pytest.mark.parametrize("shape", [(5,), (1, 5), (3, 1, 5), (2, 4, 5)])
@pytest.mark.parametrize("bias", [False, True])
def test_onednn_gives_what_torch_gives(shape, bias):
    layer = nn.Linear(5, 7, bias=bias)
    hidden = torch.randn(shape)
    with torch.no_grad():
        expected = layer(hidden)
        with _OneDNN():
            assert_close(layer(hidden), expected)
            assert_close(layer(torch.randn(5, *shape[:-1]).movedim(0, -1)).shape, expected.shape)
            assert layer(torch.zeros(0, 5)).shape == (0, 7)


@needs_onednn
def test_what_needs_gradients_or_another_precision_stays_with_torch():
    hidden, weight = torch.randn(2, 5), torch.randn(7, 5, requires_grad=True)
    with _OneDNN():
        F.linear(hidden, weight).sum().backward()
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
            assert F.linear(hidden, weight).dtype == torch.bfloat16
        with torch.no_grad():
            assert_close(F.linear(hidden.double(), weight.double()), hidden.double() @ weight.double().T)
    assert weight.grad is not None


def test_the_choice_is_the_same_every_time():
    prefers_onednn.cache_clear()
    first = prefers_onednn()
    prefers_onednn.cache_clear()
    assert prefers_onednn() == first
    with torch.no_grad(), fast_products(CPU):
        assert F.linear(torch.ones(1, 2), torch.ones(3, 2)).tolist() == [[2.0, 2.0, 2.0]]


@needs_onednn
def test_few_shapes_reach_onednn_however_many_rows_there_are(monkeypatch):
    shapes = set()
    multiply = torch.ops.mkldnn._linear_pointwise

    def noted(rows, *rest):
        shapes.add(len(rows))
        return multiply(rows, *rest)

    monkeypatch.setattr(torch.ops.mkldnn, "_linear_pointwise", noted)
    weight = torch.randn(3, 4)
    with torch.no_grad(), _OneDNN():
        for num_rows in range(1, 1400):
            rows = torch.randn(num_rows, 4)
            assert_close(F.linear(rows, weight), rows @ weight.T)
    assert shapes == {1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 1536}
