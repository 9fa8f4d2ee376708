"""What models write and how long they take, as far as one is like another: where one starts of which little was seen.

Models scatter around what is usual, single calls around what is usual for their model. How much of either is found from
all models together (random effects by expectation maximisation; Gelman et al., Bayesian Data Analysis, 5), so that the
ends for a model that never ran hold how far it may be from the others, and those after a few calls how little they say.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from catena.plan.expect import Amount, Z
from catena.router.core.confidence import Array

ALIKE = 4.0
"""Calls that the usual scatter of single calls is worth to one model, or domain: some ramble, others do not."""
_MODELS, _ROUNDS = 2.0, 20
"""Models that the scatter assumed beforehand is worth; rounds of expectation maximisation."""

Weighted = tuple[float, float]
"""A weight, and the value that has it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Start:
    """A mean that counts `worth` values, and the deviation of single ones, known as well as from `freedom` values."""

    mean: float
    sd: float
    worth: float
    freedom: float = ALIKE

    @property
    def next(self) -> Amount:
        """The next value: its deviation is that under which its ends, by the normal's quantile, hold nine in ten.

        How little the mean is known is added, and Student's quantile taken (by Cornish and Fisher's expansion).
        """
        wider = 1.0 + (Z**2 + 1.0) / (4.0 * self.freedom) + (5.0 * Z**4 + 16.0 * Z**2 + 3.0) / (96.0 * self.freedom**2)
        return Amount(self.mean, self.sd * math.sqrt(1.0 + 1.0 / self.worth) * wider)

    def after(self, values: Sequence[Weighted]) -> "Start":
        """The same once these were seen."""
        count = sum(weight for weight, _ in values)
        worth = self.worth + count
        mean = (self.worth * self.mean + sum(weight * value for weight, value in values)) / worth
        # In proportion: who writes more varies more.
        usual = self.sd * mean / self.mean if self.mean > 0.0 else self.sd
        squares = ALIKE * usual**2 + sum(weight * (value - mean) ** 2 for weight, value in values)
        return Start(mean=mean, sd=math.sqrt(squares / (ALIKE + count)), worth=worth, freedom=self.freedom + count)

    def within(self, worth: float) -> "Start":
        """Where one of many kinds of it starts, to which the mean, if it were sure, counts so many values.

        What the kinds differ by is part of the deviation over all of them, so less is left within one.
        """
        sd = self.sd * math.sqrt(worth / (worth + 1.0))
        return Start(mean=self.mean, sd=sd, worth=1.0 / (1.0 / worth + 1.0 / self.worth), freedom=self.freedom)


@dataclass(frozen=True, slots=True, kw_only=True)
class Habit:
    """What is usual beforehand: the `mean` of models' means, the deviation of single calls `within` one, over its mean.

    `between`: deviation of the logarithms of models' means; `doubt`: of the logarithm of `mean` itself.
    """

    mean: float
    within: float
    between: float
    doubt: float

    def alone(self) -> Start:
        """Where the first model starts."""
        apart = math.expm1(self.between**2 + self.doubt**2)
        return Start(mean=self.mean, sd=self.within * self.mean, worth=self.within**2 / apart)

    def start(self, models: Iterable[Sequence[Weighted]]) -> Start:
        """Where a further model starts, after the values of these, at least one."""
        told = [(sum(w for w, _ in seen), seen) for seen in models]
        counts = np.array([count for count, _ in told])
        means = np.array([max(sum(w * v for w, v in seen) / count, 1e-9) for count, seen in told])
        within = self._within(told, means)
        noise, logs = within / counts, np.log(means)
        between, middle, doubt = self.between**2, math.log(self.mean), self.doubt**2
        for _ in range(_ROUNDS):
            sure = 1.0 / (between + noise)
            doubt = 1.0 / (self.doubt**-2 + float(sure.sum()))
            middle = doubt * (self.doubt**-2 * math.log(self.mean) + float(sure @ logs))
            spread = 1.0 / (1.0 / between + 1.0 / noise)
            own = spread * (middle / between + logs / noise)
            between = (_MODELS * self.between**2 + float(((own - middle) ** 2 + spread).sum())) / (_MODELS + len(told))
        apart = between + doubt
        mean = math.exp(middle + apart / 2.0)
        return Start(mean=mean, sd=math.sqrt(within) * mean, worth=within / math.expm1(apart))

    def _within(self, told: Sequence[tuple[float, Sequence[Weighted]]], means: Array) -> float:
        """The variance of single calls that is usual for a model, over its mean squared: by models, not by calls.

        A model that is called often says no more of the next one than another: each counts once, as far as it is known.
        """
        free = np.array([max(count - 1.0, 0.0) for count, _ in told])
        squares = np.array(
            [sum(w * (v / mean - 1.0) ** 2 for w, v in seen) for (_, seen), mean in zip(told, means, strict=True)]
        )
        worth = free / (free + ALIKE)
        usual = self.within**2
        for _ in range(_ROUNDS):
            logs = np.log((ALIKE * usual + squares) / (ALIKE + free))
            usual = math.exp(
                (_MODELS * math.log(self.within**2) + float(worth @ logs)) / (_MODELS + float(worth.sum()))
            )
        return usual


def effective(weights: Array) -> float:
    """Independent values that the weighted ones are worth (Kish, 1965)."""
    squares = float(weights @ weights)
    return float(weights.sum()) ** 2 / squares if squares > 0.0 else 0.0
