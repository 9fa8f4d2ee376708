"""Adapters in host memory: they left the device and may come back without gate, disk or proof.

An adapter is on the device or here, never in both, so that every byte is counted once. What is worth least goes first,
as on the device, and what would come must be worth more than what had to go for it.
"""

import asyncio
import sys
from collections.abc import Callable
from dataclasses import replace
from typing import Literal

from catena.adapters.core.eviction import fits, victim
from catena.adapters.core.ports import Engine
from catena.adapters.core.records import Change
from catena.adapters.core.resident import Budget, Resident, Tally, TierState
from catena.adapters.core.work import Weights
from catena.kit.errors import Unavailable


class Host:
    """The tier below the device. What is coming, or claimed to go back, has a user and stays."""

    def __init__(
        self, engine: Engine, *, budget_bytes: int, worth: Callable[[Resident], float], tell: Callable[[Change], None]
    ) -> None:
        """`budget_bytes` 0: keep nothing. `worth` and `tell` as the device's."""
        self.budget = Budget(bytes=budget_bytes, count=sys.maxsize)
        self.tally = Tally()
        self._engine = engine
        self._worth = worth
        self._tell = tell
        self._kept: dict[Weights, Resident] = {}

    @property
    def used_bytes(self) -> int:
        """Bytes granted to adapters that are here, coming or going."""
        return sum(one.bytes for one in self._kept.values())

    def residents(self) -> list[Resident]:
        """What is here and nowhere else."""
        return [one for one in self._kept.values() if not one.users]

    def state(self) -> TierState:
        """What it holds, and how it does."""
        return TierState(
            tier="host",
            adapters=len(self.residents()),
            bytes=self.used_bytes,
            tally=self.tally,
            budget_bytes=self.budget.bytes,
        )

    async def admit(self, newcomer: Resident) -> Resident | None:
        """A place for what is about to leave the device, to be settled or left; None: it is not worth one."""
        while (leaving := victim(self._kept.values(), newcomer.bytes, self.budget, self._worth)) is not None:
            if newcomer.bytes > self.budget.bytes or self._rank(leaving) > self._rank(newcomer):
                return None
            self.tally.evictions += 1
            await self._leave(leaving)
        # While others left, the engine may have been lost and with it the newcomer.
        if newcomer.tier != "device" or not fits(self._kept.values(), newcomer.bytes, self.budget):
            return None
        place = replace(newcomer, users=1, pinned=False, draining=0, loading=None, leaving=None)
        self._kept[place.weights] = place
        return place

    def settle(self, place: Resident, size: int) -> None:
        """It has come, and takes `size` bytes."""
        place.tier, place.bytes, place.users = "host", size, 0
        self._say(place, "host")

    async def claim(self, weights: Weights) -> Resident | None:
        """Hold what is here for its way back to the device; None when it is not here."""
        found = self._kept.get(weights)
        while found is not None and found.leaving is not None:
            await asyncio.wait([found.leaving])
            found = self._kept.get(weights)
        if found is not None:
            found.users += 1
        elif self.budget.bytes:
            self.tally.misses += 1
        return found

    def release(self, claimed: Resident, *, hit: bool) -> None:
        """Let go of a claim; a `hit` when it went back to the device."""
        claimed.users -= 1
        if hit:
            self.tally.hits += 1
        else:
            self.tally.misses += 1

    def has(self, place: Resident) -> bool:
        """Whether this very one is still here."""
        return self._kept.get(place.weights) is place

    def leave(self, place: Resident) -> None:
        """It is here no more, or did not come."""
        if self.has(place):
            del self._kept[place.weights]

    async def drop(self, weights: Weights) -> int:
        """Free it; the bytes freed, 0 when it is not here."""
        found = self._kept.get(weights)
        return 0 if found is None or found.users else await self._leave(found)

    async def shrink(self, need: int) -> int:
        """Free what is worth least until `need` bytes are, or nothing is left; the bytes freed."""
        freed = 0
        while freed < need and (free := [one for one in self._kept.values() if one.idle]):
            self.tally.evictions += 1
            freed += await self._leave(min(free, key=self._rank))
        return freed

    def lost(self) -> None:
        """The engine was lost and with it all that was here."""
        gone, self._kept = self._kept, {}
        for one in gone.values():
            if one.tier == "host":
                self._say(one, "")

    def _rank(self, resident: Resident) -> tuple[float, float]:
        return self._worth(resident), resident.last_used_s

    async def _leave(self, resident: Resident) -> int:
        """Have the engine free it, once for all who ask and to the end whoever stops waiting; the bytes freed."""
        if resident.leaving is None:
            resident.leaving = asyncio.create_task(self._free(resident), name=f"drop {resident.model}")
            resident.leaving.add_done_callback(lambda task: task.cancelled() or task.exception())
        return await asyncio.shield(resident.leaving)

    async def _free(self, resident: Resident) -> int:
        try:
            freed = await self._engine.unload(resident.weights) if self.has(resident) else 0
        except Unavailable:
            # An engine that was lost holds nothing any more.
            freed = resident.bytes
        except BaseException:
            resident.leaving = None
            raise
        if self.has(resident):
            self.leave(resident)
            self._say(resident, "")
        return freed

    def _say(self, resident: Resident, tier: Literal["host", ""]) -> None:
        self._tell(Change(tenant=resident.tenant, model=resident.model, tier=tier, bytes=resident.bytes if tier else 0))
