"""Mean and standard deviation of all values seen so far."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

# Relative to the mean: values that are all alike may seem to differ by a rounding error.
_ROUNDING = 1e-12


class RunningMoments:
    """Mean and standard deviation over batches, each value with the same weight (Chan et al. 1979, "Updating formulae
    and a pairwise algorithm for computing sample variances").

    Attributes:
        count: values seen.
        mean: their mean; 0 before the first.
    """

    def __init__(self) -> None:
        self.count = 0
        self.mean = 0.0
        self._squares = 0.0  # sum of squared differences from the mean

    @property
    def std(self) -> float:
        """The standard deviation (unbiased); 1, which scales nothing, where there is none: of fewer than two values, or
        of values that are all alike."""
        deviation = _deviation(self._squares, self.count)
        return deviation if deviation > _ROUNDING * abs(self.mean) else 1.0

    def update(self, values: Tensor, reduce: Callable[[Tensor], Tensor] | None = None) -> tuple[float, float]:
        """Take in a batch.

        Args:
            values: of any shape, those of this process; NaN is left out.
            reduce: sums a small tensor over the processes, every one of which must call; None where there is one.

        Returns:
            Mean and standard deviation (unbiased) of the batch; 0 where it has none.
        """
        add_up = reduce or (lambda sums: sums)
        known = values[~values.isnan()].double()
        total, count = add_up(torch.stack([known.sum(), known.new_tensor(float(known.numel()))])).tolist()
        if not count:
            return 0.0, 0.0
        mean = total / count
        squares = add_up((known - mean).square().sum()[None]).item()
        difference, whole = mean - self.mean, self.count + count
        self.mean += difference * count / whole
        self._squares += squares + difference**2 * self.count * count / whole
        self.count = int(whole)
        return mean, _deviation(squares, count)

    def state_dict(self) -> dict[str, float]:
        return {"count": self.count, "mean": self.mean, "squares": self._squares}

    def load_state_dict(self, state: dict[str, float]) -> None:
        self.count, self.mean, self._squares = int(state["count"]), state["mean"], state["squares"]


def _deviation(squares: float, count: float) -> float:
    return math.sqrt(squares / (count - 1)) if count > 1 else 0.0
