"""Lengths drawn at random, so that a policy meets short and long answers."""

from __future__ import annotations

import random

from tuneline.errors import ConfigError


class LengthSampler:
    """A whole number each call, from `min_value` to one less than `max_value`, each as likely.

    Args:
        min_value: also `min_length`.
        max_value: also `max_length`; never drawn itself.
        seed: of a generator of its own; None for Python's, which `transformers.set_seed` seeds.

    Raises:
        ConfigError: a range without a number in it.
    """

    def __init__(
        self,
        min_value: int | None = None,
        max_value: int | None = None,
        *,
        min_length: int | None = None,
        max_length: int | None = None,
        seed: int | None = None,
    ):
        low = min_value if min_value is not None else min_length
        high = max_value if max_value is not None else max_length
        if low is None or high is None:
            raise ConfigError(
                "LengthSampler needs the shortest length and one above the longest: LengthSampler(4, 16)."
            )
        if not low < high:
            raise ConfigError(f"LengthSampler({low}, {high}): no length is at least {low} and below {high}.")
        self.low, self.high = low, high
        self._random: random.Random | None = None if seed is None else random.Random(seed)

    def __call__(self) -> int:
        return (self._random or random).randrange(self.low, self.high)
