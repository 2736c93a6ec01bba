"""Faster matrix products for generation on CPUs where torch's own choice is slow.

In float32 torch multiplies with MKL, which keeps processors of other makers from their widest vectors: on an AMD Zen 5
core oneDNN, also part of torch, is 2.2 times as fast from 16 rows on. Results differ by rounding alone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from functools import cache
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch.overrides import TorchFunctionMode

_BLOCK = 512


@contextmanager
def fast_products(device: torch.device) -> Iterator[None]:
    """Within it `F.linear` without gradients is computed by the fastest library for this processor."""
    with _OneDNN() if device.type == "cpu" and prefers_onednn() else nullcontext():
        yield


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


class _OneDNN(TorchFunctionMode):
    def __torch_function__(
        self, func: Callable[..., Any], types: Sequence[type], args: tuple = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func is F.linear and not kwargs and len(args) > 1 and _is_plain(args[0], args[1]):
            return _linear(args[0], args[1], args[2] if len(args) > 2 else None)
        return func(*args, **(kwargs or {}))


def _linear(hidden: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    """The product with its rows filled up to one of few numbers.

    oneDNN keeps a plan and its memory for each shape that it has met: some megabytes a shape, and gigabytes over a run
    whose batches shrink row by row.
    """
    rows = hidden.reshape(-1, hidden.shape[-1])
    num_rows = len(rows)
    filled = 1 << (num_rows - 1).bit_length() if num_rows <= _BLOCK else -(-num_rows // _BLOCK) * _BLOCK
    if filled != num_rows:
        rows = F.pad(rows, (0, 0, 0, filled - num_rows))
    output = torch.ops.mkldnn._linear_pointwise(rows, weight, bias, "none", [], "")
    return output[:num_rows].reshape(*hidden.shape[:-1], -1)


def _is_plain(hidden: torch.Tensor, weight: torch.Tensor) -> bool:
    return (
        hidden.dtype == weight.dtype == torch.float32
        and hidden.device.type == weight.device.type == "cpu"
        and hidden.numel() > 0
        and not torch.is_grad_enabled()
        and not torch.is_autocast_enabled("cpu")
    )
