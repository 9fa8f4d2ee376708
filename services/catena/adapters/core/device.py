"""The adapters on the device: a budget of bytes and a count, and who leaves when it is full.

What is in use or pinned is never evicted; who finds no room waits until something is released. What is evicted goes to
host memory where that has room for it.
"""

import asyncio
from collections.abc import Callable
from typing import Literal

from catena.adapters.core.errors import NoRoom
from catena.adapters.core.eviction import fits, victim
from catena.adapters.core.host import Host
from catena.adapters.core.ports import Engine
from catena.adapters.core.records import Change
from catena.adapters.core.resident import Budget, Pulse, Resident, Tally, TierState
from catena.adapters.core.work import Weights
from catena.kit.errors import Unavailable

RETRY_AFTER_S = 1.0


class Device:
    """What is on the device, coming or going."""

    def __init__(
        self,
        engine: Engine,
        host: Host,
        *,
        budget: Budget,
        worth: Callable[[Resident], float],
        tell: Callable[[Change], None],
    ) -> None:
        """`worth` says what a byte of a resident saves; `tell` is called for everything that comes or goes."""
        self.budget = budget
        self.tally = Tally()
        self.held: dict[Weights, Resident] = {}
        self.pulse = Pulse()
        self._engine = engine
        self._host = host
        self._worth = worth
        self._tell = tell
        self._turn = asyncio.Lock()

    @property
    def used_bytes(self) -> int:
        """Bytes granted to adapters that are here, coming or going."""
        return sum(resident.bytes for resident in self.held.values())

    def state(self) -> TierState:
        """What it holds, and how it does."""
        pinned = [resident.bytes for resident in self.held.values() if resident.pinned]
        return TierState(
            tier="device",
            adapters=len(self.held),
            bytes=self.used_bytes,
            tally=self.tally,
            budget_bytes=self.budget.bytes,
            pinned=len(pinned),
            pinned_bytes=sum(pinned),
        )

    def holds(self, resident: Resident) -> bool:
        """Whether this very one is here still."""
        return self.held.get(resident.weights) is resident

    def arrived(self, resident: Resident) -> None:
        """A load has ended well."""
        resident.tier = "device"
        self._say(resident, "device")

    async def grant(self, resident: Resident, need: int) -> int:
        """Make room for `need` bytes and count them as its own from now on. Raises NoRoom."""
        async with self._turn:
            await self._make_room(resident, need)
            resident.bytes = need
        return need

    async def evict(self, newcomer: Resident, need: int) -> bool:
        """Have what is idle leave until `need` bytes fit; False when nothing more may go and they still do not."""
        while (leaving := victim(self._others(newcomer), need, self.budget, self._worth)) is not None:
            self.tally.evictions += 1
            await self.leave(leaving, keep=True)
        return fits(self._others(newcomer), need, self.budget)

    async def leave(self, resident: Resident, *, keep: bool = False) -> int:
        """Have the engine free it, once for all who ask and to the end whoever stops waiting; the bytes freed.

        With `keep` it goes to host memory where that has room.
        """
        if resident.leaving is None:
            resident.leaving = asyncio.create_task(self._free(resident, keep), name=f"unload {resident.model}")
            resident.leaving.add_done_callback(lambda task: task.cancelled() or task.exception())
        return await asyncio.shield(resident.leaving)

    def drop(self, resident: Resident, *, told: bool = False) -> None:
        """It is not here any more, which is told unless it was."""
        if self.holds(resident):
            del self.held[resident.weights]
            resident.tier = "disk"
            if not told:
                self._say(resident, "")
            self.pulse()

    async def _make_room(self, newcomer: Resident, need: int) -> None:
        if need > self.budget.bytes:
            raise NoRoom(
                f"{newcomer.model} takes {need} bytes, the budget is {self.budget.bytes}; raise adapters.budget_bytes"
            )
        while not fits(self._others(newcomer), need, self.budget):
            if not newcomer.users:
                raise NoRoom(f"nobody waits for {newcomer.model}, so nothing makes room for it")
            if await self.evict(newcomer, need):
                return
            if all(other.idle for other in self._others(newcomer)):
                raise NoRoom(
                    f"no room for {newcomer.model}: all that is resident is pinned; "
                    f"unpin one or raise adapters.budget_bytes",
                    retry_after_s=RETRY_AFTER_S,
                )
            await self.pulse.wait()

    def _others(self, newcomer: Resident) -> list[Resident]:
        """What takes room: all but the newcomer, and those that wait for room behind it."""
        return [other for other in self.held.values() if other is not newcomer and (other.bytes or not other.loading)]

    async def _free(self, resident: Resident, keep: bool) -> int:
        freed, stowed = resident.bytes, False
        try:
            place = await self._host.admit(resident) if keep else None
            if place is not None:
                stowed = await self._stow(resident, place)
            elif self.holds(resident):
                freed = await self._engine.unload(resident.weights)
        except Unavailable:
            # An engine that was lost holds nothing any more.
            pass
        except BaseException:
            resident.leaving = None
            self.pulse()
            raise
        self.drop(resident, told=stowed)
        if resident.dismissed:
            await self._host.drop(resident.weights)
        return freed

    async def _stow(self, resident: Resident, place: Resident) -> bool:
        """Move it to its place in host memory; False when it was lost on the way, or not kept."""
        kept = 0
        try:
            if self.holds(resident):
                kept = await self._engine.stow(resident.weights)
        finally:
            stowed = kept > 0 and self.holds(resident)
            if stowed:
                self._host.settle(place, kept)
            else:
                self._host.leave(place)
        return stowed

    def _say(self, resident: Resident, tier: Literal["device", ""]) -> None:
        self._tell(Change(tenant=resident.tenant, model=resident.model, tier=tier, bytes=resident.bytes if tier else 0))
