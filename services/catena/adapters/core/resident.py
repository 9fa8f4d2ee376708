"""What residency keeps account of: what is wanted, what is held, what bounds it, how it does."""

import asyncio
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Literal

from catena.adapters.core.work import AdapterSource, Loaded, Weights
from catena.kit.clock import Clock

Tier = Literal["device", "host", "disk"]
Phase = Literal["gate", "room", "read", "copy", "probe"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """Something to be made resident. `bytes` is what it should take.

    `source` passes the gate and describes it; `vouched` says whether what the gate found then still holds, without
    reading a byte of it; `doubt` tells the gate that the engine refused what it described.
    """

    weights: Weights
    tenant: str
    model: str
    bytes: int
    source: Callable[[], Awaitable[AdapterSource]]
    vouched: Callable[[], Awaitable[bool]]
    doubt: Callable[[], None]
    pinned: bool = False


@dataclass(slots=True, kw_only=True, eq=False)
class Resident:
    """An adapter in memory, on its way to the device while `loading`, or on its way off while `leaving`.

    `tier` is where it is, or comes from while it is loading. `users` hold it where it is: on the device those are
    requests. `draining` counts those who wait to unload it, while it admits nobody new. A `dismissed` one leaves with
    its last user.
    """

    weights: Weights
    tenant: str
    model: str
    bytes: int
    last_used_s: float
    tier: Tier = "device"
    pinned: bool = False
    users: int = 0
    draining: int = 0
    dismissed: bool = False
    loading: asyncio.Task[None] | None = None
    leaving: asyncio.Task[int] | None = None

    @property
    def idle(self) -> bool:
        """Whether nobody holds it and it neither comes nor goes."""
        return not (self.users or self.loading or self.leaving)

    @property
    def evictable(self) -> bool:
        """Whether it may be made to leave for another."""
        return self.idle and not self.pinned


@dataclass(frozen=True, slots=True, kw_only=True)
class Budget:
    """Most bytes and most adapters that may be resident."""

    bytes: int
    count: int


@dataclass(slots=True)
class Tally:
    """How a tier does: what was looked for and found in it, what was not, and what had to leave it for others."""

    hits: int = 0
    misses: int = 0
    evictions: int = 0


@dataclass(slots=True)
class Load:
    """One load from a tier, and the seconds of its phases; `room` is the wait for others to leave."""

    tier: Tier
    clock: Clock
    seconds: dict[Phase, float] = field(default_factory=dict)

    @contextmanager
    def phase(self, name: Phase) -> Iterator[None]:
        """Count what the block takes."""
        began_s = self.clock.monotonic()
        try:
            yield
        finally:
            self._add(name, self.clock.monotonic() - began_s)

    def told(self, loaded: Loaded) -> None:
        """Count what the engine says of its own part."""
        phases: dict[Phase, float] = {"read": loaded.read_s, "copy": loaded.copy_s, "probe": loaded.probe_s}
        for name, seconds in phases.items():
            if seconds:
                self._add(name, seconds)

    def _add(self, name: Phase, seconds: float) -> None:
        self.seconds[name] = self.seconds.get(name, 0.0) + seconds


@dataclass(frozen=True, slots=True, kw_only=True)
class TierState:
    """A tier as it is now. `budget_bytes` 0: none; disk holds every registered adapter and lets none go."""

    tier: Tier
    adapters: int
    bytes: int
    tally: Tally
    budget_bytes: int = 0
    pinned: int = 0
    pinned_bytes: int = 0


class Pulse:
    """Wakes all who wait for a change."""

    def __init__(self) -> None:
        """Nobody waits yet."""
        self._waiting: list[asyncio.Future[None]] = []

    def __call__(self) -> None:
        """Something changed."""
        waiting, self._waiting = self._waiting, []
        for change in waiting:
            if not change.done():
                change.set_result(None)

    async def wait(self) -> None:
        """Wait for the next change."""
        change = asyncio.get_running_loop().create_future()
        self._waiting.append(change)
        await change
