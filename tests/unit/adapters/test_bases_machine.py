"""Bases under any order of events: within the budget, nothing in use or pinned ever leaves, nobody waits for ever."""

import asyncio
from collections import Counter
from collections.abc import Callable, Coroutine
from typing import Any

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from catena.adapters.core.bases import BaseLoads
from catena.adapters.core.errors import NoRoom
from catena.adapters.core.records import BaseRecord
from catena.adapters.core.work import BaseFacts, BaseSource, Weights
from catena.kit.clock import ManualClock
from catena.kit.errors import Unavailable

SIZES = {"a": 100, "b": 100, "c": 150, "d": 60}
NAMES = st.sampled_from(sorted(SIZES))
BUDGET = 260


class StrictEngine:
    """Refuses what correct loads never ask: a second load at once or of what is held, and freeing what is used."""

    def __init__(self) -> None:
        self.held: dict[str, int] = {}
        self.busy: set[str] = set()
        self.keep: Callable[[str], bool] = lambda name: False
        self.fail_next = False
        self.losses = 0

    async def load_base(self, base: BaseSource) -> BaseFacts:
        name, losses = base.name, self.losses
        assert name not in self.busy and name not in self.held, "not in single flight"
        self.busy.add(name)
        try:
            for _ in range(3):
                await asyncio.sleep(0)
            if self.fail_next or losses != self.losses:
                self.fail_next = False
                raise Unavailable("lost")
            self.held[name] = SIZES[name]
            return BaseFacts(bytes=SIZES[name], context_tokens=64, dtype="float32")
        finally:
            self.busy.remove(name)

    async def unload(self, weights: Weights) -> int:
        assert weights.base not in self.busy and not self.keep(weights.base), f"{weights.base} is not free to go"
        await asyncio.sleep(0)
        return self.held.pop(weights.base, 0)


class Files:
    def names(self) -> list[str]:
        return list(SIZES)

    def known(self, name: str) -> None:
        return None

    def problem(self, name: str) -> str:
        return ""

    async def check(self, name: str) -> BaseRecord:
        await asyncio.sleep(0)
        told: dict[str, Any] = {"architecture": "L", "parameters": 1, "context_tokens": 64, "dtype": "F32"}
        return BaseRecord(name=name, folder=f"/{name}", digest=name, bytes=SIZES[name], **told)


class Pins:
    """Which bases have a pinned adapter."""

    def __init__(self) -> None:
        self.names: set[str] = set()

    def pins(self, base: str) -> bool:
        return base in self.names

    async def clear(self, base: str) -> None:
        await asyncio.sleep(0)


class Bases(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.loop = asyncio.new_event_loop()
        self.engine, self.pins, self.clock = StrictEngine(), Pins(), ManualClock()
        self.users: Counter[str] = Counter()
        self.unloading: Counter[str] = Counter()
        self.releases: list[asyncio.Event] = []
        self.tasks: list[asyncio.Task[None]] = []
        self.loads = BaseLoads(
            Files(),  # type: ignore[arg-type]
            self.engine,  # type: ignore[arg-type]
            self.pins,
            clock=self.clock,
            budget_bytes=BUDGET,
        )
        self.engine.keep = self.must_stay

    def must_stay(self, name: str) -> bool:
        return self.users[name] > 0 or (self.pins.pins(name) and not self.unloading[name])

    def run(self, work: Callable[[], object]) -> None:
        async def steps() -> None:
            work()
            for _ in range(80):
                await asyncio.sleep(0)

        self.clock.advance(1)
        self.loop.run_until_complete(steps())
        for task in [task for task in self.tasks if task.done()]:
            self.tasks.remove(task)
            error = None if task.cancelled() else task.exception()
            assert error is None or isinstance(error, NoRoom | Unavailable), repr(error)

    def spawn(self, work: Coroutine[Any, Any, None]) -> None:
        self.tasks.append(self.loop.create_task(work))

    async def hold(self, names: list[str], release: asyncio.Event, *, beside: bool = False) -> None:
        if not names:
            await release.wait()
            return
        async with self.loads.hold(names[0], beside=beside):
            # Whoever holds what a lost engine took goes on, but keeps nothing from its successor.
            users = self.users
            users[names[0]] += 1
            try:
                await self.hold(names[1:], release, beside=True)
            finally:
                users[names[0]] -= 1

    @rule(names=st.lists(NAMES, min_size=1, max_size=2, unique=True))
    def use(self, names: list[str]) -> None:
        release = asyncio.Event()
        self.releases.append(release)
        self.run(lambda: self.spawn(self.hold(names, release)))

    @precondition(lambda self: self.releases)
    @rule(data=st.data())
    def release(self, data: st.DataObject) -> None:
        release = self.releases.pop(data.draw(st.integers(0, len(self.releases) - 1)))
        self.run(release.set)

    @precondition(lambda self: self.tasks)
    @rule(data=st.data())
    def give_up(self, data: st.DataObject) -> None:
        task = self.tasks[data.draw(st.integers(0, len(self.tasks) - 1))]
        self.run(task.cancel)

    @rule(name=NAMES)
    def unload(self, name: str) -> None:
        async def unloaded() -> None:
            self.unloading[name] += 1
            try:
                await self.loads.unload(name)
            finally:
                self.unloading[name] -= 1

        self.run(lambda: self.spawn(unloaded()))

    @rule(name=st.sampled_from("ab"))
    def pin_or_unpin(self, name: str) -> None:
        if self.loads.has(name):
            self.run(lambda: self.pins.names.symmetric_difference_update({name}))

    @rule()
    def the_next_load_fails(self) -> None:
        self.engine.fail_next = True

    @rule()
    def the_engine_is_lost(self) -> None:
        def lose() -> None:
            self.engine.losses += 1
            self.engine.held.clear()
            self.users, self.pins.names = Counter(), set()
            self.loads.lost()

        self.run(lose)

    @invariant()
    def what_is_held_is_within_the_budget(self) -> None:
        assert sum(self.engine.held.values()) <= self.loads.used_bytes <= BUDGET
        assert {name for name in SIZES if self.loads.has(name)} <= self.engine.held.keys()

    @invariant()
    def what_is_used_is_there(self) -> None:
        assert {name for name, users in self.users.items() if users} <= self.engine.held.keys()

    def teardown(self) -> None:
        async def end() -> None:
            self.pins.names.clear()
            for release in self.releases:
                release.set()
            for _ in range(2000):
                await asyncio.sleep(0)
            assert all(task.done() for task in self.tasks), "somebody waits for ever"
            results = await asyncio.gather(*self.tasks, return_exceptions=True)
            assert all(isinstance(r, NoRoom | Unavailable | asyncio.CancelledError | None) for r in results), results
            for name in SIZES:
                await self.loads.unload(name)
            assert (self.engine.held, self.loads.used_bytes) == ({}, 0)
            self.loads.close()

        self.loop.run_until_complete(end())
        self.loop.close()


TestBases = Bases.TestCase
TestBases.settings = settings(max_examples=100, stateful_step_count=40, deadline=None)
