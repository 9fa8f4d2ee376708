"""Which of several answers stands: pure functions over normal forms and weights."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

Forms = Sequence[str | None]
"""Per member the normal form of its answer; None: no answer (yet, or ever)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Tally:
    """The votes: weight by form, heaviest first (ties by first appearance), and the share of the heaviest."""

    weights: Mapping[str, float]
    winner: str
    share: float
    tied: bool


def tally(forms: Forms, weights: Sequence[float]) -> Tally:
    """Count the votes of those who answered. Raises ValueError when nobody did."""
    totals: dict[str, float] = {}
    for form, weight in zip(forms, weights, strict=True):
        if form is not None:
            totals[form] = totals.get(form, 0.0) + weight
    ranked = sorted(totals.items(), key=lambda item: -item[1])
    if not ranked:
        raise ValueError("nobody voted")
    total = sum(totals.values())
    return Tally(
        weights=dict(ranked),
        winner=ranked[0][0],
        share=ranked[0][1] / total if total else 0.0,
        tied=len(ranked) > 1 and ranked[1][1] >= ranked[0][1],
    )


def unbeatable(forms: Forms, weights: Sequence[float], open_: Sequence[bool]) -> bool:
    """Whether the votes that are still `open_` can neither overtake nor equal the leader."""
    if all(form is None for form in forms):
        return False
    counted = list(tally(forms, weights).weights.values())
    second = counted[1] if len(counted) > 1 else 0.0
    outstanding = sum(weight for weight, still in zip(weights, open_, strict=True) if still)
    return counted[0] > second + outstanding


def medoid(nearness: Sequence[Sequence[float]], weights: Sequence[float]) -> int:
    """Which answer is nearest to all the others, each counted by its weight; the first of equals.

    `nearness`: how alike answers are, square and symmetric.
    """

    def central(place: int) -> float:
        return sum(weights[other] * near for other, near in enumerate(nearness[place]) if other != place)

    # Sums of floats in another order differ in their last digits: that makes nobody the winner.
    return max(range(len(nearness)), key=lambda place: (round(central(place), 9), -place))


def cosines(vectors: Sequence[Sequence[float]]) -> list[list[float]]:
    """How alike the vectors are, pair by pair."""
    return [[cosine(first, second) for second in vectors] for first in vectors]


def likeness(texts: Sequence[str]) -> list[list[float]]:
    """How alike the texts are by their letters, pair by pair: Dice's coefficient over trigrams."""
    shingles = [_trigrams(text) for text in texts]
    return [[_dice(first, second) for second in shingles] for first in shingles]


def cosine(first: Sequence[float], second: Sequence[float]) -> float:
    """The cosine of the angle between two vectors; 0 where one has no direction."""
    dot = sum(a * b for a, b in zip(first, second, strict=True))
    size = math.sqrt(sum(a * a for a in first) * sum(b * b for b in second))
    return dot / size if size else 0.0


def _trigrams(text: str) -> frozenset[str]:
    padded = f"  {text} "
    return frozenset(padded[start : start + 3] for start in range(len(padded) - 2))


def _dice(first: frozenset[str], second: frozenset[str]) -> float:
    return 2 * len(first & second) / (len(first) + len(second))
