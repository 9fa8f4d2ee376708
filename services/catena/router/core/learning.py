"""From executions to knowledge. The same executions in the same order give the same knowledge, on any replica."""

import math
from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from catena.plan.model import Interval, Prediction
from catena.router.core.catalogue import Catalogue
from catena.router.core.confidence import Array, logit
from catena.router.core.evidence import Evidence, evidence_of
from catena.router.core.knowledge import ALL, EXACT, Kinds, Knowledge, Reach, Where, before
from catena.router.core.observation import Mode, Observation, family_of, is_judged
from catena.router.core.outcomes import fit_outcomes
from catena.router.core.samples import samples_of
from catena.router.core.scorers import read_answers
from catena.router.core.skills import fit_skills

COVERAGE = 0.9
_REACH_STEP = 0.05
_EFFORT_RUNS = 5.0
_NOISE, _USUAL = 0.16, 3.0
"""Variance of one verdict, and the squared surprise, in its deviations, up to which shrinkage is in full force."""


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
    scorers, usable = read_answers(usable)
    skills = fit_skills(
        samples_of(usable, half_life, lambda model: before(model, "", kinds, catalogue)),
        prior=lambda model, domain: before(model, domain, kinds, catalogue),
        needs_memory=kinds.needs_memory,
    )
    knowledge = Knowledge(
        catalogue=catalogue,
        kinds=kinds,
        skills=skills,
        scorers=scorers,
        outcomes=len(observations),
        judged_outcomes=sum(map(is_judged, usable)),
        evidence=evidence_of(usable, half_life),
        cost_reach=reach([(o.plan.prediction.cost_usd, o.cost_usd) for o in usable if o.plan.prediction]),
        latency_reach=reach([(o.plan.prediction.latency_ms, o.latency_ms) for o in usable if o.plan.prediction]),
    )
    assert knowledge.evidence is not None
    knowledge.outcome = fit_outcomes(knowledge.evidence, _usual(knowledge, knowledge.evidence))
    known = [o for o in usable if o.succeeded and all(catalogue.knows(s.model) for s in o.plan.stages)]
    composed = _composed(knowledge, known)
    _correct_quality(knowledge, known, composed, half_life)
    _correct_effort(knowledge, known, composed, half_life)
    return knowledge


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


def reach(pairs: Sequence[tuple[Interval, float]]) -> Reach:
    """Adaptive conformal inference (Gibbs and Candes, arXiv 2106.00170): wider after a miss, narrower after a hit."""
    log_factor, hits = 0.0, 0
    for ends, real in pairs:
        hit = ends.low <= real <= ends.high
        hits += hit
        log_factor += _REACH_STEP * (COVERAGE - 1.0 if hit else COVERAGE)
        log_factor = min(max(log_factor, -1.5), 1.5)
    return Reach(factor=math.exp(log_factor), covered=hits / len(pairs) if pairs else 0.0, seen=len(pairs))


def _composed(knowledge: Knowledge, observations: Sequence[Observation]) -> list[Prediction]:
    """What the parts alone say of each run; runs of one plan in one domain share the answer."""
    told: dict[tuple[str, float, str], Prediction] = {}
    predictions = []
    for o in observations:
        key = (family_of(o.plan), o.plan.settings.threshold, o.domain)
        if key not in told:
            told[key] = knowledge.compose(o.plan, o.domain)
        predictions.append(told[key])
    return predictions


def _correct_quality(
    knowledge: Knowledge, observations: Sequence[Observation], composed: Sequence[Prediction], half_life: int
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
        if o.score is not None and o.plan.shape not in EXACT
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
    """Learn how real cost, at today's prices, and real time stand to what was composed."""
    sums: dict[str, list[float]] = defaultdict(lambda: [0.0] * 5)
    newest = len(observations) - 1
    for n, (o, told) in enumerate(zip(observations, composed, strict=True)):
        weight = 0.5 ** ((newest - n) / half_life)
        figures = (1.0, _priced(o, knowledge.catalogue), told.cost_usd.mean, o.latency_ms, told.latency_ms.mean)
        tally = sums[family_of(o.plan)]
        for column, figure in enumerate(figures):
            tally[column] += weight * figure
    for family, (runs, cost, cost_told, time, time_told) in sums.items():
        pull = _EFFORT_RUNS / max(runs, 1e-9)
        knowledge.ratios[family] = (_ratio(cost, cost_told, pull), _ratio(time, time_told, pull))


def _ratio(real: float, told: float, pull: float) -> float:
    """Real over told, drawn towards 1 by `pull` times what was told."""
    return min(max((real / told + pull) / (1.0 + pull), 0.1), 10.0) if told > 0.0 else 1.0


def _priced(observation: Observation, catalogue: Catalogue) -> float:
    """What the run would cost at the catalogue's prices; what it did cost, where tokens were not told."""
    if not any(stage.input_tokens + stage.output_tokens for stage in observation.stages):
        return observation.cost_usd
    usd = 0.0
    for stage in observation.stages:
        card = catalogue.card(stage.model)
        usd += (stage.input_tokens * card.price_input + stage.output_tokens * card.price_output) / 1e6
    return usd
