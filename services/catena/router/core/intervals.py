"""How wide intervals must be to cover nine in ten: of chains replayed on what was seen, then of those that really ran.

Composed ends are wrong in their width, not often in their middle. Where rows show all calls of a chain, the width comes
from them (split conformal with a normalised score; Lei et al., JASA 113, 2018), also before the chain ever ran. What is
left is followed run by run, for all plans together and for each chain by itself.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from catena.plan.model import Interval, Plan
from catena.router.core.confidence import Array
from catena.router.core.evidence import Evidence
from catena.router.core.replay import asked

COVERAGE = 0.9
LEAST_ROWS, MOST_ROWS = 20, 400
"""Rows from which a width is taken, and the latest of them that are looked at: more tell no more, and take time."""
_STEP, _OWN_STEP, _PRIOR_ROWS = 0.05, 0.08, 20.0
_MOST_LOG = 1.5


@dataclass(frozen=True, slots=True, kw_only=True)
class Reach:
    """How much wider than composed an interval must be to cover nine in ten, and what share it covered."""

    factor: float = 1.0
    covered: float = 0.0
    seen: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Reaches:
    """Of all plans together, and of each chain by its family."""

    shared: Reach = Reach()
    own: Mapping[str, Reach] = field(default_factory=dict)

    def of(self, family: str) -> Reach:
        """That of the chain; of one that never ran, that of all."""
        return self.own.get(family, self.shared)


class Ran(NamedTuple):
    """A run: its family, what was predicted of it, what it really took."""

    family: str
    ends: Interval
    real: float


def reaches(ran: Sequence[Ran]) -> Reaches:
    """Adaptive conformal inference (Gibbs and Candes, arXiv 2106.00170): wider after a miss, narrower after a hit.

    A chain starts where all stood when it first ran, so that one that ran seldom stays near them.
    """
    shared, own = _Follower(), dict[str, _Follower]()
    for family, ends, real in ran:
        hit = ends.low <= real <= ends.high
        if family not in own:
            own[family] = _Follower(log_factor=shared.log_factor)
        own[family].follow(hit, _OWN_STEP)
        shared.follow(hit, _STEP)
    return Reaches(shared=shared.reach(), own={family: one.reach() for family, one in own.items()})


@dataclass(slots=True)
class _Follower:
    log_factor: float = 0.0
    hits: int = 0
    seen: int = 0

    def follow(self, hit: bool, step: float) -> None:
        moved = self.log_factor + step * (COVERAGE - 1.0 if hit else COVERAGE)
        self.log_factor = min(max(moved, -_MOST_LOG), _MOST_LOG)
        self.hits += hit
        self.seen += 1

    def reach(self) -> Reach:
        return Reach(factor=math.exp(self.log_factor), covered=self.hits / max(self.seen, 1), seen=self.seen)


@dataclass(frozen=True, slots=True, kw_only=True)
class Bills:
    """What a chain would have cost and taken on rows that show all its calls, with each row's domain."""

    usd: Array
    ms: Array
    domains: Sequence[str]


def bills(plan: Plan, evidence: Evidence, usd: Array) -> Bills | None:
    """The chain's bills; `usd` (n, m): of each call. None for other chains, or where too few rows show their calls."""
    found = asked(plan, evidence)
    if found is None:
        return None
    first, later, kept, seen = found
    places = np.flatnonzero(seen & ~np.isnan(usd[:, [*first, *later]]).any(axis=1))[-MOST_ROWS:]
    if len(places) < LEAST_ROWS:
        return None
    ms = evidence.taken[places]
    goes_on = ~kept[places]
    slowest = ms[:, first].max(axis=1)
    return Bills(
        usd=usd[places][:, first].sum(axis=1) + goes_on * usd[places][:, later].sum(axis=1),
        ms=slowest + goes_on * ms[:, later].sum(axis=1),
        domains=[evidence.names[domain] for domain in evidence.domains[places]],
    )


def width(ends: Sequence[Interval], real: Array) -> float:
    """Factor on the logarithms of the ends over their means under which nine in ten of `real` lie between them."""
    means, lows, highs = (np.array([getattr(one, name) for one in ends]) for name in ("mean", "low", "high"))
    known = (real > 0.0) & (lows > 0.0) & (lows < means) & (highs > means)
    if known.sum() < LEAST_ROWS:
        return 1.0
    off = np.log(real[known] / means[known])
    scores = np.where(off > 0.0, off / np.log(highs / means)[known], off / np.log(lows / means)[known])
    count = len(scores)
    place = min(math.ceil(COVERAGE * (count + 1)), count) - 1
    wanted = math.log(max(float(np.sort(scores)[place]), math.exp(-_MOST_LOG)))
    # Wider at once, narrower as far as many rows say so: missing costs more than being wide.
    return math.exp(min(wanted, _MOST_LOG) if wanted > 0.0 else wanted * count / (count + _PRIOR_ROWS))
