"""How far a model's own confidence is to be believed: P(right | confidence), per model and domain.

A logistic curve over log-odds, drawn by a ridge towards believing the confidence as it is said. A domain shifts it by
its own rate of right answers, which unjudged answers help to find (label shift by expectation maximisation, Saerens et
al. 2002) as long as the judged ones do not contradict: a model may be sure and wrong where it lacks a fact.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from catena.plan.expect import Amount

Array = NDArray[np.float64]

_RIDGE_LEVEL, _RIDGE_SLOPE, _RIDGE_DOMAIN = 0.2, 2.0, 0.5
MOST_SILENT, MOST_SECONDED = 4.0, 30.0
"""The most that unjudged answers may count together, in judged ones: by confidence alone, and beside a better model's.

Confidence is the weaker witness: a model that lacks a skill can be as sure as one that has it.
"""
_EDGE = 1e-3
_STEPS = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class Judged:
    """Judged answers of a model in a domain: weight in all, weight of the right ones, and those with a hint."""

    weight: float
    right: float
    hints: Array
    labels: Array


@dataclass(frozen=True, slots=True, kw_only=True)
class Silent:
    """Log-odds of answers that nobody judged: by their confidence, or by what a better model said beside them."""

    sure: Array
    seconded: Array


@dataclass(frozen=True, slots=True, kw_only=True)
class Curve:
    """log-odds of being right = level + slope x log-odds of the confidence."""

    level: float = 0.0
    slope: float = 1.0

    def right(self, confidences: Array, shift: float = 0.0) -> Array:
        """Probability that answers of these confidences are right, the log-odds shifted."""
        return sigmoid(self.level + self.slope * log_odds(confidences) + shift)


def fit_curve(confidences: Array, labels: Array, weights: Array, domains: Sequence[str]) -> Curve:
    """The curve under which the judged answers are likeliest; with none, confidence is believed as said."""
    if not len(labels):
        return Curve()
    names = sorted(set(domains))
    design = np.zeros((len(labels), 2 + len(names)))
    design[:, 0] = 1.0
    design[:, 1] = log_odds(confidences)
    design[np.arange(len(labels)), [2 + names.index(domain) for domain in domains]] = 1.0
    prior = np.zeros(design.shape[1])
    prior[1] = 1.0
    ridge = np.full(design.shape[1], _RIDGE_DOMAIN)
    ridge[:2] = _RIDGE_LEVEL, _RIDGE_SLOPE
    beta = prior.copy()
    for _ in range(_STEPS):
        p = sigmoid(design @ beta)
        slope = design.T @ (weights * (labels - p)) - ridge * (beta - prior)
        curvature = (design * (weights * p * (1.0 - p))[:, None]).T @ design + np.diag(ridge)
        beta = beta + np.clip(np.linalg.solve(curvature, slope), -3.0, 3.0)
    return Curve(level=float(beta[0]), slope=max(float(beta[1]), 0.0))


def rate_of(judged: Judged, silent: Silent, start: Amount, *, usual: float, trust: float) -> Amount:
    """How often a model is right in a domain, from judged answers and the hints of silent ones.

    A hint by confidence is the log-odds of being right where `usual` is the rate of right answers. `start`: the rate
    assumed, `sd` being the number of answers that it is worth. `trust`: what a silent answer counts.
    """
    beside = min(trust * len(silent.seconded), MOST_SECONDED)
    known = start.sd + judged.weight + beside
    right = start.sd * start.mean + judged.right
    right += beside * float(sigmoid(silent.seconded).mean()) if beside else 0.0
    rate = right / known
    for _ in range(_STEPS):
        shift = logit(rate) - logit(usual)
        worth = min(trust * len(silent.sure) * _consent(judged, shift), MOST_SILENT)
        guess = float(sigmoid(silent.sure + shift).mean()) if len(silent.sure) else 0.0
        evidence = known + worth
        rate = (right + worth * guess) / evidence
    return Amount(rate, math.sqrt(rate * (1.0 - rate) / (evidence + 1.0)))


def _consent(judged: Judged, shift: float) -> float:
    """1 when the judged answers are right as often as their hints say, towards 0 the less they are."""
    if not len(judged.hints):
        return 1.0
    told = sigmoid(judged.hints + shift)
    surprise = float((judged.labels - told).sum()) ** 2 / (float((told * (1.0 - told)).sum()) + 0.25)
    return math.exp(-surprise / 2.0)


def shift_to(curve: Curve, confidences: Array, weights: Array, mean: float) -> float:
    """What must be added to the log-odds so that these answers are right `mean` of the time."""
    low, high = -12.0, 12.0
    for _ in range(40):
        middle = (low + high) / 2.0
        if float(weights @ curve.right(confidences, middle)) < mean * float(weights.sum()):
            low = middle
        else:
            high = middle
    return (low + high) / 2.0


def log_odds(p: Array) -> Array:
    """Log-odds of probabilities, kept finite."""
    clipped = np.clip(p, _EDGE, 1.0 - _EDGE)
    odds: Array = np.log(clipped / (1.0 - clipped))
    return odds


def sigmoid(x: Array) -> Array:
    """Probability of log-odds."""
    p: Array = 1.0 / (1.0 + np.exp(-np.clip(x, -30.0, 30.0)))
    return p


def logit(p: float) -> float:
    """Log-odds of one probability, kept finite."""
    p = min(max(p, _EDGE), 1.0 - _EDGE)
    return math.log(p / (1.0 - p))
