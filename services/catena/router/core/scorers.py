"""How sure to be of an answer from what it looks like, for models whose providers tell no confidence.

Learned per model from judged answers, as log-odds over what is usual for the model in the domain. Answers that were
learned from are scored by folds that did not see them, or a cascade's gate would be believed too good.
"""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from catena.plan.answer import NAMES, sureness
from catena.router.core.confidence import Array, logit, sigmoid
from catena.router.core.features import NAMES as REQUEST_NAMES
from catena.router.core.observation import ALONE, Observation, StageOutcome, facts_of
from catena.router.core.outcomes import fit_logistic, standardised

LEAST_ANSWERS, FOLDS = 60, 5
"""Judged answers of a model below which its answers are not read; parts that are scored by the others."""
_WIDTH = len(NAMES) + len(REQUEST_NAMES)


@dataclass(frozen=True, slots=True, kw_only=True)
class Scorer:
    """Log-odds = `usual` + weights x features, of the answer first, then of the request."""

    usual: float
    weights: Array

    def reading(self, request: Sequence[float]) -> tuple[float, ...]:
        """For one request: log-odds before the answer is looked at, then a weight for each of its features."""
        about = _row((), request)[len(NAMES) :]
        start = self.usual + float(about @ self.weights[len(NAMES) :])
        return (round(start, 6), *(round(float(weight), 6) for weight in self.weights[: len(NAMES)]))

    def sureness(self, answer: Sequence[float], request: Sequence[float]) -> float | None:
        """Probability that the answer is right; None where nothing was taken of it."""
        return sureness(answer, self.reading(request))


def read_answers(
    observations: Sequence[Observation], stale: Sequence[frozenset[str]] = ()
) -> tuple[Mapping[str, Scorer], list[Observation]]:
    """What judged answers teach by model, and the executions with how sure to be of each answer.

    `stale`: by execution the models that have changed since, from whose answers nothing is learned.
    """
    seen: dict[str, list[tuple[int, StageOutcome, float, Sequence[float]]]] = defaultdict(list)
    for place, one in enumerate(observations):
        for fact in facts_of(one, stale[place] if stale else ()):
            if fact.stage.features and fact.label is not None and fact.mode in ALONE and not fact.inferred:
                seen[fact.stage.model].append((place, fact.stage, fact.label, one.plan.features))
    scorers: dict[str, Scorer] = {}
    apart: dict[tuple[int, str], float] = {}
    for model, answers in seen.items():
        if len(answers) >= LEAST_ANSWERS:
            design = np.array([_row(stage.features, request) for _, stage, _, request in answers])
            labels = np.array([label for _, _, label, _ in answers])
            scorers[model] = fit_scorer(design, labels)
            for answer, sure in zip(answers, _left_out(design, labels), strict=True):
                apart[answer[0], answer[1].name] = float(sure)
    if not scorers:
        return scorers, list(observations)
    return scorers, [_scored(place, one, scorers, apart) for place, one in enumerate(observations)]


def fit_scorer(design: Array, labels: Array) -> Scorer:
    """The reading under which the labels are likeliest; `design` (n, answer features + request features)."""
    centre, scale = design.mean(axis=0), np.maximum(design.std(axis=0), 1e-6)
    usual = logit(float(labels.mean()))
    beta, _ = fit_logistic(
        standardised(design, centre, scale), labels, np.ones(len(labels)), np.full(len(labels), usual)
    )
    weights = np.where(design.std(axis=0) > 1e-6, beta / scale, 0.0)
    return Scorer(usual=usual - float(weights @ centre), weights=weights)


def _left_out(design: Array, labels: Array) -> Array:
    """(n,) probabilities, each by what the other folds taught."""
    folds = np.arange(len(labels)) % FOLDS
    sure = np.empty(len(labels))
    for fold in range(FOLDS):
        inside = folds != fold
        scorer = fit_scorer(design[inside], labels[inside])
        sure[~inside] = sigmoid(scorer.usual + design[~inside] @ scorer.weights)
    return sure


def _scored(
    place: int, one: Observation, scorers: Mapping[str, Scorer], apart: Mapping[tuple[int, str], float]
) -> Observation:
    stages = []
    for stage in one.stages:
        sure = None
        # What a scorer said then is renewed; what a provider measured stays.
        if stage.model in scorers and stage.features and (stage.confidence == 0.0 or one.plan.settings.scorer):
            sure = apart.get((place, stage.name)) or scorers[stage.model].sureness(stage.features, one.plan.features)
        stages.append(stage if sure is None else replace(stage, confidence=sure))
    return replace(one, stages=tuple(stages))


def _row(answer: Sequence[float], request: Sequence[float]) -> Array:
    row = np.zeros(_WIDTH)
    row[: len(answer)] = answer
    row[len(NAMES) : len(NAMES) + len(request)] = request
    return row
