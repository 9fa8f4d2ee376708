"""Which adapters are resident: a budget of bytes and a count, and who leaves when it is full.

A load is shared by all who wait for it, outlives any of them, and is undone whole when it fails. What is in use or
pinned is never evicted; who finds no room waits until something is released. Bytes are counted from the moment they
are granted to the moment the engine has said that they are free.
"""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Literal

from catena.adapters.core.errors import NoRoom
from catena.adapters.core.eviction import History, Policy, fits, victim
from catena.adapters.core.ports import Engine
from catena.adapters.core.records import Change
from catena.adapters.core.resident import Budget, Resident, Tally, Wanted
from catena.adapters.core.work import AdapterSource, Weights
from catena.kit.clock import Clock
from catena.kit.errors import Unavailable

RETRY_AFTER_S = 1.0


class Residency:
    """The adapters that the engine holds."""

    def __init__(
        self,
        engine: Engine,
        *,
        clock: Clock,
        budget: Budget,
        tell: Callable[[Change], None],
        policy: Policy = "cost",
        history: History | None = None,
    ) -> None:
        """`tell` is called for everything that comes or goes, and must not block."""
        self.budget = budget
        self.tally = Tally()
        self.history = history or History()
        self._engine = engine
        self._clock = clock
        self._tell = tell
        self._policy = policy
        self._held: dict[Weights, Resident] = {}
        self._losses = 0
        self._turn = asyncio.Lock()
        self._waiting: list[asyncio.Future[None]] = []

    @asynccontextmanager
    async def hold(self, wanted: Wanted, *, beside: bool = False) -> AsyncIterator[Resident]:
        """Keep something resident while the block runs, loading it first if it has to be.

        What somebody waits to unload is joined no more, so that it drains; who already holds another adapter says
        `beside` and joins all the same, for two that wait for each other would wait for ever.
        """
        resident = self._held.get(wanted.weights)
        while resident is not None and (resident.leaving or (resident.draining and not beside)):
            await self._changed()
            resident = self._held.get(wanted.weights)
        if resident is None:
            self.tally.misses += 1
            resident = self._start(wanted)
        elif resident.loading is None:
            self.tally.hits += 1
        resident.users += 1
        resident.last_used_s = self._clock.now()
        self.history.used(resident.weights, self._clock.monotonic())
        try:
            await self._arrival(resident)
            yield resident
        finally:
            resident.users -= 1
            self._pulse()
            await self._dismiss_idle(resident)

    async def preload(self, wanted: Wanted) -> bool:
        """Load ahead of need what fits without making anything leave; whether it is resident now."""
        resident = self._held.get(wanted.weights)
        if resident is None:
            if not self.fits(wanted):
                return False
            self.tally.preloads += 1
            resident = self._start(wanted)
        try:
            await self._arrival(resident)
        except NoRoom:
            return False
        return resident.leaving is None

    def fits(self, wanted: Wanted) -> bool:
        """Whether it could be loaded now without making anything leave."""
        return fits(self._held.values(), self.history.bytes(wanted.weights, wanted.bytes), self.budget)

    def has(self, weights: Weights) -> bool:
        """Whether something is resident now."""
        resident = self._held.get(weights)
        return resident is not None and not resident.loading and not resident.leaving

    @property
    def used_bytes(self) -> int:
        """Bytes granted to adapters that are resident, coming or going."""
        return sum(resident.bytes for resident in self._held.values())

    def residents(self) -> list[Resident]:
        """What is resident, coming or going, the most recently used first."""
        return sorted(self._held.values(), key=lambda resident: -resident.last_used_s)

    def pin(self, weights: Weights, pinned: bool) -> None:
        """Keep a resident adapter from eviction, or let it go; nothing when it is not resident."""
        if weights in self._held:
            self._held[weights].pinned = pinned
            self._pulse()

    async def unload(self, weights: Weights) -> int:
        """Admit nobody new, wait for its last user, free it; the bytes freed, 0 when it was not resident."""
        resident = self._held.get(weights)
        if resident is None:
            return 0
        resident.draining += 1
        try:
            while self._holds(resident) and (resident.users or resident.loading):
                await self._changed()
            return await self._leave(resident) if self._holds(resident) else 0
        finally:
            resident.draining -= 1
            self._pulse()

    async def dismiss(self, weights: Weights) -> None:
        """Free it now, or as soon as its last user leaves, pinned or not."""
        resident = self._held.get(weights)
        if resident is not None:
            resident.dismissed, resident.pinned = True, False
            await self._dismiss_idle(resident)

    async def drop_idle(self, idle_s: float) -> int:
        """Free what is neither pinned nor in use and was not used for `idle_s`; the bytes freed."""
        before_s = self._clock.now() - idle_s
        freed = 0
        for resident in self.residents():
            if resident.evictable and resident.last_used_s <= before_s and self._holds(resident):
                self.tally.evictions += 1
                freed += await self._leave(resident)
        return freed

    def lost(self) -> None:
        """The engine was lost and with it all that it held; loads under way fail by themselves."""
        self._losses += 1
        for resident in list(self._held.values()):
            if resident.loading is None:
                self._drop(resident)

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

    async def _arrival(self, resident: Resident) -> None:
        load = resident.loading
        if load is None:
            return
        try:
            await asyncio.shield(load)
        except asyncio.CancelledError:
            if not load.cancelled():
                raise
            raise Unavailable(f"the load of {resident.model} was stopped; ask again") from None

    async def _load(self, wanted: Wanted, resident: Resident) -> None:
        began_s = self._clock.monotonic()
        try:
            source = await wanted.source()
            gate_s = self._clock.monotonic() - began_s
            while not await self._fill(resident, source, wanted.bytes, gate_s):
                # It came to more than announced, which is known now; wait for that much room.
                await self._engine.unload(resident.weights)
                resident.bytes = 0
                self._pulse()
        except BaseException:
            if self._holds(resident):
                del self._held[wanted.weights]
            raise
        finally:
            resident.loading = None
            self._pulse()
        self._say(resident, "device")
        await self._dismiss_idle(resident)

    async def _fill(self, resident: Resident, source: AdapterSource, announced: int, gate_s: float) -> bool:
        """Load into room made for it; False when it came to more, and nobody idle could leave to make up for that."""
        async with self._turn:
            granted = self.history.bytes(resident.weights, announced)
            await self._make_room(resident, granted)
            resident.bytes = granted
        began_s, losses = self._clock.monotonic(), self._losses
        resident.bytes = exact = await self._engine.load_adapter(source)
        if losses != self._losses:
            raise Unavailable(f"the engine was lost while it loaded {resident.model}; ask again")
        now_s = self._clock.monotonic()
        seconds = gate_s + now_s - began_s
        self.history.loaded(resident.weights, seconds=seconds, bytes=exact, now_s=now_s)
        self.tally.load_seconds.append(seconds)
        # Not in turn: whose turn it is may be waiting for this very load.
        return exact <= granted or await self._evict(resident, exact)

    async def _make_room(self, newcomer: Resident, need: int) -> None:
        if need > self.budget.bytes:
            raise NoRoom(
                f"{newcomer.model} takes {need} bytes, the budget is {self.budget.bytes}; raise adapters.budget_bytes"
            )
        while not fits(self._others(newcomer), need, self.budget):
            if not newcomer.users:
                raise NoRoom(f"nobody waits for {newcomer.model}, so nothing makes room for it")
            if await self._evict(newcomer, need):
                return
            if all(other.idle for other in self._others(newcomer)):
                raise NoRoom(
                    f"no room for {newcomer.model}: all that is resident is pinned; "
                    f"unpin one or raise adapters.budget_bytes",
                    retry_after_s=RETRY_AFTER_S,
                )
            await self._changed()

    async def _evict(self, newcomer: Resident, need: int) -> bool:
        """Have what is idle leave until `need` bytes fit; False when nothing more may go and they still do not."""
        while (leaving := victim(self._others(newcomer), need, self.budget, self._worth)) is not None:
            self.tally.evictions += 1
            await self._leave(leaving)
        return fits(self._others(newcomer), need, self.budget)

    def _worth(self, resident: Resident) -> float:
        return self.history.worth(resident, self._clock.monotonic()) if self._policy == "cost" else 0.0

    def _others(self, newcomer: Resident) -> list[Resident]:
        """What takes room: all but the newcomer, and those that wait for room behind it."""
        return [other for other in self._held.values() if other is not newcomer and (other.bytes or not other.loading)]

    async def _dismiss_idle(self, resident: Resident) -> None:
        if resident.dismissed and resident.idle and self._holds(resident):
            await self._leave(resident)

    async def _leave(self, resident: Resident) -> int:
        """Have the engine free it, once for all who ask and to the end whoever stops waiting; the bytes freed."""
        if resident.leaving is None:
            resident.leaving = asyncio.create_task(self._free(resident), name=f"unload {resident.model}")
            resident.leaving.add_done_callback(lambda task: task.cancelled() or task.exception())
        return await asyncio.shield(resident.leaving)

    async def _free(self, resident: Resident) -> int:
        try:
            freed = await self._engine.unload(resident.weights)
        except Unavailable:
            # An engine that was lost holds nothing any more.
            freed = resident.bytes
        except BaseException:
            resident.leaving = None
            self._pulse()
            raise
        self._drop(resident)
        return freed

    def _drop(self, resident: Resident) -> None:
        if self._holds(resident):
            del self._held[resident.weights]
            self._say(resident, "")
            self._pulse()

    def _holds(self, resident: Resident) -> bool:
        return self._held.get(resident.weights) is resident

    async def _changed(self) -> None:
        """Wait until something was released, came, left or was unpinned."""
        change = asyncio.get_running_loop().create_future()
        self._waiting.append(change)
        await change

    def _pulse(self) -> None:
        waiting, self._waiting = self._waiting, []
        for change in waiting:
            if not change.done():
                change.set_result(None)

    def _say(self, resident: Resident, tier: Literal["device", ""]) -> None:
        self._tell(Change(tenant=resident.tenant, model=resident.model, tier=tier, bytes=resident.bytes if tier else 0))
