"""Metrics on one path: weighted sums that stay on the device until they are logged, then one reduction over all
processes."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from accelerate import Accelerator
from torch import Tensor

Recorded = Tensor | tuple[Tensor, Tensor]


class Metrics:
    """Running means, minima and maxima between two log lines.

    A mean is over all values recorded, each with the same weight: values of a longer micro-batch count for more, so
    that metrics, like losses, do not depend on how a batch was cut. Where the last part of a name says min or max
    (`min_reward`, `completions/max_length`, `clip_ratio/low_min`) it takes the minimum or maximum.
    """

    def __init__(self) -> None:
        self._sums: dict[str, Tensor] = {}
        self._counts: dict[str, Tensor] = {}
        self._extremes: dict[str, Tensor] = {}

    def add(self, values: Mapping[str, Recorded], counted: bool = True) -> None:
        """Each value is a tensor of any shape, or a (sum, count) pair.

        With `counted=False` the names are made known and the values left out: processes must flush the same names.
        """
        for name, value in values.items():
            sign = _sign_of_extreme(name)
            if sign:
                assert isinstance(value, Tensor)
                nothing = value.new_full((1,), -torch.inf, dtype=torch.float32)
                found = sign * value.detach().float().flatten() if counted else nothing
                extreme = torch.cat([found, nothing]).amax()
                known = self._extremes.get(name)
                self._extremes[name] = extreme if known is None else torch.maximum(known, extreme)
                continue
            total, count = value if isinstance(value, tuple) else (value.sum(), torch.tensor(value.numel()))
            self._accumulate(self._sums, name, total if counted else torch.zeros_like(total))
            self._accumulate(self._counts, name, count.to(total.device) * counted)

    @staticmethod
    def _accumulate(table: dict[str, Tensor], name: str, value: Tensor) -> None:
        value = value.detach().to(torch.float64 if value.device.type == "cpu" else torch.float32)
        table[name] = table[name] + value if name in table else value

    def flush(self, accelerator: Accelerator) -> dict[str, float]:
        """The metrics recorded since the last call, over all processes, and start anew. Every process must call it."""
        means, extremes = sorted(self._sums), sorted(self._extremes)
        logged: dict[str, float] = {}
        if means:
            table = torch.stack(
                [torch.stack([self._sums[n] for n in means]), torch.stack([self._counts[n] for n in means])]
            )
            sums, counts = accelerator.reduce(table.to(accelerator.device), "sum").tolist()
            logged |= {n: s / c for n, s, c in zip(means, sums, counts, strict=True) if c}
        if extremes:
            own = torch.stack([self._extremes[n] for n in extremes]).to(accelerator.device)
            top = accelerator.gather(own[None]).amax(0).tolist()
            logged |= {n: _sign_of_extreme(n) * v for n, v in zip(extremes, top, strict=True) if v > -torch.inf}
        for recorded in (self._sums, self._counts, self._extremes):
            recorded.clear()
        return logged


def _sign_of_extreme(name: str) -> float:
    """-1 for the name of a minimum, 1 for that of a maximum, 0 for that of a mean."""
    words = name.rpartition("/")[2].split("_")
    for word, sign in (("min", -1.0), ("max", 1.0)):
        if word in (words[0], words[-1]):
            return sign
    return 0.0
