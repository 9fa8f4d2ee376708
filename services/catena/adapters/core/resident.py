"""What residency keeps account of: what is wanted, what is held, what bounds it, how it does."""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

from catena.adapters.core.work import AdapterSource, Weights


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """Something to be made resident. `bytes` is what it should take; `source` passes the gate and describes it."""

    weights: Weights
    tenant: str
    model: str
    bytes: int
    source: Callable[[], Awaitable[AdapterSource]]
    pinned: bool = False


@dataclass(slots=True, kw_only=True, eq=False)
class Resident:
    """An adapter on the device, on its way there while `loading`, or on its way off while `leaving`.

    `users` are requests that hold it now. `draining` counts those who wait to unload it, while it admits nobody new.
    A `dismissed` one leaves with its last user.
    """

    weights: Weights
    tenant: str
    model: str
    bytes: int
    last_used_s: float
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
    """How the cache does."""

    hits: int = 0
    misses: int = 0
    evictions: int = 0
    preloads: int = 0
    load_seconds: list[float] = field(default_factory=list)
