"""Which adapters are resident: loads from disk and from host memory, and who holds what.

A load is shared by all who wait for it, outlives any of them, and is undone whole when it fails. Bytes are counted, in
each tier, from the moment they are granted to the moment the engine has said that they are free.
"""

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

from catena.adapters.core.device import Device
from catena.adapters.core.errors import NoRoom
from catena.adapters.core.eviction import History, Policy, fits
from catena.adapters.core.host import Host
from catena.adapters.core.ports import Engine
from catena.adapters.core.records import Change, Stored
from catena.adapters.core.resident import Budget, Load, Resident, Tally, TierState, Wanted
from catena.adapters.core.work import AdapterSource, Weights
from catena.kit.clock import Clock
from catena.kit.errors import CatenaError, Denied, Unavailable

LOADS_KEPT = 4096


class Residency:
    """The adapters that the engine holds. `loads` are those that ended well, for who counts them to take."""

    def __init__(
        self,
        engine: Engine,
        *,
        clock: Clock,
        budget: Budget,
        tell: Callable[[Change], None],
        policy: Policy = "cost",
        history: History | None = None,
        host_bytes: int = 0,
    ) -> None:
        """`tell` is called for everything that comes or goes, and must not block. `host_bytes` 0: no host memory."""
        self.preloads = 0
        self.loads: deque[Load] = deque(maxlen=LOADS_KEPT)
        self.history = history or History()
        self.host = Host(engine, budget_bytes=host_bytes, worth=self._worth, tell=tell)
        self.device = Device(engine, self.host, budget=budget, worth=self._worth, tell=tell)
        self._disk = Tally()
        self._engine = engine
        self._clock = clock
        self._policy = policy
        self._losses = 0

    @asynccontextmanager
    async def hold(self, wanted: Wanted, *, beside: bool = False) -> AsyncIterator[Resident]:
        """Keep something resident while the block runs, loading it first if it has to be.

        What somebody waits to unload is joined no more, so that it drains; who already holds another adapter says
        `beside` and joins all the same, for two that wait for each other would wait for ever.
        """
        held, tally = self.device.held, self.device.tally
        resident = held.get(wanted.weights)
        while resident is not None and (resident.leaving or (resident.draining and not beside)):
            await self.device.pulse.wait()
            resident = held.get(wanted.weights)
        if resident is None:
            tally.misses += 1
            resident = self._start(wanted)
        elif resident.loading is None:
            tally.hits += 1
        resident.users += 1
        resident.last_used_s = self._clock.now()
        self.history.used(resident.weights, self._clock.monotonic())
        try:
            await self._arrival(resident)
            yield resident
        finally:
            resident.users -= 1
            self.device.pulse()
            await self._dismiss_idle(resident)

    async def preload(self, wanted: Wanted) -> bool:
        """Load ahead of need what fits without making anything leave; whether it is resident now."""
        resident = self.device.held.get(wanted.weights)
        if resident is None:
            if not self.fits(wanted):
                return False
            self.preloads += 1
            resident = self._start(wanted)
        try:
            await self._arrival(resident)
        except NoRoom:
            return False
        return resident.leaving is None

    def fits(self, wanted: Wanted) -> bool:
        """Whether it could be loaded now without making anything leave."""
        need = self.history.bytes(wanted.weights, wanted.bytes)
        return fits(self.device.held.values(), need, self.device.budget)

    def has(self, weights: Weights) -> bool:
        """Whether something is on the device now."""
        resident = self.device.held.get(weights)
        return resident is not None and not resident.loading and not resident.leaving

    def residents(self) -> list[Resident]:
        """What is on the device, coming or going, the most recently used first."""
        return sorted(self.device.held.values(), key=lambda resident: -resident.last_used_s)

    def tiers(self, stored: Stored) -> list[TierState]:
        """Every tier as it is now; `stored` is what is on disk."""
        disk = TierState(tier="disk", adapters=stored.count, bytes=stored.bytes, tally=self._disk)
        return [self.device.state(), self.host.state(), disk]

    def pin(self, weights: Weights, pinned: bool) -> None:
        """Keep what is on the device from eviction, or let it go; nothing when it is not there."""
        resident = self.device.held.get(weights)
        if resident is not None:
            resident.pinned = pinned
            self.device.pulse()

    def pins(self, base: str) -> bool:
        """Whether a resident of this base is pinned."""
        return any(resident.pinned for resident in self.residents() if resident.weights.base == base)

    async def clear(self, base: str) -> None:
        """Drain and free all of a base's, in every tier."""
        for resident in [*self.residents(), *self.host.residents()]:
            if resident.weights.base == base:
                await self.unload(resident.weights)

    async def unload(self, weights: Weights) -> int:
        """Admit nobody new, wait for its last user, free it in every tier; the bytes freed, 0 when it was in none."""
        device, resident = self.device, self.device.held.get(weights)
        if resident is None:
            return await self.host.drop(weights)
        resident.draining += 1
        try:
            while device.holds(resident) and (resident.users or resident.loading):
                await device.pulse.wait()
            freed = await device.leave(resident) if device.holds(resident) else 0
            return await self.host.drop(weights) or freed
        finally:
            resident.draining -= 1
            device.pulse()

    async def dismiss(self, weights: Weights) -> None:
        """Free it in every tier now, or as soon as its last user leaves, pinned or not."""
        resident = self.device.held.get(weights)
        if resident is None:
            await self.host.drop(weights)
        else:
            resident.dismissed, resident.pinned = True, False
            await self._dismiss_idle(resident)

    async def drop_idle(self, idle_s: float, *, keep: bool = False) -> int:
        """Free the device of what is neither pinned nor in use and was not used for `idle_s`; the bytes freed.

        With `keep` it goes to host memory where that has room.
        """
        before_s = self._clock.now() - idle_s
        freed = 0
        for resident in self.residents():
            if resident.evictable and resident.last_used_s <= before_s and self.device.holds(resident):
                self.device.tally.evictions += 1
                freed += await self.device.leave(resident, keep=keep)
        return freed

    def lost(self) -> None:
        """The engine was lost and with it all that it held; loads under way fail by themselves."""
        self._losses += 1
        for resident in list(self.device.held.values()):
            if resident.loading is None:
                self.device.drop(resident)
        self.host.lost()

    async def close(self) -> None:
        """Stop loading."""
        loads = [resident.loading for resident in self.device.held.values() if resident.loading is not None]
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
            tier="disk",
            pinned=wanted.pinned,
        )
        self.device.held[wanted.weights] = resident
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
        try:
            if not await self._restore(wanted, resident):
                await self._read(wanted, resident)
        except BaseException:
            if self.device.holds(resident):
                del self.device.held[wanted.weights]
            raise
        finally:
            resident.loading = None
            self.device.pulse()
        self.device.arrived(resident)
        await self._dismiss_idle(resident)

    async def _restore(self, wanted: Wanted, resident: Resident) -> bool:
        """Bring it back from host memory; False when it is not there, or nobody vouches for it any more."""
        losses, kept = self._losses, await self.host.claim(wanted.weights)
        if kept is None:
            return False
        resident.tier = "host"
        load, back = Load("host", self._clock), False
        try:
            with load.phase("gate"):
                vouched = await wanted.vouched()
            if vouched:
                with load.phase("room"):
                    await self.device.grant(resident, kept.bytes)
                back = await self._bring_back(resident, kept, losses, load)
        finally:
            self.host.release(kept, hit=back)
        if not back:
            resident.tier, resident.bytes = "disk", 0
            self.device.pulse()
            await self.host.drop(wanted.weights)
        return back

    async def _bring_back(self, resident: Resident, kept: Resident, losses: int, load: Load) -> bool:
        self._check_losses(resident, losses)
        try:
            loaded = await self._engine.restore(resident.weights)
        except CatenaError:
            self._check_losses(resident, losses)
            # The engine could not: what it keeps is no use, and the disk has it still.
            return False
        self._check_losses(resident, losses)
        resident.bytes = loaded.bytes
        self.host.leave(kept)
        load.told(loaded)
        self.loads.append(load)
        return True

    async def _read(self, wanted: Wanted, resident: Resident) -> None:
        """Load it from disk, through the gate."""
        load = Load("disk", self._clock)
        try:
            with load.phase("gate"):
                source = await wanted.source()
        except CatenaError:
            self._disk.misses += 1
            raise
        self._disk.hits += 1
        try:
            while not await self._fill(resident, source, wanted.bytes, load):
                # It came to more than announced, which is known now; wait for that much room.
                await self._engine.unload(resident.weights)
                resident.bytes = 0
                self.device.pulse()
        except Denied:
            # Not the file that the gate saw, who looks again, says what is wrong with it, and remembers.
            wanted.doubt()
            await wanted.source()
            raise
        self.loads.append(load)

    async def _fill(self, resident: Resident, source: AdapterSource, announced: int, load: Load) -> bool:
        """Load into room made for it; False when it came to more, and nobody idle could leave to make up for that."""
        with load.phase("room"):
            granted = await self.device.grant(resident, self.history.bytes(resident.weights, announced))
        began_s, losses = self._clock.monotonic(), self._losses
        loaded = await self._engine.load_adapter(source)
        resident.bytes = loaded.bytes
        self._check_losses(resident, losses)
        load.told(loaded)
        now_s = self._clock.monotonic()
        # What it waited behind other loads is not its cost; an engine that tells no phases cannot tell them apart. Nor
        # is the proof, which is not made again.
        seconds = load.seconds["gate"] + (loaded.read_s + loaded.copy_s or now_s - began_s)
        self.history.loaded(resident.weights, seconds=seconds, bytes=loaded.bytes, now_s=now_s)
        # Not in turn: whose turn it is may be waiting for this very load.
        fitting = loaded.bytes <= granted or await self.device.evict(resident, loaded.bytes)
        self._check_losses(resident, losses)
        return fitting

    def _check_losses(self, resident: Resident, losses: int) -> None:
        if losses != self._losses:
            raise Unavailable(f"the engine was lost while it loaded {resident.model}; ask again")

    def _worth(self, resident: Resident) -> float:
        return self.history.worth(resident, self._clock.monotonic()) if self._policy == "cost" else 0.0

    async def _dismiss_idle(self, resident: Resident) -> None:
        if resident.dismissed and resident.idle and self.device.holds(resident):
            await self.device.leave(resident)
