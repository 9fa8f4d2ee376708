"""Every call that was seen, by model and mode, and what several calls have in common: means that lean on each other."""

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from catena.plan.expect import Amount, if_disagreed
from catena.plan.model import Role, Shape
from catena.router.core.habits import Start, Weighted
from catena.router.core.observation import ALONE, Fact, Mode, Observation, StageOutcome, agreement, facts_of
from catena.router.core.pace import Near

Key = tuple[str, Mode]
Stale = Sequence[frozenset[str]]
"""By execution the models that have changed since."""
ALL = "*"
_ROUNDS = 3
"""Times that what models are good for is found anew with the labels put back on usual requests by it."""
STANDING_CALLS, WORTH_HEARING = 4.0, 0.5
"""What a prior counts in judged answers; the rate in a domain above which a better model's word counts."""
DOMAIN_CALLS = 4.0
"""Calls in a domain that a model's mean over all domains is worth."""
TELLING = 4.0
"""Times the share of equal answers: how far an answer that differs from a right one counts as wrong, at most fully."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """One call as seen by the estimates; `weight` fades with age, `domain` None: nobody looked for one.

    `label`: of the fact, as it would be on a usual request: what a gate lets pass is harder than that.
    `seconded`: whether a better model gave the same answer to the same question; None: none was asked.
    `threshold`: of the cascade whose first answer it was; None: it was not. `before`,
    `meanwhile`: others of its model that ran when it began, and on average beside it.
    """

    fact: Fact
    domain: str | None
    chars: int
    weight: float
    label: float | None = None
    seconded: bool | None = None
    threshold: float | None = None
    before: int = 0
    meanwhile: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Level:
    """A shrunk mean with the deviation of the next value around it, overall and by domain."""

    overall: Amount
    by_domain: Mapping[str, Amount] = field(default_factory=dict)

    def at(self, domain: str) -> Amount:
        """In this domain, or overall when it was never met there."""
        return self.by_domain.get(domain, self.overall)


@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    """Tokens read = intercept + slope x characters sent; `relative_sd` of single calls."""

    intercept: float = 20.0
    slope: float = 0.25
    mean: float = 150.0
    relative_sd: float = 0.5

    def at(self, chars: int) -> float:
        """Tokens for that many characters; 0 characters mean that the length is unknown."""
        return max(self.intercept + self.slope * chars, 1.0) if chars else self.mean

    def off(self, samples: Sequence[Sample]) -> list[Weighted]:
        """By how many times each read more than the line says, with its weight."""
        chars = np.array([s.chars for s in samples], np.float64)
        told = np.maximum(np.where(chars > 0.0, self.intercept + self.slope * chars, self.mean), 1.0)
        read = np.array([s.fact.stage.input_tokens for s in samples]) / told
        return [(s.weight, over) for s, over in zip(samples, read.tolist(), strict=True)]


def samples_of(
    observations: Sequence[Observation],
    half_life: int,
    prior: Callable[[str], float],
    stale: Stale,
    crowds: Sequence[Near],
) -> dict[Key, list[Sample]]:
    """Every call by model and mode, the newest weighing 1.

    `prior`: a model's accuracy before anything is known. `crowds`: who ran near each execution.
    """
    told = [(one, facts_of(one, gone)) for one, gone in zip(observations, stale, strict=True)]
    standing: Mapping[tuple[str, str], float] = {}
    for _ in range(_ROUNDS):
        labels = [(o.domain, fact.stage.model, _on_usual(fact, o, standing)) for o, facts in told for fact in facts]
        standing = _standing(labels, prior)
    agreed: dict[str, list[int]] = defaultdict(lambda: [0, 0])
    for observation in observations:
        same, pairs = agreement(observation)
        agreed[observation.domain][0] += same
        agreed[observation.domain][1] += pairs
    samples: dict[Key, list[Sample]] = defaultdict(list)
    for age, (observation, facts) in enumerate(reversed(told)):
        weight = 0.5 ** (age / half_life)
        same, pairs = agreed[observation.domain]
        telling = min(1.0, TELLING * same / (pairs + 4.0))
        domain = observation.domain if observation.domain or observation.routed else None
        for fact in facts:
            stage = fact.stage
            samples[stage.model, fact.mode].append(
                Sample(
                    fact=fact,
                    domain=domain,
                    chars=observation.chars,
                    weight=weight * (telling if fact.inferred else 1.0),
                    label=_on_usual(fact, observation, standing),
                    seconded=_seconded(stage, observation, standing) if telling >= 0.5 else None,
                    threshold=observation.plan.settings.threshold if stage.role is Role.FAST else None,
                    before=crowds[-1 - age].before[stage.model],
                    meanwhile=crowds[-1 - age].meanwhile[stage.model],
                )
            )
    return samples


def across(told: Iterable[tuple[float, float]], worth: float, *, prior: float, calls: float) -> tuple[float, float]:
    """The mean over domains, not over answers, drawn to a prior that counts `calls`; and the answers it rests on.

    `told`: per domain how many answers were judged and the share of right ones. A domain counts `worth` answers at
    most, as random effects do (DerSimonian and Laird, Controlled Clinical Trials 7, 1986): a thousand complaints about
    one skill say little of the others.
    """
    right, judged = calls * prior, calls
    for weight, share in told:
        counted = weight * worth / (weight + worth)
        right += counted * share
        judged += counted
    return right / judged, judged


def tallies(samples: Mapping[Key, Sequence[Sample]], apart: frozenset[str]) -> list[tuple[str, float, float]]:
    """Of each model, however old: its name, its judged answers, the share of right ones; without domains `apart`."""
    sums: dict[str, dict[str, list[float]]] = defaultdict(lambda: defaultdict(lambda: [0.0, 0.0]))
    for (model, mode), seen in samples.items():
        for one in seen:
            if one.label is not None and not one.fact.inferred and mode in ALONE and one.domain not in apart:
                tally = sums[model][one.domain or ""]
                tally[0] += 1.0
                tally[1] += one.label
    found = []
    for model, domains in sorted(sums.items()):
        rate, _ = across([(n, right / n) for n, right in domains.values()], STANDING_CALLS, prior=0.5, calls=1e-9)
        found.append((model, sum(n for n, _ in domains.values()), min(max(rate, 0.0), 1.0)))
    return found


def _on_usual(fact: Fact, one: Observation, standing: Mapping[tuple[str, str], float]) -> float | None:
    """The label with what the request was harder than usual put back, where a cascade's gate had let it pass.

    A control variate: the expected difference between a usual request and such a one, by how good the models stand.
    """
    stage = fact.stage
    passed = fact.label is not None and stage.score is None and one.plan.shape is Shape.CASCADE
    if not passed or stage.role is not Role.MAIN or not standing:
        return fact.label
    firsts = [standing[other.model, one.domain] for other in one.stages if other.role is Role.FAST and not other.failed]
    if not firsts or fact.label is None:
        return fact.label
    able = min(max(standing[stage.model, one.domain], 0.0), 1.0)
    return fact.label + able - if_disagreed([min(max(first, 0.0), 1.0) for first in firsts], able)


def _standing(
    labels: Sequence[tuple[str, str, float | None]], prior: Callable[[str], float]
) -> dict[tuple[str, str], float]:
    """How often each model was right so far, over all domains (`ALL`) drawn to its prior, in each drawn to that."""
    sums: dict[str, dict[str, list[float]]] = defaultdict(lambda: defaultdict(lambda: [0.0, 0.0]))
    for domain, model, label in labels:
        tally = sums[model][domain]
        if label is not None:
            tally[0] += 1.0
            tally[1] += label
    rates = {}
    for model, domains in sums.items():
        told = [(judged, right / judged) for judged, right in domains.values() if judged]
        whole, _ = across(told, STANDING_CALLS, prior=prior(model), calls=STANDING_CALLS)
        rates[model, ALL] = whole
        for domain, (judged, right) in domains.items():
            rates[model, domain] = (right + STANDING_CALLS * whole) / (judged + STANDING_CALLS)
    return rates


def _seconded(stage: StageOutcome, observation: Observation, standing: Mapping[tuple[str, str], float]) -> bool | None:
    """None also where the better model is itself more often wrong than right: two may err alike."""
    able = {other.model: standing[other.model, ALL] for other in observation.stages}
    known = [
        other
        for other in observation.stages
        if other.digest
        and not other.failed
        and able[other.model] > able[stage.model]
        and standing[other.model, observation.domain] > WORTH_HEARING
    ]
    if not known or not stage.digest or stage.failed:
        return None
    return max(known, key=lambda other: able[other.model]).digest == stage.digest


def level(samples: Sequence[Sample], values: Sequence[float], start: Start) -> Level:
    """Mean of values and deviation of the next one, overall drawn to the start and by domain to the overall ones."""
    by_domain: dict[str, list[Weighted]] = defaultdict(list)
    for sample, value in zip(samples, values, strict=True):
        by_domain[sample.domain or ""].append((sample.weight, value))
    whole = start.after([pair for pairs in by_domain.values() for pair in pairs])
    own = whole.within(DOMAIN_CALLS)
    return Level(overall=whole.next, by_domain={name: own.after(pairs).next for name, pairs in by_domain.items()})


def line(samples: Sequence[Sample], scatter: Start) -> Line:
    """How tokens read grow with characters sent, drawn to one token for four where little was seen.

    `scatter`: of tokens over what the line says, before these.
    """
    tokens = np.array([float(s.fact.stage.input_tokens) for s in samples])
    weights = np.array([s.weight for s in samples])
    chars = np.array([float(s.chars) for s in samples])
    mean = float(weights @ tokens / weights.sum()) if weights.sum() else 150.0
    known = chars > 0
    if not known.any():
        told = Line(intercept=mean, slope=0.0, mean=mean)
    else:
        w, x, y = weights[known], chars[known], tokens[known]
        x_mean, y_mean = float(w @ x / w.sum()), float(w @ y / w.sum())
        pull = 0.05 * float(w.sum()) * (x_mean**2 + 1.0) / (1.0 + 0.2 * float(w.sum()))
        slope = (float(w @ ((x - x_mean) * (y - y_mean))) + pull * 0.25) / (float(w @ (x - x_mean) ** 2) + pull)
        slope = max(slope, 0.0)
        told = Line(intercept=y_mean - slope * x_mean, slope=slope, mean=mean)
    return replace(told, relative_sd=scatter.after(told.off(samples)).next.sd)
