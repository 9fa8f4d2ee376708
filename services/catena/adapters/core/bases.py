"""Bases on the device: each is loaded once for all who ask, under one byte budget, and again after it had to leave.

The budget is of weights alone and of bases alone: the adapters' is their own, keys and values are the engine's. Who
finds no room makes the base leave that was used longest ago; never one in use, nor one with a pinned adapter. One that
is always in use takes nobody new while another waits for its room, so that each gets its turn.
"""

import asyncio
import itertools
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Protocol

from catena.adapters.core.encoding import check_kind
from catena.adapters.core.errors import BaseMisplaced, NoRoom
from catena.adapters.core.ports import Bases, Engine
from catena.adapters.core.records import BaseRecord, BaseState
from catena.adapters.core.resident import Pulse
from catena.adapters.core.work import BaseFacts, BaseSource, Weights
from catena.kit.clock import Clock
from catena.kit.errors import CatenaError, Unavailable

RETRY_AFTER_S = 5.0


class Adapted(Protocol):
    """The adapters that are resident on bases."""

    def pins(self, base: str) -> bool:
        """Whether one on this base is pinned."""
        ...

    async def clear(self, base: str) -> None:
        """Drain and free all on this base."""
        ...


@dataclass(slots=True, kw_only=True, eq=False)
class Held:
    """A base on the device once it has `facts`, on its way while `loading` or `leaving`.

    `bytes` are granted to it. `blocked`: its load waits for room. `draining` counts those who wait for it to leave.
    """

    name: str
    last_used_s: float
    bytes: int = 0
    facts: BaseFacts | None = None
    users: int = 0
    draining: int = 0
    blocked: bool = False
    loading: asyncio.Task[None] | None = None
    leaving: asyncio.Task[int] | None = None

    @property
    def settled(self) -> bool:
        """Whether it neither comes nor goes."""
        return not (self.loading or self.leaving)


