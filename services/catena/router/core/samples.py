"""Every call that was seen, by model and mode, and what several calls have in common: means that lean on each other."""

import math
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from catena.plan.expect import Amount
from catena.plan.model import Role
from catena.router.core.observation import Fact, Mode, Observation, StageOutcome, agreement, facts_of

Key = tuple[str, Mode]
TELLING = 4.0
"""Times the share of equal answers: how far an answer that differs from a right one counts as wrong, at most fully."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """One call as seen by the estimates; `weight` fades with age, `domain` None: nobody looked for one.

    `seconded`: whether a better model gave the same answer to the same question; None: none was asked.
    `threshold`: of the cascade whose first answer it was; None: it was not.
    """

    fact: Fact
    domain: str | None
    chars: int
    weight: float
    seconded: bool | None = None
    threshold: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Level:
    """A shrunk mean with its deviation, overall and by domain; `spread` is relative, of single calls."""

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


def samples_of(
    observations: Sequence[Observation], half_life: int, prior: Callable[[str], float]
) -> dict[Key, list[Sample]]:
    """Every call by model and mode, the newest weighing 1. `prior`: a model's accuracy before anything is known."""
    told = [(observation, facts_of(observation)) for observation in observations]
    standing = _standing([fact for _, facts in told for fact in facts], prior)
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
                    seconded=_seconded(stage, observation.stages, standing) if telling >= 0.5 else None,
                    threshold=observation.plan.settings.threshold if stage.role is Role.FAST else None,
                )
            )
    return samples


def _standing(facts: Sequence[Fact], prior: Callable[[str], float]) -> dict[str, float]:
    """How often each model was right so far, drawn to its prior."""
    sums: dict[str, list[float]] = {}
    for fact in facts:
        tally = sums.setdefault(fact.stage.model, [0.0, 0.0])
        if fact.label is not None:
            tally[0] += 1.0
            tally[1] += fact.label
    return {model: (right + 4.0 * prior(model)) / (judged + 4.0) for model, (judged, right) in sums.items()}


def _seconded(stage: StageOutcome, others: Sequence[StageOutcome], standing: Mapping[str, float]) -> bool | None:
    own = standing[stage.model]
    known = [o for o in others if o.digest and not o.failed and standing[o.model] > own]
    if not known or not stage.digest or stage.failed:
        return None
    return max(known, key=lambda other: standing[other.model]).digest == stage.digest


def level(samples: Sequence[Sample], values: Sequence[float], prior: Amount) -> Level:
    """Mean and deviation of values, overall drawn to the prior and by domain drawn to the overall ones."""
    by_domain: dict[str, list[tuple[float, float]]] = defaultdict(list)
    for sample, value in zip(samples, values, strict=True):
        by_domain[sample.domain or ""].append((sample.weight, value))
    whole = _shrunk([pair for pairs in by_domain.values() for pair in pairs], prior, 2.0)
    return Level(overall=whole, by_domain={name: _shrunk(pairs, whole, 4.0) for name, pairs in by_domain.items()})


def _shrunk(pairs: Sequence[tuple[float, float]], prior: Amount, strength: float) -> Amount:
    """Mean, and deviation of single values, of weighted values and `strength` values drawn from the prior."""
    weight = strength + sum(w for w, _ in pairs)
    mean = (strength * prior.mean + sum(w * value for w, value in pairs)) / weight
    squares = strength * (prior.sd**2 + (prior.mean - mean) ** 2) + sum(w * (v - mean) ** 2 for w, v in pairs)
    return Amount(mean, math.sqrt(squares / weight))


def line(samples: Sequence[Sample]) -> Line:
    """How tokens read grow with characters sent, drawn to one token for four where little was seen."""
    tokens = np.array([float(s.fact.stage.input_tokens) for s in samples])
    weights = np.array([s.weight for s in samples])
    chars = np.array([float(s.chars) for s in samples])
    mean = float(weights @ tokens / weights.sum()) if weights.sum() else 150.0
    spread = float(np.sqrt(weights @ (tokens - mean) ** 2 / weights.sum())) / max(mean, 1.0)
    known = chars > 0
    if not known.any():
        return Line(intercept=mean, slope=0.0, mean=mean, relative_sd=spread)
    w, x, y = weights[known], chars[known], tokens[known]
    x_mean, y_mean = float(w @ x / w.sum()), float(w @ y / w.sum())
    pull = 0.05 * float(w.sum()) * (x_mean**2 + 1.0) / (1.0 + 0.2 * float(w.sum()))
    slope = (float(w @ ((x - x_mean) * (y - y_mean))) + pull * 0.25) / (float(w @ (x - x_mean) ** 2) + pull)
    slope = max(slope, 0.0)
    left = float(np.sqrt(w @ (y - y_mean - slope * (x - x_mean)) ** 2 / w.sum())) / max(y_mean, 1.0)
    return Line(intercept=y_mean - slope * x_mean, slope=slope, mean=mean, relative_sd=left)
