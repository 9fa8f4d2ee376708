"""From executions to knowledge. The same executions in the same order give the same knowledge, on any replica."""

from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from catena.plan.model import Prediction
from catena.router.core.beforehand import Beforehand, Kinds, learn_beforehand
from catena.router.core.catalogue import Catalogue
from catena.router.core.confidence import Array, logit
from catena.router.core.dissent import dissent_of
from catena.router.core.drift import Change, changed_since, changes_of, expected_of, judged_of
from catena.router.core.evidence import Evidence, evidence_of
from catena.router.core.intervals import LATEST_RUNS, Kept, Ran, reaches
from catena.router.core.knowledge import ALL, EXACT, Knowledge, Where
from catena.router.core.moment import Moment
from catena.router.core.observation import Mode, Observation, family_of, is_judged
from catena.router.core.outcomes import fit_outcomes
from catena.router.core.outlook import Length, Outlook, Parts
from catena.router.core.pace import Crowd, Near, loads_of, near
from catena.router.core.samples import samples_of, tallies
from catena.router.core.scorers import read_answers
from catena.router.core.skills import fit_skills
from catena.router.core.starts import NOWHERE, starts_of

_EFFORT_RUNS, _MOST = 5.0, 10.0
"""Runs that no correction of effort counts as, and the largest correction."""
_NOISE, _USUAL = 0.16, 3.0
"""Variance of one verdict, and the squared surprise, in its deviations, up to which shrinkage is in full force."""


Beside = Mapping[str, float]
"""How many others of each model ran."""
_NO_CROWD = Crowd()


class Chain(NamedTuple):
    """A judged run of a chain: its faded weight, its exposure, how much better it did than was expected so far."""

    shape: str
    family: str
    domain: str
    weight: float
    exposure: float
    left: float


LADDER: tuple[tuple[float, Callable[[Chain], Where]], ...] = (
    (15.0, lambda chain: (chain.shape, ALL)),
    (15.0, lambda chain: (chain.shape, chain.domain)),
    (20.0, lambda chain: (chain.family, ALL)),
    (15.0, lambda chain: (chain.family, chain.domain)),
)
"""From the widest to the narrowest: judged runs that a level needs to count half, and what it is keyed by."""


def learn(
    observations: Sequence[Observation], catalogue: Catalogue, kinds: Kinds, *, half_life: int = 2000
) -> Knowledge:
    """What these executions, oldest first, teach; `half_life` is in executions."""
    usable = [o for o in observations if o.plan.stages and not o.cached and not o.cancelled and not o.plan.pipeline]
    judged = judged_of(usable)
    changes = _latest(changes_of(judged), dissent_of(usable))
    stale = [changed_since(changes, place) for place in range(len(usable))]
    scorers, usable = read_answers(usable, stale)
    crowds = near(usable)
    samples = samples_of(usable, half_life, lambda model: Beforehand().of(model, "", kinds, catalogue), stale, crowds)
    beforehand = learn_beforehand(tallies(samples, kinds.needs_memory), catalogue, changed=expected_of(changes, judged))
    starts = starts_of(samples)
    skills = fit_skills(
        samples,
        starts=starts,
        prior=lambda model, domain: beforehand.of(model, domain, kinds, catalogue),
        needs_memory=kinds.needs_memory,
    )
    knowledge = Knowledge(
        catalogue=catalogue,
        kinds=kinds,
        beforehand=beforehand,
        changes=changes,
        skills=skills,
        starts=starts.get(Mode.PLAIN, NOWHERE),
        scorers=scorers,
        outcomes=len(observations),
        judged_outcomes=sum(map(is_judged, usable)),
        judged_lately=sum(map(is_judged, usable[max((c.since for c in changes.values()), default=0) :])),
        evidence=evidence_of(usable, half_life, stale),
        loads=loads_of(usable),
        kept=_kept(usable),
    )
    assert knowledge.evidence is not None
    knowledge.outcome = fit_outcomes(knowledge.evidence, _usual(knowledge, knowledge.evidence))
    told = [
        (o, gone, beside)
        for o, gone, beside in zip(usable, stale, _slowed_by(knowledge, crowds), strict=True)
        if o.succeeded and all(catalogue.knows(s.model) for s in o.plan.stages)
    ]
    known = [o for o, _, _ in told]
    composed = _composed(knowledge, known, [beside for _, _, beside in told])
    # A chain that one of its models has left behind is judged by what it does now.
    current = [not any(s.model in gone for s in o.plan.stages) for o, gone, _ in told]
    _correct_quality(knowledge, known, composed, current, half_life)
    _correct_effort(knowledge, known, composed, half_life)
    _widen(knowledge, usable, crowds)
    return knowledge


