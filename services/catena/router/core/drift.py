"""Whether a model became another one without telling: a sequential test of its judged answers against its earlier ones.

For every moment since which the model may have been better or worse, the likelihood of the judged answers under such a
change is held against that of none, both averaged over what is not known: how good the model was, how much it changed,
and when (a mixture likelihood ratio; Lai and Xing, Sequential Analysis 29, 2010). Without a change this average is a
martingale over time that begins at 1, so that it ever reaches 1 / level with a probability of at most `level`, however
often one looks (Ville): no correction for peeking is due.
"""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from catena.plan.model import Role, Shape
from catena.router.core.confidence import Array, log_odds, logit, sigmoid
from catena.router.core.observation import Fact, Mode, Observation, answer_of, facts_of

LEVEL = 0.02
"""Probability, per model, of ever seeing a change where there is none."""
LEAST_BEFORE, LEAST_AFTER = 8, 4
"""Judged answers on either side of a change."""
MOST_MOMENTS, MOST_CHANGES = 64, 4
_KIND_ANSWERS = 6.0
"""What a model's rate over all counts in each domain, and in each circumstance, in judged answers."""
_STEP = 0.25
_LEVELS = np.arange(-4.0, 4.0 + _STEP / 2.0, _STEP)
_SHIFTS = np.array([4, 8])
"""Log-odds by which a model may have been other than usual, and may change either way in steps of those."""
_MODES = frozenset({Mode.PLAIN, Mode.VERIFY})


class Answer(NamedTuple):
    """A judged answer: place of its execution, 1 right to 0 wrong, its domain, and how the request got there."""

    place: int
    right: float
    domain: str = ""
    circumstance: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """What changed: since the execution at `since`, by `shift` in log-odds, as `answers` judged since then say.

    `odds`: how many times likelier they are with the change than without any.
    """

    since: int
    shift: float
    answers: int
    odds: float


def changes_of(observations: Sequence[Observation]) -> dict[str, Change]:
    """The latest change of every model that changed; `observations` oldest first."""
    by_model: dict[str, list[Answer]] = defaultdict(list)
    for place, one in enumerate(observations):
        for fact in _spoken(one):
            answer = Answer(place, fact.label or 0.0, one.domain, _circumstance(one, fact))
            by_model[fact.stage.model].append(answer)
    told = {model: latest_change(answers) for model, answers in sorted(by_model.items())}
    return {model: change for model, change in told.items() if change is not None}


def latest_change(answers: Sequence[Answer]) -> Change | None:
    """The last of the changes that these answers, oldest first, show; None when they show none."""
    found: Change | None = None
    for _ in range(MOST_CHANGES):
        later = find_change([a for a in answers if found is None or a.place >= found.since])
        if later is None:
            break
        found = later
    return found


def find_change(answers: Sequence[Answer]) -> Change | None:
    """The likeliest change; None where all moments together do not speak for one at the `LEVEL`."""
    count = len(answers)
    if count < LEAST_BEFORE + LEAST_AFTER:
        return None
    moments = np.unique(np.linspace(LEAST_BEFORE, count - LEAST_AFTER, MOST_MOMENTS).astype(np.int64))
    right = np.array([answer.right for answer in answers])
    odds = _usual(right, answers)[:, None] + _LEVELS
    p = sigmoid(odds)
    told = np.vstack(
        [np.zeros(len(_LEVELS)), np.cumsum(right[:, None] * np.log(p) + (1.0 - right[:, None]) * np.log1p(-p), axis=0)]
    )
    prior = -0.5 * _LEVELS**2
    prior -= _log_sum(prior)
    before, after = told[moments] + prior, told[-1] - told[moments]
    steps = np.concatenate([-_SHIFTS, _SHIFTS])
    shifted = np.stack([_moved(after, int(step)) for step in steps], axis=2)
    by_shift = _log_sum(before[:, :, None] + shifted, axis=1)
    gains = by_shift - np.log(len(steps)) - _log_sum(told[-1] + prior)
    # Every judged answer may have been the first after the change: the evidence is the mean over all of them.
    whole = float(_log_sum(_log_sum(gains, axis=1)) - np.log(len(moments)))
    if whole < -np.log(LEVEL):
        return None
    best = int(np.argmax(_log_sum(gains, axis=1)))
    moment = int(moments[best])
    return Change(
        since=answers[moment].place,
        shift=float(steps[int(np.argmax(gains[best]))] * _STEP),
        answers=count - moment,
        odds=float(np.exp(min(whole, 30.0))),
    )


def _usual(right: Array, answers: Sequence[Answer]) -> Array:
    """(n,) usual log-odds in each one's domain and circumstance, both drawn to those over all."""
    whole = (float(right.sum()) + 1.0) / (len(right) + 2.0)
    usual: Array = np.full(len(right), logit(whole))
    for kinds in ([answer.domain for answer in answers], [answer.circumstance for answer in answers]):
        names = {kind: n for n, kind in enumerate(sorted(set(kinds)))}
        places = np.array([names[kind] for kind in kinds])
        rates = (np.bincount(places, right) + _KIND_ANSWERS * whole) / (np.bincount(places) + _KIND_ANSWERS)
        usual = usual + (log_odds(rates) - logit(whole))[places]
    return usual


def _spoken(one: Observation) -> Iterable[Fact]:
    """Answers that were judged themselves: those judged by another's say nothing of their own model's change."""
    facts = [fact for fact in facts_of(one) if fact.label is not None and fact.mode in _MODES and not fact.stage.failed]
    spoken = answer_of(one.plan.shape, one.stages) if one.plan.shape is not Shape.CONSENSUS else None
    return [fact for fact in facts if fact.stage.score is not None or fact.stage is spoken]


def _circumstance(one: Observation, fact: Fact) -> str:
    """Which requests reach a model: what a gate keeps is easier, what it lets pass is harder."""
    if one.plan.shape is not Shape.CASCADE or fact.stage.score is not None:
        return ""
    return "passed" if fact.stage.role is Role.MAIN else "kept"


def _moved(after: Array, step: int) -> Array:
    """(t, a) likelihoods by level as those of `step` levels higher; the last level stands for what lies beyond."""
    places = np.clip(np.arange(after.shape[1]) + step, 0, after.shape[1] - 1)
    moved: Array = after[:, places]
    return moved


def _log_sum(values: Array, axis: int | None = None) -> Array:
    top = values.max(axis=axis, keepdims=True)
    summed: Array = np.log(np.exp(values - top).sum(axis=axis)) + np.squeeze(top, axis=axis)
    return summed


def changed_since(changes: Mapping[str, Change], place: int) -> frozenset[str]:
    """The models that changed after the execution at `place`."""
    return frozenset(model for model, change in changes.items() if place < change.since)
