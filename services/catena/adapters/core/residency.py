"""Which adapters are resident: a budget of bytes and a count, least recently used first out.

A load is shared by all who wait for it, outlives any of them, and is undone whole when it fails. What is in use or
pinned is never evicted; who finds no room waits until something is released.
"""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Literal

from catena.adapters.core.errors import NoRoom
from catena.adapters.core.ports import Engine
from catena.adapters.core.records import Change
from catena.adapters.core.work import AdapterSource, Weights
from catena.kit.clock import Clock
from catena.kit.errors import Unavailable

RETRY_AFTER_S = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """Something to be made resident. `bytes` is what it will take; `source` passes the gate and describes it."""

    weights: Weights
    tenant: str
    model: str
    bytes: int
    source: Callable[[], Awaitable[AdapterSource]]
    pinned: bool = False


@dataclass(slots=True, kw_only=True, eq=False)
class Resident:
    """An adapter on the device, or on its way there while `loading`. `users` are requests that hold it now.

    A `dismissed` one leaves with its last user.
    """

    weights: Weights
    tenant: str
    model: str
    bytes: int
    last_used_s: float
    pinned: bool = False
    users: int = 0
    dismissed: bool = False
    loading: asyncio.Task[None] | None = None


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
    load_seconds: list[float] = field(default_factory=list)


def victim(residents: Collection[Resident], need: int, budget: Budget) -> Resident | None:
    """What has to go before `need` more bytes fit; None when they fit or nothing may go."""
    if fits(residents, need, budget):
        return None
    idle = [resident for resident in residents if not resident.users and not resident.pinned and not resident.loading]
    return min(idle, key=lambda resident: resident.last_used_s, default=None)


def fits(residents: Iterable[Resident], need: int, budget: Budget) -> bool:
    """Whether one more adapter of `need` bytes is within the budget."""
    held = [resident.bytes for resident in residents]
    return len(held) < budget.count and sum(held) + need <= budget.bytes


