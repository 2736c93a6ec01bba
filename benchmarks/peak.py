"""What the machine's matrix products reach now: the speed that no training loop exceeds."""

from __future__ import annotations

import json
import time

import torch
import torch.nn.functional as F

from tuneline.products import linear


def measure_peak(seconds: float = 2.0, size: int = 2048) -> float:
    """FLOP/s of the fastest of the float32 products of square matrices that fit in `seconds`, by either library."""
    a, b = torch.randn(2, size, size)
    best = float("inf")
    end = time.perf_counter() + seconds
    while time.perf_counter() < end:
        for multiply in (F.linear, linear):
            start = time.perf_counter()
            multiply(a, b)
            best = min(best, time.perf_counter() - start)
    return 2 * size**3 / best


if __name__ == "__main__":
    print(json.dumps({"peak": measure_peak(), "num_threads": torch.get_num_threads(), "torch": torch.__version__}))
