"""How wide intervals must be to cover nine in ten: of chains replayed on what was seen, then of those that really ran.

Composed ends are wrong in their width, not often in their middle. Where rows show all calls of a chain, the width comes
from them (split conformal with a normalised score; Lei et al., JASA 113, 2018), also before the chain ever ran. What is
left is read from the latest runs of each chain, as what is known now would have told them.
"""

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from catena.plan.model import Interval, Plan
from catena.router.core.confidence import Array
from catena.router.core.evidence import Evidence
from catena.router.core.habits import effective
from catena.router.core.replay import asked
from catena.router.core.samples import DOMAIN_CALLS

COVERAGE = 0.9
LEAST_ROWS, MOST_ROWS = 20, 400
"""Rows from which a width is taken, and the latest of them that are looked at: more tell no more, and take time."""
_PRIOR_ROWS = 20.0
LATEST_RUNS = 200
"""The latest runs of a chain that are scored anew with what is known now."""
_MEMORY, _LENT_RUNS, _SURE_RUNS = 100.0, 5.0, 20.0
"""Runs after which one counts half; that the other chains count together; that are taken to have been held as meant."""
_HIGHEST, _FURTHEST = 0.97, 20.0
"""The highest quantile that is taken, and the widest reach."""
_MOST_LOG = 1.5


@dataclass(frozen=True, slots=True, kw_only=True)
class Reaches:
    """How many times further than composed the ends must lie to hold nine in ten: of each chain, by its family.

    `shared`: of a chain that never ran.
    """

    shared: float = 1.0
    own: Mapping[str, float] = field(default_factory=dict)

    def of(self, family: str) -> float:
        """That of the chain."""
        return self.own.get(family, self.shared)


class Ran(NamedTuple):
    """A run: its family, the ends that would be told of it now, what it took, whether those told before held that."""

    family: str
    ends: Interval
    real: float
    held: bool


def reaches(ran: Sequence[Ran]) -> Reaches:
    """From runs, oldest first: how far each lay from its mean, in its half-widths; within the reach lie nine in ten.

    Split conformal with weights that fade with age (Barber et al., Annals of Statistics 51, 2023); the other chains
    together count as a few runs. Where what was told held too seldom, the quantile is higher by as much (after Gibbs
    and Candes, arXiv 2106.00170): what one knows now looks better on the past than on what comes next.
    """
    chains: dict[str, list[Ran]] = defaultdict(list)
    for one in ran:
        chains[one.family].append(one)
    told = {family: _scored(runs) for family, runs in chains.items()}
    own = {family: _reach(one, [other for other in told.values() if other is not one]) for family, one in told.items()}
    return Reaches(shared=_reach(_NEVER_RAN, list(told.values())), own=own)


@dataclass(frozen=True, slots=True, eq=False)
class _Scored:
    """A chain's runs: how far each lay from its mean, what it counts, and by how much too few were held."""

    scores: Array
    weights: Array
    short: float


_NEVER_RAN = _Scored(np.empty(0), np.empty(0), 0.0)


def _scored(runs: Sequence[Ran]) -> _Scored:
    weights = 0.5 ** (np.arange(len(runs))[::-1] / _MEMORY)
    held = float(weights @ np.array([one.held for one in runs], np.float64))
    covered = (held + _SURE_RUNS * COVERAGE) / (float(weights.sum()) + _SURE_RUNS)
    return _Scored(np.array([_score(one) for one in runs]), weights, max(COVERAGE - covered, 0.0))


def _score(one: Ran) -> float:
    """How many of its half-widths a run lay from its mean, in logarithms; 1 where there is no telling."""
    ends = one.ends
    if one.real <= 0.0 or not 0.0 < ends.low < ends.mean < ends.high:
        return 1.0
    off = math.log(one.real / ends.mean)
    return off / math.log(ends.high / ends.mean) if off > 0.0 else off / math.log(ends.low / ends.mean)


def _reach(chain: _Scored, others: Sequence[_Scored]) -> float:
    """The quantile of a chain's scores among a few of the others', of which each counts as far as it is known."""
    known = [min(float(other.weights.sum()), _LENT_RUNS) for other in others]
    lent = [
        other.weights * (_LENT_RUNS * share / sum(known) / float(other.weights.sum()))
        for other, share in zip(others, known, strict=True)
    ]
    scores = np.concatenate([chain.scores, *(other.scores for other in others)])
    weights = np.concatenate([chain.weights, *lent])
    if not len(scores):
        return 1.0
    level = min(COVERAGE * (1.0 + 1.0 / effective(weights)) + chain.short, _HIGHEST)
    order = np.argsort(scores)
    place = int(np.searchsorted(np.cumsum(weights[order]), level * float(weights.sum())))
    found = float(scores[order][min(place, len(scores) - 1)])
    return min(max(found, 1.0 / _FURTHEST), _FURTHEST)


@dataclass(frozen=True, slots=True, kw_only=True)
class Kept:
    """Of `runs` executions, the shares whose cost and time lay between the ends that were told before."""

    runs: int = 0
    cost: float = 0.0
    time: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Bills:
    """What a chain would have cost and taken on rows that show all its calls, with each row's domain.

    `pull` (n,): by how much each row has drawn the mean of its domain to itself, of its distance from it.
    """

    usd: Array
    ms: Array
    domains: Sequence[str]
    pull: Array


def bills(plan: Plan, evidence: Evidence, usd: Array) -> Bills | None:
    """The chain's bills; `usd` (n, m): of each call. None for other chains, or where too few rows show their calls."""
    found = asked(plan, evidence)
    if found is None:
        return None
    first, later = found.first, found.later
    places = np.flatnonzero(found.seen & ~np.isnan(usd[:, [*first, *later]]).any(axis=1))
    if len(places) < LEAST_ROWS:
        return None
    met = np.bincount(evidence.domains[places], minlength=len(evidence.names)).astype(np.float64)
    places = places[-MOST_ROWS:]
    ms = evidence.taken[places]
    goes_on = ~found.settled[places]
    slowest = ms[:, first].max(axis=1)
    return Bills(
        usd=usd[places][:, first].sum(axis=1) + goes_on * usd[places][:, later].sum(axis=1),
        ms=slowest + goes_on * ms[:, later].sum(axis=1),
        domains=[evidence.names[domain] for domain in evidence.domains[places]],
        pull=1.0 / (met[evidence.domains[places]] + DOMAIN_CALLS),
    )


def width(ends: Sequence[Interval], real: Array, pull: Array) -> float:
    """Factor on the logarithms of the ends over their means under which nine in ten of `real` lie between them.

    `pull`: how far the means were learned from these very values, which would have been further from them else.
    """
    means, lows, highs = (np.array([getattr(one, name) for one in ends]) for name in ("mean", "low", "high"))
    known = (real > 0.0) & (lows > 0.0) & (lows < means) & (highs > means)
    if known.sum() < LEAST_ROWS:
        return 1.0
    off = np.log(real[known] / means[known]) / (1.0 - pull[known])
    scores = np.where(off > 0.0, off / np.log(highs / means)[known], off / np.log(lows / means)[known])
    count = len(scores)
    place = min(math.ceil(COVERAGE * (count + 1)), count) - 1
    wanted = math.log(max(float(np.sort(scores)[place]), math.exp(-_MOST_LOG)))
    # Wider at once, narrower as far as many rows say so: missing costs more than being wide.
    return math.exp(min(wanted, _MOST_LOG) if wanted > 0.0 else wanted * count / (count + _PRIOR_ROWS))
