"""How tight memory is: a level that does not flutter, and what it asks of residency.

The measure is bytes used over the bytes that there are: the budget or, where the machine has less left, what is used
and may still be taken. A cache that works is full, so a full budget is `high`; more used than there is, is `critical`.
What is kept in host memory may always be taken: it is the first to go when the machine runs short.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from catena.adapters.core.residency import Residency

Level = Literal["low", "medium", "high", "critical"]
LEVELS: tuple[Level, ...] = ("low", "medium", "high", "critical")


@dataclass(frozen=True, slots=True, kw_only=True)
class Bounds:
    """Shares above which each level begins; it ends `hysteresis` below. Idle longer than `idle_s` is dropped at `high`.

    `reserve_bytes` of the machine's memory are not the adapters' to take.
    """

    medium: float = 0.6
    high: float = 0.85
    critical: float = 1.0
    hysteresis: float = 0.05
    idle_s: float = 600.0
    reserve_bytes: int = 256 << 20


def share(used: int, budget: int, free: int | None, reserve: int) -> float:
    """`used` over the bytes that there are, infinite where there are none. `free` None: only the budget bounds."""
    room = budget if free is None else min(budget, used + free - reserve)
    return used / room if room > 0 else math.inf


def level(share: float, before: Level, bounds: Bounds) -> Level:
    """The level now: up as soon as a bound is passed, down only once the share is clearly below it."""
    begins = (-math.inf, bounds.medium, bounds.high, bounds.critical)
    now = LEVELS[0]
    for rank, (name, bound) in enumerate(zip(LEVELS, begins, strict=True)):
        if share > bound - (bounds.hysteresis if rank <= LEVELS.index(before) else 0.0):
            now = name
    return now


class Pressure:
    """The level of one residency. `free` reads the machine's free bytes; None where they bound nothing here."""

    def __init__(self, residency: Residency, *, bounds: Bounds, free: Callable[[], int | None], unified: bool) -> None:
        """Begin at `low`. `unified`: the device's memory is the machine's, which then bounds it too."""
        self.level: Level = "low"
        self._residency = residency
        self._bounds = bounds
        self._free = free
        self._unified = unified

    def measure(self) -> Level:
        """Take the level anew."""
        used, budget = self._residency.device.used_bytes, self._residency.device.budget.bytes
        free = self._free() if self._unified else None
        if free is not None:
            free += self._residency.host.used_bytes
        now = share(used, budget, free, self._bounds.reserve_bytes)
        self.level = level(now, self.level, self._bounds)
        return self.level

    async def relieve(self) -> int:
        """Free host memory that the machine lacks; then what the level asks; the bytes freed.

        At `high` the device is freed of what is long idle, at `critical` of all that is, which is then not kept.
        """
        free = self._free()
        freed = 0 if free is None else await self._residency.host.shrink(self._bounds.reserve_bytes - free)
        match self.measure():
            case "high":
                freed += await self._residency.drop_idle(self._bounds.idle_s, keep=True)
            case "critical":
                freed += await self._residency.drop_idle(0.0)
        return freed
