"""Whether a model got worse, by how often it says what others say of the same request: nobody has to judge that.

Answers that several models were asked for are many times those that are judged. A model that fails more agrees less,
with each of the others; when another one fails more, only what is said beside that one changes. So a fall must show
whichever of the others is left out of account (the least of such e-values is one against a change of any single one of
them: intersection of the nulls), and those must not have come to agree less among themselves: else the requests did.
"""

import math
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import lru_cache
from typing import NamedTuple

from catena.plan.model import Role, Shape
from catena.router.core.drift import ENOUGH, WORSE, Answer, Change, find_change, gain_at, likeliest
from catena.router.core.observation import ALONE, Observation, StageOutcome, facts_of


class Heard(NamedTuple):
    """What a model said beside `others`, the `same` of whom said the same; `when` they were asked: at first, later."""

    place: int
    model: str
    others: frozenset[str]
    same: frozenset[str]
    domain: str
    when: str

    def beside(self, left_out: str = "") -> Answer | None:
        """Whether anybody agreed, one model left out of account; None where nobody else was asked."""
        others = self.others - {left_out}
        if not others:
            return None
        return Answer(self.place, float(bool(self.same - {left_out})), self.domain, _beside(self.when, others))


def dissent_of(observations: Sequence[Observation]) -> dict[str, Change]:
    """The fall of every model that fell off; `observations` oldest first."""
    heard = [one for place, observation in enumerate(observations) for one in _heard(place, observation)]
    by_model: dict[str, list[Heard]] = defaultdict(list)
    for one in heard:
        by_model[one.model].append(one)
    told = {model: _fall(model, own, heard) for model, own in sorted(by_model.items())}
    return {model: change for model, change in told.items() if change is not None}


def _fall(model: str, own: Sequence[Heard], heard: Sequence[Heard]) -> Change | None:
    """The model's fall, if it is one whoever else is doubted: each of the others, or all of them."""
    change = find_change(_answers(own), WORSE)
    if change is None:
        return None
    rest = [one for one in heard if one.model != model]
    if math.exp(-gain_at(_once(rest, model), change.since, WORSE)) < ENOUGH:
        return None
    for other in sorted(frozenset[str]().union(*(one.others for one in own))):
        alone = likeliest(_answers(own, other), WORSE)
        theirs = _answers([one for one in rest if one.model == other], model)
        odds = alone.odds * math.exp(-gain_at(theirs, change.since, WORSE)) if alone is not None else 0.0
        if odds < ENOUGH:
            return None
    return replace(change, judged=False)


def _once(heard: Sequence[Heard], left_out: str) -> list[Answer]:
    """Of each execution the first answer that was given beside others."""
    told: dict[int, Answer] = {}
    for answer in _answers(heard, left_out):
        told.setdefault(answer.place, answer)
    return list(told.values())


@lru_cache(maxsize=4096)
def _beside(when: str, others: frozenset[str]) -> str:
    return f"{when} {sorted(others)}"


def _answers(own: Sequence[Heard], left_out: str = "") -> list[Answer]:
    return [answer for answer in (one.beside(left_out) for one in own) if answer is not None]


def _heard(place: int, one: Observation) -> Iterator[Heard]:
    """Every answer beside those that were asked for at once, and beside those that a gate had it asked for after."""
    told: dict[str, StageOutcome] = {}
    for fact in facts_of(one) if len(one.stages) > 1 else ():
        if fact.mode in ALONE and fact.stage.digest and not fact.stage.failed:
            told.setdefault(fact.stage.model, fact.stage)
    late = {name for name, stage in told.items() if one.plan.shape is Shape.CASCADE and stage.role is Role.MAIN}
    first = told.keys() - late
    pairs = [(name, first - {name}, "first") for name in sorted(first)]
    pairs += [(name, first, "later") for name in sorted(late)] + [(name, late, "later") for name in sorted(first)]
    for name, others, when in pairs:
        if others:
            same = frozenset(other for other in others if told[other].digest == told[name].digest)
            yield Heard(place, name, frozenset(others), same, one.domain, when)
