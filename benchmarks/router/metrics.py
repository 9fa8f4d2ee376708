"""Plain figures of routing: areas, calls at a share of the gain (RouteLLM, arXiv 2406.18665), means with intervals."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from benchmarks.router.table import Array

DECILES = 11
_T = {2: 4.303, 3: 3.182, 4: 2.776, 5: 2.571, 6: 2.447, 7: 2.365, 8: 2.306, 9: 2.262}
_T1 = 12.706


@dataclass(frozen=True, slots=True)
class Spread:
    """A mean over seeds with the half-width of its 95 % t interval."""

    mean: float
    half: float

    def __str__(self) -> str:
        return f"{self.mean:.3f} ± {self.half:.3f}"


def spread(values: Sequence[float]) -> Spread:
    """Mean and interval; of one value, no interval."""
    n = len(values)
    if n < 2:
        return Spread(float(np.mean(values)), 0.0)
    t = _T1 if n == 2 else _T.get(n - 1, 2.0)
    return Spread(float(np.mean(values)), t * float(np.std(values, ddof=1)) / math.sqrt(n))


@dataclass(frozen=True, slots=True)
class Curve:
    """Accuracy by share of calls that go to the strong model, the likeliest gains first, at deciles."""

    shares: Array
    accuracy: Array

    @property
    def gains(self) -> Array:
        """Performance gap recovered: 0 with the weak model alone, 1 with the strong."""
        weak, strong = self.accuracy[0], self.accuracy[-1]
        recovered: Array = (self.accuracy - weak) / (strong - weak)
        return recovered

    @property
    def apgr(self) -> float:
        """Average performance gap recovered."""
        return float(np.trapezoid(self.gains, self.shares))

    def calls_at(self, gain: float) -> float:
        """CPT: share of strong calls, in per cent, from which the gain is recovered (interpolated)."""
        gains = self.gains
        first = int(np.argmax(gains >= gain))
        if first == 0:
            return 0.0
        part = (gain - gains[first - 1]) / (gains[first] - gains[first - 1])
        return 100.0 * float(self.shares[first - 1] + part * (self.shares[first] - self.shares[first - 1]))


def curve(scores: Array, weak: Array, strong: Array) -> Curve:
    """What becomes of accuracy as the requests with the highest scores go to the strong model."""
    order = np.argsort(-scores, kind="stable")
    shares = np.linspace(0.0, 1.0, DECILES)
    accuracy = []
    for share in shares:
        asked = np.zeros(len(order), bool)
        asked[order[: round(share * len(order))]] = True
        accuracy.append(float(np.where(asked, strong, weak).mean()))
    return Curve(shares, np.array(accuracy))


def crossing(points: Sequence[tuple[float, float]], level: float) -> float:
    """The least cost at which the line through (cost, accuracy) points reaches `level`; NaN when it never does."""
    told = sorted(points)
    for (x0, y0), (x1, y1) in pairwise(told):
        if y0 < level <= y1:
            return x0 + (level - y0) / (y1 - y0) * (x1 - x0)
    return told[0][0] if told[0][1] >= level else math.nan


def best_within(points: Sequence[tuple[float, float]], cost: float) -> float:
    """The highest accuracy of the points, and of the line between them, at no more than `cost`."""
    told = sorted(points)
    within = [y for x, y in told if x <= cost]
    costs, rates = [x for x, _ in told], [y for _, y in told]
    return max([*within, float(np.interp(cost, costs, rates))]) if within else math.nan