def _latest(judged: Mapping[str, Change], unjudged: Mapping[str, Change]) -> dict[str, Change]:
    """Of each model the change that came last."""
    told = dict(judged)
    for model, change in unjudged.items():
        if model not in told or told[model].since < change.since:
            told[model] = change
    return told


def _usual(knowledge: Knowledge, evidence: Evidence) -> Array:
    """(n, m) log-odds of each model in each row's domain."""
    told = np.array(
        [
            [logit(knowledge.skill(model, Mode.PLAIN, name).quality.at(name).mean) for model in evidence.models]
            for name in evidence.names
        ]
    ).reshape(len(evidence.names), len(evidence.models))
    usual: Array = told[evidence.domains]
    return usual


def _slowed_by(knowledge: Knowledge, crowds: Sequence[Near]) -> list[Beside]:
    """By execution, who ran beside it, as it made each of its models slow, to a tenth, so that many are alike."""
    by_model = {model: known.crowd for (model, mode), known in knowledge.skills.items() if mode is Mode.PLAIN}
    return [
        {
            model: round(by_model.get(model, _NO_CROWD).told_by(before, meanwhile[model]), 1)
            for model, before in befores.items()
        }
        for befores, meanwhile in crowds
    ]


def _composed(knowledge: Knowledge, observations: Sequence[Observation], crowds: Sequence[Beside]) -> list[Prediction]:
    """What the parts alone say of each run; runs of one plan in one domain beside as many others share the answer."""
    parts: dict[tuple[str, float, str], Parts] = {}
    told: dict[tuple[tuple[str, float, str], tuple[float, ...]], Prediction] = {}
    predictions = []
    for o, beside in zip(observations, crowds, strict=True):
        key = (family_of(o.plan), o.plan.settings.threshold, o.domain)
        crowd = key, tuple(beside.get(stage.model, 0) for stage in o.plan.stages)
        if key not in parts:
            parts[key] = knowledge.parts(o.plan, o.domain)
        if crowd not in told:
            told[crowd] = parts[key].compose(moment=Moment(beside=beside))
        predictions.append(told[crowd])
    return predictions


def _correct_quality(
    knowledge: Knowledge,
    observations: Sequence[Observation],
    composed: Sequence[Prediction],
    current: Sequence[bool],
    half_life: int,
) -> None:
    """Learn offsets level by level, each from what the levels above leave over."""
    newest = len(observations) - 1
    chains = [
        Chain(
            shape=str(o.plan.shape),
            family=family_of(o.plan),
            domain=o.domain,
            weight=0.5 ** ((newest - n) / half_life),
            exposure=knowledge.exposure(o.plan, o.domain),
            left=o.score - told,
        )
        for n, (o, told) in enumerate(zip(observations, (p.quality.mean for p in composed), strict=True))
        if o.score is not None and o.plan.shape not in EXACT and current[n]
    ]
    for runs, where in LADDER:
        sums: dict[Where, list[float]] = defaultdict(lambda: [0.0, 0.0])
        for chain in chains:
            tally = sums[where(chain)]
            tally[0] += chain.weight * chain.exposure**2
            tally[1] += chain.weight * chain.exposure * chain.left
        for place, (weight, left) in sums.items():
            surprise = left**2 / max(weight * _NOISE, 1e-9)
            knowledge.offsets[place] = left / (weight + runs * min(1.0, _USUAL / max(surprise, 1e-9)))
            knowledge.judged[place] = weight
        chains = [
            chain._replace(left=chain.left - chain.exposure * knowledge.offsets[where(chain)]) for chain in chains
        ]


