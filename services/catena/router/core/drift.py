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
from catena.router.core.evidence import Numbers
from catena.router.core.observation import ALONE, Fact, Observation, answer_of, facts_of

LEVEL = 0.02
"""Probability, per model, of ever seeing a change where there is none."""
ENOUGH = 2.0 / LEVEL
"""Odds from which a change is believed: half of the level is for verdicts, half for what needs none (`dissent`)."""
LEAST_BEFORE, LEAST_AFTER = 8, 4
"""Judged answers on either side of a change."""
MOST_MOMENTS, MOST_CHANGES = 64, 4
_KIND_ANSWERS = 6.0
"""What a model's rate over all counts in each domain, and in each circumstance, in judged answers."""
_STEP = 0.25
_LEVELS = np.arange(-4.0, 4.0 + _STEP / 2.0, _STEP)
Steps = Sequence[int]
EITHER, WORSE = (-4, -8, 4, 8), (-4, -8)
"""Log-odds by which a model may have been other than usual, and by how many steps of those it may change."""


class Answer(NamedTuple):
    """A judged answer: place of its execution, 1 right to 0 wrong, its domain, and how the request got there."""

    place: int
    right: float
    domain: str = ""
    circumstance: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """What changed: since the execution at `since`, by `shift` in log-odds, as `answers` since then say.

    `odds`: how many times likelier they are with the change than without any. `judged`: by verdicts, else by what other
    models said.
    """

    since: int
    shift: float
    answers: int
    odds: float
    judged: bool = True

    @property
    def words(self) -> str:
        """What changed, for who asks why."""
        if not self.judged:
            return (
                f"agrees less with others by {-self.shift:.1f} in log-odds over its last {self.answers} answers beside "
                f"theirs, what was judged before is forgotten"
            )
        return (
            f"has changed: {'better' if self.shift > 0.0 else 'worse'} by {abs(self.shift):.1f} in log-odds over its "
            f"last {self.answers} judged answers, what came before is forgotten"
        )


def changes_of(judged: Mapping[str, Sequence[Answer]]) -> dict[str, Change]:
    """The latest change of every model that changed, by its judged answers."""
    told = {model: latest_change(answers) for model, answers in sorted(judged.items())}
    return {model: change for model, change in told.items() if change is not None}


def judged_of(observations: Sequence[Observation]) -> dict[str, list[Answer]]:
    """The judged answers of every model; `observations` oldest first."""
    by_model: dict[str, list[Answer]] = defaultdict(list)
    for place, one in enumerate(observations):
        for fact in _spoken(one):
            answer = Answer(place, fact.label or 0.0, one.domain, _circumstance(one, fact))
            by_model[fact.stage.model].append(answer)
    return by_model


def expected_of(changes: Mapping[str, Change], judged: Mapping[str, Sequence[Answer]]) -> dict[str, float]:
    """How often each changed model is right now, by how often it was before and how much it changed."""
    told = {}
    for model, change in changes.items():
        before = [answer.right for answer in judged.get(model, ()) if answer.place < change.since]
        if before:
            rate = (sum(before) + 1.0) / (len(before) + 2.0)
            told[model] = float(sigmoid(np.array(logit(rate) + change.shift)))
    return told


def latest_change(answers: Sequence[Answer], steps: Steps = EITHER) -> Change | None:
    """The last of the changes that these answers, oldest first, show; None when they show none."""
    found: Change | None = None
    for _ in range(MOST_CHANGES):
        later = find_change([a for a in answers if found is None or a.place >= found.since], steps)
        if later is None:
            break
        found = later
    return found


def find_change(answers: Sequence[Answer], steps: Steps = EITHER) -> Change | None:
    """The likeliest change by one of the `steps`; None where all moments together are not `ENOUGH` to speak for one."""
    found = likeliest(answers, steps)
    return found if found is not None and found.odds >= ENOUGH else None


def likeliest(answers: Sequence[Answer], steps: Steps = EITHER) -> Change | None:
    """The likeliest change by one of the `steps`, however little speaks for it; None where too few answers are told."""
    count = len(answers)
    if count < LEAST_BEFORE + LEAST_AFTER:
        return None
    moments = np.unique(np.linspace(LEAST_BEFORE, count - LEAST_AFTER, MOST_MOMENTS).astype(np.int64))
    by_moment = _log_sum(_gains(answers, moments, steps), axis=1)
    # Every answer may have been the first after the change: the evidence is the mean over all of them.
    whole = float(_log_sum(by_moment) - np.log(len(moments)))
    moment = int(moments[int(np.argmax(by_moment))])
    finer = [step for step in range(min(steps) - 4, max(steps) + 5) if step and (step < 0 or max(steps) > 0)]
    likely = _gains(answers, np.array([moment]), finer)[0]
    likely = np.exp(likely - likely.max())
    return Change(
        since=answers[moment].place,
        shift=_STEP * float(likely @ np.array(finer)) / float(likely.sum()),
        answers=count - moment,
        odds=float(np.exp(min(whole, 30.0))),
    )


def gain_at(answers: Sequence[Answer], since: int, steps: Steps) -> float:
    """Logarithm of the odds of a change by one of the `steps` at the execution `since`; 0 where too few tell."""
    before = sum(answer.place < since for answer in answers)
    if before < LEAST_BEFORE or len(answers) - before < LEAST_AFTER:
        return 0.0
    return float(_log_sum(_gains(answers, np.array([before]), steps)[0]))


def _gains(answers: Sequence[Answer], moments: Numbers, steps: Steps) -> Array:
    """(t, s) the same for each of the steps, of which each is as likely beforehand, at each place among the answers."""
    right = np.array([answer.right for answer in answers])
    p = sigmoid(_usual(right, answers)[:, None] + _LEVELS)
    told = np.vstack(
        [np.zeros(len(_LEVELS)), np.cumsum(right[:, None] * np.log(p) + (1.0 - right[:, None]) * np.log1p(-p), axis=0)]
    )
    prior = -0.5 * _LEVELS**2
    prior -= _log_sum(prior)
    before, after = told[moments] + prior, told[-1] - told[moments]
    shifted = np.stack([_moved(after, step) for step in steps], axis=2)
    by_shift = _log_sum(before[:, :, None] + shifted, axis=1)
    gains: Array = by_shift - np.log(len(steps)) - _log_sum(told[-1] + prior)
    return gains


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
    facts = [fact for fact in facts_of(one) if fact.label is not None and fact.mode in ALONE and not fact.stage.failed]
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
