"""Rewards that read token ids alone: repetition, and length beyond what is wanted."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from tuneline.errors import ConfigError


@dataclass(frozen=True)
class RepetitionPenalty:
    """See `get_repetition_penalty_reward`."""

    ngram_size: int = 3
    max_penalty: float = -1.0
    __name__: ClassVar[str] = "repetition_penalty_reward"

    def __post_init__(self) -> None:
        if self.max_penalty > 0:
            raise ConfigError(f"max_penalty={self.max_penalty} rewards repetition; give 0 or less.")
        if self.ngram_size < 1:
            raise ConfigError(f"ngram_size={self.ngram_size} is no length; give at least 1.")

    def __call__(self, completion_ids: list[list[int]], **columns: Any) -> list[float]:
        return [self._penalty(ids) for ids in completion_ids]

    def _penalty(self, ids: list[int]) -> float:
        num_ngrams = len(ids) - self.ngram_size + 1
        if num_ngrams < 1:
            return 0.0
        num_different = len({tuple(ids[i : i + self.ngram_size]) for i in range(num_ngrams)})
        return self.max_penalty * (1 - num_different / num_ngrams) if num_different < num_ngrams else 0.0


def get_repetition_penalty_reward(ngram_size: int = 3, max_penalty: float = -1.0) -> RepetitionPenalty:
    """`max_penalty` times the share of a completion's n-grams of tokens that repeat another (Yeo et al. 2025,
    arXiv:2502.03373, appendix C.2).

    The rewards are in [max_penalty, 0]; a completion shorter than an n-gram has 0.

    Raises:
        ConfigError: a positive `max_penalty`, or an `ngram_size` below 1.
    """
    return RepetitionPenalty(ngram_size, max_penalty)


@dataclass(frozen=True)
class SoftOverlongPunishment:
    """See `get_soft_overlong_punishment`."""

    max_completion_len: int
    soft_punish_cache: int
    __name__: ClassVar[str] = "soft_overlong_punishment_reward"

    def __call__(self, completion_ids: list[list[int]], **columns: Any) -> list[float]:
        return [self._punishment(len(ids)) for ids in completion_ids]

    def _punishment(self, length: int) -> float:
        free = self.max_completion_len - self.soft_punish_cache
        if length <= free:
            return 0.0
        return -1.0 if length > self.max_completion_len else (free - length) / self.soft_punish_cache


def get_soft_overlong_punishment(max_completion_len: int, soft_punish_cache: int) -> SoftOverlongPunishment:
    """Nothing up to `max_completion_len - soft_punish_cache` tokens, from there on a line down to -1 at
    `max_completion_len`, and -1 beyond (DAPO, Yu et al. 2025, arXiv:2503.14476, eq. 13)."""
    return SoftOverlongPunishment(max_completion_len, soft_punish_cache)