def _correct_effort(
    knowledge: Knowledge, observations: Sequence[Observation], composed: Sequence[Prediction], half_life: int
) -> None:
    """Learn how real cost, at today's prices, and real time stand to what was composed.

    Of costs the sums, for the dear runs are what is paid; of times each run alike, or a burst would tell of all others.
    """
    sums: dict[str, list[float]] = defaultdict(lambda: [0.0] * 4)
    newest = len(observations) - 1
    for n, (o, told) in enumerate(zip(observations, composed, strict=True)):
        weight = 0.5 ** ((newest - n) / half_life)
        slower = min(_warm_ms(o) / max(told.latency_ms.mean, 1e-3), _MOST)
        figures = (1.0, _priced(o, knowledge.catalogue), told.cost_usd.mean, slower)
        tally = sums[family_of(o.plan)]
        for column, figure in enumerate(figures):
            tally[column] += weight * figure
    for family, (runs, cost, cost_told, slower) in sums.items():
        pull = _EFFORT_RUNS / max(runs, 1e-9)
        knowledge.ratios[family] = (_ratio(cost, cost_told, pull), _ratio(slower, runs, pull))


def _widen(knowledge: Knowledge, observations: Sequence[Observation], crowds: Sequence[Near]) -> None:
    """Learn how far ends must lie from the latest runs of each chain, each told as it would be told now."""
    scored: Counter[str] = Counter()
    outlooks: dict[tuple[str, str], Outlook] = {}
    cost: list[Ran] = []
    time: list[Ran] = []
    for o, (beside, _) in reversed(list(zip(observations, crowds, strict=True))):
        family, told = family_of(o.plan), o.plan.prediction
        known = o.succeeded and all(knowledge.catalogue.knows(stage.model) for stage in o.plan.stages)
        if told is None or not known or scored[family] >= LATEST_RUNS:
            continue
        scored[family] += 1
        place = o.configuration_id, o.domain
        if place not in outlooks:
            outlooks[place] = knowledge.outlook(o.plan, o.domain)
        now = outlooks[place].predict(Length(chars=o.chars), moment=Moment(beside=beside))
        cost.append(Ran(family, now.cost_usd, o.cost_usd, told.cost_usd.holds(o.cost_usd)))
        time.append(Ran(family, now.latency_ms, _warm_ms(o), told.latency_ms.holds(o.latency_ms)))
    knowledge.cost_reaches, knowledge.latency_reaches = reaches(cost[::-1]), reaches(time[::-1])


def _warm_ms(one: Observation) -> float:
    """Milliseconds without what loading took."""
    return one.latency_ms - sum(stage.load_ms for stage in one.stages)


def _kept(observations: Sequence[Observation]) -> Kept:
    told = [(o, o.plan.prediction) for o in observations if o.plan.prediction is not None and o.succeeded]
    if not told:
        return Kept()
    return Kept(
        runs=len(told),
        cost=sum(p.cost_usd.holds(o.cost_usd) for o, p in told) / len(told),
        time=sum(p.latency_ms.holds(o.latency_ms) for o, p in told) / len(told),
    )


def _ratio(real: float, told: float, pull: float) -> float:
    """Real over told, drawn towards 1 by `pull` times what was told."""
    return min(max((real / told + pull) / (1.0 + pull), 1.0 / _MOST), _MOST) if told > 0.0 else 1.0


def _priced(observation: Observation, catalogue: Catalogue) -> float:
    """What the run would cost at the catalogue's prices; what it did cost, where tokens were not told."""
    if not any(stage.input_tokens + stage.output_tokens for stage in observation.stages):
        return observation.cost_usd
    usd = 0.0
    for stage in observation.stages:
        card = catalogue.card(stage.model)
        usd += (stage.input_tokens * card.price_input + stage.output_tokens * card.price_output) / 1e6
    return usd
