"""Pairs of completions to compare, made from what a policy wrote."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from itertools import combinations
from pathlib import Path
from typing import Any

from tuneline.errors import DataError

Prompt = str | list[dict[str, Any]]
"""Text, or a dialogue."""


@dataclass(frozen=True)
class Pair:
    """Two different completions of one prompt.

    Attributes:
        id: 24 hexadecimal digits, from prompt, completions and policy: the same pair is never kept twice.
        a, b: the texts; which of a pair is `a` comes from a hash and says nothing about it.
        policy: content hash of the model that wrote them.
        round: of the loop that they were collected in, from 1.
        columns: what the prompt's row holds besides, such as `solution` and `task`.
        scores: what scored them gave a and b; None where nothing did.
        reward_scores: what the line's reward model gave them before it learned from this pair; None without one.
    """

    id: str
    prompt: Prompt
    a: str
    b: str
    policy: str = ""
    round: int = 1
    columns: dict[str, Any] = field(default_factory=dict)
    scores: tuple[float, float] | None = None
    reward_scores: tuple[float, float] | None = None


@dataclass(frozen=True)
class Candidate:
    """A completion that may become a side of a pair."""

    text: str
    score: float | None = None  # None: nothing scores completions one by one


@dataclass
class PairCounts:
    """What became of the completions."""

    prompts: int = 0
    completions: int = 0
    empty: int = 0  # completions of white space alone
    duplicates: int = 0  # the same text once more for the same prompt
    unscored: int = 0  # completions that the scorer had no answer to
    without_pair: int = 0  # prompts with fewer than two different completions left
    pairs: int = 0

    def as_dict(self) -> dict[str, int]:
        return asdict(self)


def make_pairs(
    rows: Sequence[dict[str, Any]],
    groups: Sequence[Sequence[Candidate]],
    *,
    pairs_per_prompt: int = 1,
    seed: int = 0,
    policy: str = "",
    round: int = 1,
) -> tuple[list[Pair], PairCounts]:
    """Pairs of different completions, and the account of those that are in none.

    Where completions are scored, the pairs whose scores lie furthest apart come first; equal ones, and all where there
    are no scores, are drawn by the seed.

    Args:
        rows: one a prompt, each with `prompt`; other columns go into the pairs.
        groups: the completions of each prompt.
        pairs_per_prompt: at most; there are n (n - 1) / 2 pairs of n completions.

    Returns:
        The pairs in the order of the prompts.
    """
    counts = PairCounts(prompts=len(rows))
    pairs: list[Pair] = []
    for row, group in zip(rows, groups, strict=True):
        different = _different(group, counts)
        ranks = {two: _rank(row["prompt"], two, seed) for two in combinations(different, 2)}
        chosen = sorted(ranks, key=lambda two: ranks[two])[:pairs_per_prompt]
        counts.without_pair += not chosen
        columns = {name: value for name, value in row.items() if name != "prompt"}
        pairs += [_pair(row["prompt"], first, second, policy, round, columns) for first, second in chosen]
    counts.pairs = len(pairs)
    return pairs, counts


def _different(group: Sequence[Candidate], counts: PairCounts) -> list[Candidate]:
    counts.completions += len(group)
    is_scored = any(candidate.score is not None for candidate in group)
    kept: dict[str, Candidate] = {}
    for candidate in group:
        if not candidate.text.strip():
            counts.empty += 1
        elif candidate.text in kept:
            counts.duplicates += 1
        elif is_scored and candidate.score is None:
            counts.unscored += 1
        else:
            kept[candidate.text] = candidate
    return list(kept.values())


def _rank(prompt: Prompt, two: tuple[Candidate, Candidate], seed: int) -> tuple[float, str]:
    first, second = two
    apart = 0.0 if first.score is None or second.score is None else abs(first.score - second.score)
    return -apart, _digest(seed, prompt, sorted((first.text, second.text)))


def _pair(
    prompt: Prompt, first: Candidate, second: Candidate, policy: str, round: int, columns: dict[str, Any]
) -> Pair:
    texts = sorted((first.text, second.text))
    identity = _digest(prompt, texts, policy)[:24]
    a, b = (first, second) if first.text == texts[0] else (second, first)
    if int(_digest("sides", identity), 16) % 2:  # else `a` would be the one that comes first in the alphabet
        a, b = b, a
    scores = None if a.score is None or b.score is None else (a.score, b.score)
    return Pair(identity, prompt, a.text, b.text, policy, round, columns, scores)


def _digest(*key: Any) -> str:
    return hashlib.sha256(json.dumps(key, sort_keys=True, ensure_ascii=True).encode()).hexdigest()


def write_pairs(path: Path, pairs: Iterable[Pair]) -> None:
    """One JSON object a line, the same bytes for the same pairs."""
    with path.open("w", encoding="utf-8") as file:
        for pair in pairs:
            file.write(json.dumps(asdict(pair), ensure_ascii=False, sort_keys=True) + "\n")


def read_pairs(path: Path) -> list[Pair]:
    """What `write_pairs` wrote.

    Raises:
        DataError: no such file, or a line that is no pair.
    """
    if not path.is_file():
        raise DataError(f"{path} does not exist; run the stage collect, which samples the pairs.")
    pairs = []
    lines = path.read_text(encoding="utf-8").split("\n")  # not splitlines, which knows ends that a text may hold
    for number, line in enumerate(lines, 1):
        if not line:
            continue
        try:
            fields = json.loads(line)
            for name in ("scores", "reward_scores"):
                fields[name] = None if fields.get(name) is None else tuple(fields[name])
            pairs.append(Pair(**fields))
        except (ValueError, TypeError, AttributeError) as error:
            raise DataError(f"{path}, row {number}: is no pair ({error}); run the stage collect again.") from None
    return pairs
