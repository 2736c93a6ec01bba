"""How far annotators agree on pairs that several of them saw. Choices are `a`, `b` and `tie`, without an order.

- raw agreement: of all couples of labels on one pair, the share that is equal
- Cohen's kappa (Cohen 1960) for two annotators: (p - e) / (1 - e), where p is how often they agree and e how often
  they would by chance, each with the shares of choices of their own
- Krippendorff's alpha (Krippendorff 2004, nominal) for any number of annotators with labels missing: 1 - D_o / D_e,
  from the matrix of coincidences; 1 is perfect, 0 is chance

Labels of one pair by one annotator stand once; skips are no labels.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations

from tuneline.collection.store import StoredLabel

Ratings = Mapping[str, Mapping[str, str]]
"""Of each pair, the choice of each annotator."""


@dataclass(frozen=True)
class Agreement:
    """Of all annotators on the pairs that at least two of them labelled; None where nothing can be said."""

    num_pairs: int
    num_annotators: int
    raw: float | None
    alpha: float | None
    kappa: dict[tuple[str, str], float | None]
    """Cohen's, for each two annotators."""
    left_share: float | None
    """Share of preferences for what stood on the left, over all pairs: far from one half, the side decided."""


def agreement(labels: Sequence[StoredLabel]) -> Agreement:
    """Of labels that stand."""
    ratings: dict[str, dict[str, str]] = {}
    for label in labels:
        if label.choice != "skip":
            ratings.setdefault(label.pair, {})[label.annotator] = label.choice
    several = {pair: of_pair for pair, of_pair in ratings.items() if len(of_pair) > 1}
    annotators = sorted({name for of_pair in several.values() for name in of_pair})
    preferences = [label for label in labels if label.shown_left and label.choice in ("a", "b")]
    lefts = [label.choice == label.shown_left for label in preferences]
    return Agreement(
        num_pairs=len(several),
        num_annotators=len(annotators),
        raw=raw_agreement(several),
        alpha=krippendorff_alpha(several),
        kappa={(one, other): cohen_kappa(several, one, other) for one, other in combinations(annotators, 2)},
        left_share=sum(lefts) / len(lefts) if lefts else None,
    )


def raw_agreement(ratings: Ratings) -> float | None:
    """Share of equal couples; None where no pair has two labels."""
    couples = [one == other for of_pair in ratings.values() for one, other in combinations(of_pair.values(), 2)]
    return sum(couples) / len(couples) if couples else None


def cohen_kappa(ratings: Ratings, one: str, other: str) -> float | None:
    """Of two annotators; None where they share no pair, or both gave one and the same choice throughout."""
    both = [(r[one], r[other]) for r in ratings.values() if one in r and other in r]
    if not both:
        return None
    firsts, seconds = Counter(first for first, _ in both), Counter(second for _, second in both)
    observed = sum(first == second for first, second in both) / len(both)
    expected = sum(firsts[choice] * seconds[choice] for choice in firsts) / len(both) ** 2
    return None if expected == 1 else (observed - expected) / (1 - expected)


def krippendorff_alpha(ratings: Ratings) -> float | None:
    """Nominal; None where no pair has two labels, or all labels are the same choice."""
    coincidences: Counter[tuple[str, str]] = Counter()
    totals: Counter[str] = Counter()
    for of_pair in ratings.values():
        values = list(of_pair.values())
        if len(values) < 2:
            continue
        for i, first in enumerate(values):
            totals[first] += 1
            for j, second in enumerate(values):
                if i != j:
                    coincidences[first, second] += 1 / (len(values) - 1)  # type: ignore[assignment]
    n = sum(totals.values())
    expected = sum(totals[c] * totals[k] for c in totals for k in totals if c != k)
    if not n or not expected:
        return None
    observed = sum(count for (first, second), count in coincidences.items() if first != second)
    return 1 - (n - 1) * observed / expected
