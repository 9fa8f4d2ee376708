"""How much harder or easier than usual a request is for each model, from what it looks like.

Log-odds of a right answer = those of the model in the domain + what the features say of the request for every model
alike + what they say for this one. Both parts are drawn to nothing by priors whose widths the data choose (evidence
framework, MacKay, Neural Computation 4, 1992), so that a figure that tells nothing moves nothing.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from catena.router.core.confidence import Array, sigmoid
from catena.router.core.evidence import Evidence

LEAST_ROWS = 40
"""Judged requests below which features are not read: their widths could not be told."""
_ROUNDS, _START, _WIDEST, _NARROWEST = 6, 50.0, 2.0, 1e4
_MOST_SHIFT, _STEPS = 3.0, 25.0
_MOST_SIGMAS = 4.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Slopes:
    """A fitted logistic: `weights` of standardised features, and what standardises them."""

    weights: Array
    centre: Array
    scale: Array

    def of(self, features: Array) -> Array:
        """(n, f) features to (n,) log-odds to add."""
        return standardised(features, self.centre, self.scale) @ self.weights


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcomes:
    """What features say: for all models, and for each of `models` besides; `own` (m, f): its own weights."""

    shared: Slopes | None = None
    models: tuple[str, ...] = ()
    own: Array = field(default_factory=lambda: np.empty((0, 0)))

    def shifts(self, features: Sequence[float]) -> dict[str, float]:
        """Log-odds to add to the usual ones of each model that was judged; under the empty name, of one that never was.

        Empty where nothing is known of the request.
        """
        if self.shared is None or not features:
            return {}
        row = np.zeros(len(self.shared.weights))
        known = np.asarray(features[: len(row)], np.float64)
        row[: len(known)] = known
        row = standardised(row[None, :], self.shared.centre, self.shared.scale)[0]
        alike = float(row @ self.shared.weights)
        told = np.concatenate([[alike], alike + self.own @ row if self.models else []])
        # In steps too small to matter, so that what is composed of it is mostly remembered.
        stepped = np.round(np.clip(told, -_MOST_SHIFT, _MOST_SHIFT) * _STEPS) / _STEPS
        return dict(zip(("", *self.models), stepped.tolist(), strict=True))


def fit_outcomes(evidence: Evidence, usual: Array) -> Outcomes:
    """What the judged answers say of the features; `usual` (n, m): log-odds of each model in each row's domain."""
    known = ~np.isnan(evidence.right) & evidence.featured[:, None]
    if known.any(axis=1).sum() < LEAST_ROWS:
        return Outcomes()
    rows, columns = np.nonzero(known)
    weights = evidence.weights[rows]
    seen = evidence.features[np.unique(rows)]
    centre, scale = seen.mean(axis=0), np.maximum(seen.std(axis=0), 1e-6)
    design = standardised(evidence.features, centre, scale)
    labels = evidence.right[rows, columns]
    # Answers to one request are not independent: together they count as one and a half of them.
    together = known.sum(axis=1)[rows]
    beta, _ = fit_logistic(design[rows], labels, weights * np.minimum(1.0, 1.5 / together), usual[rows, columns])
    start = usual[rows, columns] + design[rows] @ beta
    own: dict[str, Array] = {}
    for model, column in evidence.models.items():
        mine = columns == column
        if mine.sum() >= LEAST_ROWS:
            own[model], _ = fit_logistic(design[rows[mine]], labels[mine], weights[mine], start[mine])
    shared = Slopes(weights=beta, centre=centre, scale=scale)
    return Outcomes(shared=shared, models=tuple(own), own=np.array(list(own.values())))


def fit_logistic(design: Array, labels: Array, weights: Array, offset: Array) -> tuple[Array, float]:
    """Weights (f,) under which the labels are likeliest, and the precision of the prior that the data chose."""
    beta = np.zeros(design.shape[1])
    precision = _START
    for _ in range(_ROUNDS):
        for _ in range(2):
            p = sigmoid(offset + design @ beta)
            gradient = design.T @ (weights * (labels - p)) - precision * beta
            curvature = (design * (weights * p * (1.0 - p))[:, None]).T @ design
            whole = curvature + precision * np.eye(len(beta))
            beta = beta + np.clip(np.linalg.solve(whole, gradient), -1.0, 1.0)
        told = len(beta) - precision * float(np.trace(np.linalg.inv(whole)))
        precision = min(max(told / max(float(beta @ beta), 1e-12), _WIDEST), _NARROWEST)
    return beta, precision


def standardised(features: Array, centre: Array, scale: Array) -> Array:
    """Features in their deviations, outliers cut."""
    found: Array = np.clip((features - centre) / scale, -_MOST_SIGMAS, _MOST_SIGMAS)
    return found