class BaseLoads:
    """The bases that the engine holds."""

    def __init__(self, bases: Bases, engine: Engine, adapted: Adapted, *, clock: Clock, budget_bytes: int = 0) -> None:
        """Nothing is loaded yet; `budget_bytes` 0: unbounded."""
        self.budget_bytes = budget_bytes
        self._bases = bases
        self._engine = engine
        self._adapted = adapted
        self._clock = clock
        self._held: dict[str, Held] = {}
        self._refusals: dict[str, str] = {}
        self._exact: dict[str, int] = {}
        self._losses = 0
        self._pulse = Pulse()

    @property
    def used_bytes(self) -> int:
        """Bytes granted to bases that are resident, coming or going."""
        return sum(held.bytes for held in self._held.values())

    def has(self, name: str) -> bool:
        """Whether a base is resident now."""
        held = self._held.get(name)
        return held is not None and held.facts is not None and held.leaving is None

    @asynccontextmanager
    async def hold(self, name: str, *, beside: bool = False) -> AsyncIterator[BaseFacts]:
        """Keep a base resident while the block runs, loading it first if it has to be.

        Who already holds another says `beside`: it joins one that others wait for, and does not wait for room, since
        two that hold what the other waits for would wait for ever. Raises the gate's refusals, NoRoom, Unavailable.
        """
        held = self._held.get(name)
        while held is not None and (held.leaving or (held.draining and not beside)):
            await self._pulse.wait()
            held = self._held.get(name)
        if held is None:
            held = self._start(name)
        held.users += 1
        load = held.loading
        try:
            while beside and held.loading and not held.bytes:
                if held.blocked:
                    raise self._full(name)
                await self._pulse.wait()
            await self._arrival(name, load)
            held.last_used_s = self._clock.monotonic()
            assert held.facts is not None
            yield held.facts
        finally:
            held.users -= 1
            self._pulse()

    async def load(self, name: str) -> BaseFacts:
        """Make a base resident, for as long as its room is not needed."""
        async with self.hold(name) as facts:
            return facts

    async def unload(self, name: str) -> int:
        """Admit nobody new, wait for its last user, free it and its adapters; its bytes, 0 when it was not there."""
        held = self._held.get(name)
        if held is None:
            return 0
        held.draining += 1
        try:
            while self._holds(held) and (held.users or held.loading):
                await self._pulse.wait()
            return await self._leave(held) if self._holds(held) else 0
        finally:
            held.draining -= 1
            self._pulse()

    async def check_speaks(self, name: str) -> None:
        """Raise WrongKind for a base that does not generate."""
        check_kind(name, (await self._bases.get(name)).kind, "chat")

    async def load_all(self) -> list[CatenaError]:
        """Load every base that fits beside those before it; what went wrong with one does not stop the others."""
        failures: list[CatenaError] = []
        for name in self._bases.names():
            try:
                if self.budget_bytes and self.used_bytes + self._need(await self._bases.get(name)) > self.budget_bytes:
                    continue
                await self.load(name)
            except CatenaError as error:
                failures.append(error)
        return failures

    def states(self) -> list[BaseState]:
        """Every configured base by name, as known now; nothing is read or loaded for it."""
        return [self._state_of(name) for name in sorted(self._bases.names())]

    def lost(self) -> None:
        """The engine was lost and with it all that it held; loads under way fail by themselves."""
        self._losses += 1
        self._held = {name: held for name, held in self._held.items() if held.loading}
        self._pulse()

    def close(self) -> None:
        """Stop loading."""
        for held in self._held.values():
            if held.loading is not None:
                held.loading.cancel()

    def _state_of(self, name: str) -> BaseState:
        held, record = self._held.get(name), self._bases.known(name)
        if held is not None and held.facts is not None:
            return BaseState(name=name, kind=self._bases.kind(name), record=record, facts=held.facts)
        problem = self._bases.problem(name) or self._refusals.get(name, "")
        return BaseState(name=name, kind=self._bases.kind(name), record=record, problem=problem)

    def _start(self, name: str) -> Held:
        held = self._held[name] = Held(name=name, last_used_s=self._clock.monotonic())
        held.loading = asyncio.create_task(self._load(held), name=f"load {name}")
        # Those who wait see the failure; when all of them have left, nobody has to.
        held.loading.add_done_callback(lambda task: task.cancelled() or task.exception())
        return held

    async def _arrival(self, name: str, load: asyncio.Task[None] | None) -> None:
        if load is None:
            return
        try:
            await asyncio.shield(load)
        except asyncio.CancelledError:
            if not load.cancelled():
                raise
            raise Unavailable(f"the load of {name} was stopped; ask again") from None

    async def _load(self, held: Held) -> None:
        name = held.name
        try:
            record = await self._bases.check(name)
            await self._make_room(held, self._need(record))
            losses = self._losses
            source = BaseSource(name=name, folder=record.folder, context_tokens=record.context_tokens, kind=record.kind)
            facts = await self._engine.load_base(source)
            if losses != self._losses:
                raise Unavailable(f"the engine was lost while it loaded {name}; ask again")
            self._exact[record.digest] = held.bytes = facts.bytes
            if not await self._evict(held, facts.bytes):
                await self._engine.unload(Weights(base=name))
                raise self._full(name)
            held.facts = facts
            self._refusals.pop(name, None)
        except BaseException as error:
            if self._holds(held):
                del self._held[name]
            # What a next try may well cure is no problem of the base: the engine is back, the folder there, room made.
            if isinstance(error, CatenaError) and not isinstance(error, Unavailable | BaseMisplaced | NoRoom):
                self._refusals[name] = error.message
            raise
        finally:
            held.loading, held.blocked = None, False
            self._pulse()

    async def _make_room(self, held: Held, need: int) -> None:
        """Grant it `need` bytes once they are there."""
        if self.budget_bytes and need > self.budget_bytes:
            raise NoRoom(
                f"base {held.name} takes {need} bytes, the budget is {self.budget_bytes}; "
                "raise adapters.base_budget_bytes"
            )
        asked: Held | None = None
        try:
            while self._behind(held) or not await self._evict(held, need):
                if not held.users:
                    raise NoRoom(f"nobody waits for {held.name}, so nothing makes room for it")
                others = [other for other in self._held.values() if other is not held and other.bytes]
                free = [other for other in others if other.settled and not self._adapted.pins(other.name)]
                if not free and all(other.settled for other in others) and not self._behind(held):
                    raise self._full(held.name)
                if not held.blocked:
                    held.blocked = True
                    self._pulse()
                asked = _pass_on(asked, min(free, key=lambda other: other.last_used_s, default=None))
                await self._pulse.wait()
        finally:
            if _pass_on(asked, None) is not asked:
                self._pulse()
        held.bytes, held.blocked = need, False
        self._pulse()

    async def _evict(self, newcomer: Held, need: int) -> bool:
        """Have idle bases leave until `need` bytes fit, the least recently used first; False: they do not yet."""
        while self._others(newcomer) + need > self.budget_bytes > 0:
            idle = [held for held in self._held.values() if held is not newcomer and self._idle(held)]
            if not idle:
                return False
            await self._leave(min(idle, key=lambda held: held.last_used_s))
        return True

    async def _leave(self, held: Held) -> int:
        """Have the engine free it, once for all who ask and to the end whoever stops waiting; its bytes."""
        if held.leaving is None:
            held.leaving = asyncio.create_task(self._free(held), name=f"unload {held.name}")
            held.leaving.add_done_callback(lambda task: task.cancelled() or task.exception())
        return await asyncio.shield(held.leaving)

    async def _free(self, held: Held) -> int:
        try:
            await self._adapted.clear(held.name)
            freed = await self._engine.unload(Weights(base=held.name))
        except Unavailable:
            # An engine that was lost holds nothing any more.
            freed = held.bytes
        except BaseException:
            held.leaving = None
            self._pulse()
            raise
        if self._holds(held):
            del self._held[held.name]
        self._pulse()
        return freed

    def _idle(self, held: Held) -> bool:
        return held.settled and not held.users and held.facts is not None and not self._adapted.pins(held.name)

    def _behind(self, held: Held) -> bool:
        """Whether one that came earlier still waits for room, which is then not this one's to take."""
        earlier = itertools.takewhile(lambda other: other is not held, self._held.values())
        return any(other.blocked for other in earlier)

    def _others(self, newcomer: Held) -> int:
        return sum(held.bytes for held in self._held.values() if held is not newcomer)

    def _need(self, record: BaseRecord) -> int:
        """What it takes: exactly, once it was loaded, else as its files have it."""
        return self._exact.get(record.digest, record.bytes)

    def _full(self, name: str) -> NoRoom:
        return NoRoom(
            f"no room for base {name} within {self.budget_bytes} bytes: what is resident is in use or has pinned "
            "adapters; unpin them, ask again later, or raise adapters.base_budget_bytes",
            retry_after_s=RETRY_AFTER_S,
        )

    def _holds(self, held: Held) -> bool:
        return self._held.get(held.name) is held


def _pass_on(asked: Held | None, other: Held | None) -> Held | None:
    """Drain `other` in place of `asked`; what is drained now."""
    if asked is not other:
        if asked is not None:
            asked.draining -= 1
        if other is not None:
            other.draining += 1
    return other