class Residency:
    """The adapters that the engine holds."""

    def __init__(self, engine: Engine, *, clock: Clock, budget: Budget, tell: Callable[[Change], None]) -> None:
        """`tell` is called for everything that comes or goes, and must not block."""
        self.budget = budget
        self.tally = Tally()
        self._engine = engine
        self._clock = clock
        self._tell = tell
        self._held: dict[Weights, Resident] = {}
        self._turn = asyncio.Lock()
        self._released = asyncio.Condition()

    @asynccontextmanager
    async def hold(self, wanted: Wanted) -> AsyncIterator[Resident]:
        """Keep something resident while the block runs, loading it first if it has to be."""
        resident = self._held.get(wanted.weights)
        if resident is None:
            self.tally.misses += 1
            resident = self._start(wanted)
        elif resident.loading is None:
            self.tally.hits += 1
        resident.users += 1
        resident.last_used_s = self._clock.now()
        try:
            if resident.loading is not None:
                await asyncio.shield(resident.loading)
            yield resident
        finally:
            resident.users -= 1
            if resident.dismissed and not resident.users and self._held.get(wanted.weights) is resident:
                await asyncio.shield(self.unload(wanted.weights))
            await self._notify()

    def has(self, weights: Weights) -> bool:
        """Whether something is resident now."""
        return weights in self._held and self._held[weights].loading is None

    def residents(self) -> list[Resident]:
        """What is resident or being loaded, the most recently used first."""
        return sorted(self._held.values(), key=lambda resident: -resident.last_used_s)

    def pin(self, weights: Weights, pinned: bool) -> None:
        """Keep a resident adapter from eviction, or let it go; nothing when it is not resident."""
        if weights in self._held:
            self._held[weights].pinned = pinned

    async def unload(self, weights: Weights) -> int:
        """Wait until nobody uses it, then free it; the bytes freed, 0 when it was not resident."""
        async with self._released:
            await self._released.wait_for(lambda: self._idle(weights))
            resident = self._held.pop(weights, None)
        return await self._free(resident) if resident is not None else 0

    async def dismiss(self, weights: Weights) -> None:
        """Free it now, or as soon as its last user leaves, pinned or not."""
        resident = self._held.get(weights)
        if resident is None:
            return
        resident.dismissed, resident.pinned = True, False
        if not resident.users and not resident.loading:
            await self.unload(weights)

    def lost(self) -> None:
        """The engine was lost and with it all that it held; loads under way fail by themselves."""
        for weights, resident in list(self._held.items()):
            if resident.loading is None:
                del self._held[weights]
                self._say(resident, "")

    async def close(self) -> None:
        """Stop loading."""
        loads = [resident.loading for resident in self._held.values() if resident.loading is not None]
        for load in loads:
            load.cancel()
        await asyncio.gather(*loads, return_exceptions=True)

    def _start(self, wanted: Wanted) -> Resident:
        resident = Resident(
            weights=wanted.weights,
            tenant=wanted.tenant,
            model=wanted.model,
            bytes=0,
            last_used_s=self._clock.now(),
            pinned=wanted.pinned,
        )
        self._held[wanted.weights] = resident
        resident.loading = asyncio.create_task(self._load(wanted, resident), name=f"load {wanted.model}")
        # Those who wait see the failure; when all of them have left, nobody has to.
        resident.loading.add_done_callback(lambda task: task.cancelled() or task.exception())
        return resident

    async def _load(self, wanted: Wanted, resident: Resident) -> None:
        began_s = self._clock.monotonic()
        try:
            source = await wanted.source()
            async with self._turn:
                await self._make_room(wanted, resident)
                resident.bytes = wanted.bytes
            resident.bytes = await self._engine.load_adapter(source)
        except BaseException:
            self._held.pop(wanted.weights, None)
            raise
        finally:
            resident.loading = None
            await self._notify()
        self.tally.load_seconds.append(self._clock.monotonic() - began_s)
        self._say(resident, "device")

    async def _make_room(self, wanted: Wanted, newcomer: Resident) -> None:
        if wanted.bytes > self.budget.bytes:
            raise NoRoom(
                f"{wanted.model} takes {wanted.bytes} bytes, the budget is {self.budget.bytes}; "
                f"raise adapters.budget_bytes"
            )
        while not fits(self._others(newcomer), wanted.bytes, self.budget):
            leaving = victim(self._others(newcomer), wanted.bytes, self.budget)
            if leaving is not None:
                del self._held[leaving.weights]
                self.tally.evictions += 1
                await self._free(leaving)
                continue
            if not any(other.users or other.loading for other in self._others(newcomer)):
                raise NoRoom(
                    f"no room for {wanted.model}: all that is resident is pinned; "
                    f"unpin one or raise adapters.budget_bytes",
                    retry_after_s=RETRY_AFTER_S,
                )
            async with self._released:
                await self._released.wait()
            if not newcomer.users:
                raise NoRoom(f"nobody waits for {wanted.model} any more")

    def _others(self, newcomer: Resident) -> list[Resident]:
        """What takes room: all but the newcomer, and those that wait for room behind it."""
        return [other for other in self._held.values() if other is not newcomer and (other.bytes or not other.loading)]

    def _idle(self, weights: Weights) -> bool:
        resident = self._held.get(weights)
        return resident is None or not (resident.users or resident.loading)

    async def _free(self, resident: Resident) -> int:
        try:
            freed = await self._engine.unload(resident.weights)
        except Unavailable:
            # An engine that was lost holds nothing any more.
            freed = resident.bytes
        self._say(resident, "")
        return freed

    async def _notify(self) -> None:
        async with self._released:
            self._released.notify_all()

    def _say(self, resident: Resident, tier: Literal["device", ""]) -> None:
        self._tell(Change(tenant=resident.tenant, model=resident.model, tier=tier, bytes=resident.bytes if tier else 0))
