"""What leaves first when room is needed: what would be missed least for each byte that it frees.

An adapter is worth P(reuse) x seconds to load it again / bytes. P(reuse) comes from a count of uses that halves every
`half_life_s`: uses that come at a steady rate hold the count at rate x half-life / ln 2, and the chance that another
one comes within a half-life is then 1 - 2^-count.
"""

import heapq
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass
from typing import Literal

from catena.adapters.core.resident import Budget, Resident
from catena.adapters.core.work import Weights

Policy = Literal["cost", "lru"]
HALF_LIFE_S = 600.0
REMEMBERED = 4096
SMOOTHING = 0.5
"""Weight of the newest load's seconds against those before."""


@dataclass(slots=True)
class _Trace:
    count: float = 0.0
    at_s: float = 0.0
    reload_s: float = 0.0
    bytes: int = 0


class History:
    """What is known of adapters, also of those that are gone: how often used, how long to load, their exact bytes."""

    def __init__(self, *, half_life_s: float = HALF_LIFE_S, remembered: int = REMEMBERED) -> None:
        """Remember the `remembered` liveliest at least, and up to twice as many."""
        self._half_life_s = half_life_s
        self._remembered = remembered
        self._traces: dict[Weights, _Trace] = {}
        self._seconds = 0.0
        self._bytes = 0

    def used(self, weights: Weights, now_s: float) -> None:
        """Count a use."""
        trace = self._trace(weights, now_s)
        trace.count = self._count(trace, now_s) + 1.0
        trace.at_s = now_s

    def loaded(self, weights: Weights, *, seconds: float, bytes: int, now_s: float) -> None:
        """Learn from a load how long it takes and what it comes to."""
        trace = self._trace(weights, now_s)
        trace.reload_s = seconds if not trace.reload_s else trace.reload_s + SMOOTHING * (seconds - trace.reload_s)
        trace.bytes = bytes
        self._seconds += seconds
        self._bytes += bytes

    def bytes(self, weights: Weights, otherwise: int) -> int:
        """Its exact bytes as of its last load."""
        trace = self._traces.get(weights)
        return trace.bytes if trace is not None and trace.bytes else otherwise

    def reload_s(self, weights: Weights, bytes: int) -> float:
        """Seconds that its load takes: its own, else at the pace of all loads so far; 0 before the first."""
        trace = self._traces.get(weights)
        if trace is not None and trace.reload_s:
            return trace.reload_s
        return self._seconds * bytes / self._bytes if self._bytes else 0.0

    def reuse(self, weights: Weights, now_s: float) -> float:
        """The chance of another use within a half-life, 0 to 1."""
        trace = self._traces.get(weights)
        return 1.0 - 2.0 ** -self._count(trace, now_s) if trace is not None else 0.0

    def worth(self, resident: Resident, now_s: float) -> float:
        """Seconds of loading that a byte of it is expected to save."""
        size = max(1, resident.bytes)
        return self.reuse(resident.weights, now_s) * self.reload_s(resident.weights, size) / size

    def _count(self, trace: _Trace, now_s: float) -> float:
        return float(trace.count * 2.0 ** (-max(0.0, now_s - trace.at_s) / self._half_life_s))

    def _trace(self, weights: Weights, now_s: float) -> _Trace:
        trace = self._traces.get(weights)
        if trace is None:
            if len(self._traces) >= 2 * self._remembered:
                lively = heapq.nlargest(
                    self._remembered, self._traces.items(), key=lambda item: self._count(item[1], now_s)
                )
                self._traces = dict(lively)
            trace = self._traces[weights] = _Trace(at_s=now_s)
        return trace


def fits(residents: Iterable[Resident], need: int, budget: Budget) -> bool:
    """Whether one more adapter of `need` bytes is within the budget."""
    held = [resident.bytes for resident in residents]
    return len(held) < budget.count and sum(held) + need <= budget.bytes


def victim(
    residents: Collection[Resident], need: int, budget: Budget, worth: Callable[[Resident], float]
) -> Resident | None:
    """What has to go before `need` more bytes fit; None when they fit or nothing may go.

    The least worth goes first, the least recently used among equals; with a constant `worth` that is plain LRU.
    """
    if fits(residents, need, budget):
        return None
    free = [resident for resident in residents if resident.evictable]
    return min(free, key=lambda resident: (worth(resident), resident.last_used_s), default=None)
