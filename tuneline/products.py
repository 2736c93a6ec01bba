"""Faster float32 matrix products on CPUs where torch's own choice is slow.

In float32 torch multiplies with MKL, which keeps processors of other makers from their widest vectors: on an AMD Zen 5
core oneDNN, also part of torch, is about twice as fast, forward and backward. Results differ by rounding alone.

oneDNN keeps a plan and its memory for each shape that it meets, about half a megabyte. So rows are filled up to one of
few numbers: a row of trees once, before a model reads it, and anything else product by product.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tuneline.trees import PromptTrees

# Below these, in rows and in multiplications, a call costs more than it saves; from timings on one core.
_LEAST_ROWS = 16
_LEAST_PRODUCTS = 2**20
# A shorter row is filled up product by product, if at all.
_LEAST_TOKENS = 256


@cache
def prefers_onednn() -> bool:
    """Whether MKL is torch's library and this is an AVX-512 processor that is not Intel's.

    Decided by what the processor is, not by timing it, so that two runs round alike.
    """
    if not (torch.backends.mkl.is_available() and torch.backends.mkldnn.is_available()):
        return False
    cpus = Path("/proc/cpuinfo")
    vendor = cpus.read_text(encoding="utf-8", errors="replace") if cpus.exists() else ""
    return "AuthenticAMD" in vendor and torch.backends.cpu.get_cpu_capability() == "AVX512"


class FastLinear(nn.Linear):
    """`nn.Linear` by the fastest library for this processor."""

    def forward(self, hidden: Tensor) -> Tensor:
        return linear(hidden, self.weight, self.bias)


def use_fast_products(model: nn.Module) -> None:
    """Make every plain `nn.Linear` of a model a `FastLinear`, in place, where that is faster: the same module, with the
    same parameters and hooks."""
    if prefers_onednn():
        for module in model.modules():
            if type(module) is nn.Linear:
                module.__class__ = FastLinear


def linear(hidden: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """(..., out): `F.linear` by the fastest library for this processor, with its gradients.

    Args:
        hidden: (..., in)
        weight: (out, in)
        bias: (out,)
    """
    if not (prefers_onednn() and _is_worth_it(hidden, weight)):
        return F.linear(hidden, weight, bias)
    rows = hidden.reshape(-1, hidden.shape[-1])
    return _Linear.apply(rows, weight, bias).view(*hidden.shape[:-1], -1)


def fill_up(trees: PromptTrees) -> PromptTrees:
    """The row of trees, where products are faster for it, with tokens behind its end that nothing reads."""
    is_worth_it = prefers_onednn() and trees.input_ids.device.type == "cpu" and trees.num_tokens >= _LEAST_TOKENS
    return trees.filled_to(_filled(trees.num_tokens)) if is_worth_it else trees


def _filled(num_rows: int) -> int:
    """One of few numbers, from 512 rows on at most an eighth larger."""
    if num_rows <= 64:
        return 1 << (num_rows - 1).bit_length()
    step = max(64, 1 << (num_rows.bit_length() - 4))
    return -(-num_rows // step) * step


def _is_worth_it(hidden: Tensor, weight: Tensor) -> bool:
    num_rows = hidden.numel() // hidden.shape[-1]
    return (
        hidden.dtype == weight.dtype == torch.float32
        and hidden.device.type == weight.device.type == "cpu"
        and num_rows >= _LEAST_ROWS
        and num_rows * weight.numel() >= _LEAST_PRODUCTS
        and type(weight) in (Tensor, nn.Parameter)
        and not torch.is_autocast_enabled("cpu")
        and not torch.compiler.is_compiling()
    )


class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, rows: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(rows, weight)
        return _multiply(rows, weight, bias)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        rows, weight = ctx.saved_tensors
        wants_rows, wants_weight, wants_bias = ctx.needs_input_grad
        grad = grad.contiguous()
        missing = _filled(len(rows)) - len(rows)
        filled_rows, filled_grad = (F.pad(x, (0, 0, 0, missing)) if missing else x for x in (rows, grad))
        return (
            _onednn(filled_grad, weight.T)[: len(rows)] if wants_rows else None,
            _onednn(filled_grad.T, filled_rows.T) if wants_weight else None,
            grad.sum(0) if wants_bias else None,
        )


def _multiply(rows: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    missing = _filled(len(rows)) - len(rows)
    filled = F.pad(rows, (0, 0, 0, missing)) if missing else rows
    product = _onednn(filled, weight, bias)
    return product[: len(rows)] if missing else product


def _onednn(rows: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    return torch.ops.mkldnn._linear_pointwise(rows, weight, bias, "none", [], "")
