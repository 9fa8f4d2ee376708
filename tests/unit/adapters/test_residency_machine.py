"""The cache under any order of events: bytes are exact in each tier, and nothing pinned or in use is ever evicted."""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from typing import Any

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from catena.adapters.core.errors import NoRoom
from catena.adapters.core.records import Change
from catena.adapters.core.residency import Residency
from catena.adapters.core.resident import Budget, Wanted
from catena.adapters.core.work import AdapterSource, Loaded, Part, Weights
from catena.kit.clock import ManualClock
from catena.kit.errors import CatenaError, Unavailable

NAMES = st.sampled_from("abcdefgh")
ACTIONS = ("use", "use", "use", "unload", "withdraw", "lose", "shrink")
SIZES = {name: 40 + 20 * number for number, name in enumerate("abcdefgh")}
BUDGET = Budget(bytes=300, count=4)
HOST_BYTES = 250


class StrictEngine:
    """Refuses what a correct cache never asks: two orders at once for one adapter, loading what is held or kept,
    moving what is not there, and freeing what is used.

    Its loads come to up to 30 bytes more or fewer than announced, and take several turns of the event loop.
    """

    def __init__(self) -> None:
        self.held: dict[Weights, int] = {}
        self.stowed: dict[Weights, int] = {}
        self.busy: set[Weights] = set()
        self.keep: Callable[[Weights], bool] = lambda weights: False
        self.fail_next = False
        self.losses = 0

    def lose(self) -> None:
        self.losses += 1
        self.held.clear()
        self.stowed.clear()

    async def load_adapter(self, adapter: AdapterSource) -> Loaded:
        weights = adapter.weights
        assert weights not in self.held and weights not in self.stowed, "it is here already"
        async with self.order(weights):
            self.held[weights] = SIZES[weights.adapter] + 30 * (ord(weights.adapter) % 3 - 1)
        return Loaded(bytes=self.held[weights])

    async def stow(self, weights: Weights) -> int:
        assert not self.keep(weights), f"{weights.adapter} is not free to go"
        assert weights in self.held
        losses = self.losses
        for _ in range(3):
            await asyncio.sleep(0)
        if losses != self.losses:
            raise Unavailable("lost")
        size = self.held.pop(weights)
        if self.fail_next:
            # Its copy failed: it is nowhere any more.
            self.fail_next = False
            return 0
        self.stowed[weights] = size
        return size

    async def restore(self, weights: Weights) -> Loaded:
        assert weights in self.stowed and weights not in self.held
        async with self.order(weights):
            self.held[weights] = self.stowed.pop(weights)
        return Loaded(bytes=self.held[weights])

    async def unload(self, weights: Weights) -> int:
        assert weights not in self.busy and not self.keep(weights), f"{weights.adapter} is not free to go"
        for _ in range(3):
            await asyncio.sleep(0)
        return self.held.pop(weights, 0) or self.stowed.pop(weights, 0)

    @asynccontextmanager
    async def order(self, weights: Weights) -> AsyncIterator[None]:
        assert weights not in self.busy, "not in single flight"
        self.busy.add(weights)
        losses = self.losses
        try:
            for _ in range(3):
                await asyncio.sleep(0)
            if self.fail_next or losses != self.losses:
                self.fail_next = False
                raise Unavailable("lost")
            yield
        finally:
            self.busy.remove(weights)


class Cache(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.loop = asyncio.new_event_loop()
        self.engine = StrictEngine()
        self.clock = ManualClock()
        self.told: dict[str, str] = {}
        self.disowned: set[str] = set()
        self.pinned: set[str] = set()
        self.asked_to_go: set[str] = set()
        self.users: Counter[str] = Counter()
        self.releases: list[tuple[str, asyncio.Event]] = []
        self.tasks: list[asyncio.Task[Any]] = []
        self.residency = Residency(
            self.engine,  # type: ignore[arg-type]
            clock=self.clock,
            budget=BUDGET,
            tell=self.tell,
            host_bytes=HOST_BYTES,
        )
        self.engine.keep = self.must_stay

    def must_stay(self, weights: Weights) -> bool:
        name, one = weights.adapter, self.residency.device.held.get(weights)
        pinned = one is not None and one.tier == "device" and one.pinned and not one.dismissed
        return self.users[name] > 0 or (pinned and name not in self.asked_to_go)

    def tell(self, change: Change) -> None:
        assert self.told.get(change.model, "") != change.tier, "told twice"
        self.told[change.model] = change.tier

    def wanted(self, name: str) -> Wanted:
        weights = Weights(base="base", adapter=name)

        async def source() -> AdapterSource:
            await asyncio.sleep(0)
            return AdapterSource(weights=weights, parts=(Part(folder="/", modules=(), digest="", dtype="F32"),))

        async def vouched() -> bool:
            await asyncio.sleep(0)
            return name not in self.disowned

        return Wanted(
            weights=weights,
            tenant="t",
            model=name,
            bytes=SIZES[name],
            source=source,
            vouched=vouched,
            doubt=lambda: None,
            pinned=name in self.pinned,
        )

    def run(self, work: Callable[[], object], turns: int = 60) -> None:
        async def steps() -> None:
            work()
            for _ in range(turns):
                await asyncio.sleep(0)

        self.loop.run_until_complete(steps())
        for task in [task for task in self.tasks if task.done()]:
            self.tasks.remove(task)
            error = None if task.cancelled() else task.exception()
            assert error is None or isinstance(error, CatenaError), repr(error)

    def spawn(self, *works: Coroutine[Any, Any, object]) -> None:
        self.tasks.extend(map(self.loop.create_task, works))

    async def hold(self, name: str, release: asyncio.Event) -> None:
        try:
            async with self.residency.hold(self.wanted(name)) as resident:
                # Whoever holds what a lost engine took goes on, but keeps nothing from its successor.
                users = self.users if self.residency.device.holds(resident) else Counter()
                users[name] += 1
                try:
                    await release.wait()
                finally:
                    users[name] -= 1
        finally:
            self.releases.remove((name, release))

    async def unload(self, name: str) -> None:
        self.asked_to_go.add(name)
        try:
            await self.residency.unload(Weights(base="base", adapter=name))
        finally:
            self.asked_to_go.discard(name)

    @rule(name=NAMES)
    def use(self, name: str) -> None:
        release = asyncio.Event()
        self.releases.append((name, release))
        self.run(lambda: self.spawn(self.hold(name, release)))

    @rule(names=st.lists(NAMES, min_size=2, max_size=5))
    def use_at_once(self, names: list[str]) -> None:
        made = [(name, asyncio.Event()) for name in names]
        self.releases += made
        self.run(lambda: self.spawn(*(self.hold(name, release) for name, release in made)))

    @rule(steps=st.lists(st.tuples(st.sampled_from(ACTIONS), NAMES, st.integers(0, 8)), min_size=2, max_size=8))
    def one_upon_another(self, steps: list[tuple[str, str, int]]) -> None:
        """Each begins a few turns of the event loop after the last, when that is still under way."""

        async def script() -> None:
            for action, name, turns in steps:
                self.begin(action, name)
                for _ in range(turns):
                    await asyncio.sleep(0)

        self.run(lambda: self.spawn(script()), turns=200)

    def begin(self, action: str, name: str) -> None:
        match action:
            case "use":
                # Released at once: it is gone as soon as it has come.
                release = asyncio.Event()
                release.set()
                self.releases.append((name, release))
                self.spawn(self.hold(name, release))
            case "unload":
                self.spawn(self.unload(name))
            case "withdraw":
                self.pinned.discard(name)
                self.spawn(self.residency.dismiss(Weights(base="base", adapter=name)))
            case "lose":
                self.engine.lose()
                self.users = Counter()
                self.residency.lost()
            case "shrink":
                self.spawn(self.residency.host.shrink(100))

    @precondition(lambda self: self.releases)
    @rule(data=st.data())
    def release(self, data: st.DataObject) -> None:
        _, release = self.releases[data.draw(st.integers(0, len(self.releases) - 1))]
        self.run(release.set)

    @precondition(lambda self: self.tasks)
    @rule(data=st.data())
    def give_up(self, data: st.DataObject) -> None:
        task = self.tasks[data.draw(st.integers(0, len(self.tasks) - 1))]
        self.run(task.cancel)

    @rule(name=NAMES)
    def unload_it(self, name: str) -> None:
        self.run(lambda: self.spawn(self.unload(name)))

    @rule(name=NAMES)
    def preload(self, name: str) -> None:
        async def ahead() -> None:
            await self.residency.preload(self.wanted(name))

        self.run(lambda: self.spawn(ahead()))

    @precondition(lambda self: len(self.pinned) < 2)
    @rule(name=st.sampled_from("abc"))
    def pin(self, name: str) -> None:
        self.pinned.add(name)
        self.run(lambda: self.residency.pin(Weights(base="base", adapter=name), True))

    @precondition(lambda self: self.pinned)
    @rule(data=st.data())
    def unpin(self, data: st.DataObject) -> None:
        name = data.draw(st.sampled_from(sorted(self.pinned)))
        self.pinned.remove(name)
        self.run(lambda: self.residency.pin(Weights(base="base", adapter=name), False))

    @rule(name=NAMES)
    def withdraw(self, name: str) -> None:
        """It ends up in no tier, whoever uses it or wants it at the same moment."""

        async def dismiss() -> None:
            self.asked_to_go.add(name)
            await self.residency.dismiss(Weights(base="base", adapter=name))

        self.pinned.discard(name)
        self.run(lambda: self.spawn(dismiss()))
        if not self.users[name] and not any(asked == name for asked, _ in self.releases):
            assert self.told.get(name, "") == "", f"{name} is still there"
            self.asked_to_go.discard(name)

    @rule(name=NAMES)
    def its_key_is_no_longer_trusted_or_is_again(self, name: str) -> None:
        self.disowned ^= {name}

    @rule(idle_s=st.sampled_from([0.0, 600.0]), keep=st.booleans())
    def pressure(self, idle_s: float, keep: bool) -> None:
        async def drop() -> None:
            await self.residency.drop_idle(idle_s, keep=keep)

        self.run(lambda: self.spawn(drop()))

    @rule(need=st.integers(1, 300))
    def the_machine_runs_short(self, need: int) -> None:
        async def shrink() -> None:
            before = self.residency.host.used_bytes
            assert await self.residency.host.shrink(need) >= min(need, before) or self.tasks

        self.run(lambda: self.spawn(shrink()))

    @rule()
    def the_next_load_fails(self) -> None:
        self.engine.fail_next = True

    @rule()
    def the_engine_is_lost(self) -> None:
        def lose() -> None:
            self.engine.lose()
            self.users = Counter()
            self.residency.lost()

        self.run(lose)

    @rule(seconds=st.sampled_from([1.0, 700.0]))
    def time_passes(self, seconds: float) -> None:
        self.clock.advance(seconds)

    @invariant()
    def bytes_are_exact_and_within_the_budget_of_each_tier(self) -> None:
        there = {one.weights: one.bytes for one in self.residency.residents() if not one.loading}
        assert there == self.engine.held
        assert sum(self.engine.held.values()) <= self.residency.device.used_bytes <= BUDGET.bytes
        assert len(self.engine.held) <= BUDGET.count
        kept = {one.weights: one.bytes for one in self.residency.host.residents()}
        claimed = {one.weights for one in self.residency.residents() if one.loading}
        assert kept.items() <= self.engine.stowed.items() and self.engine.stowed.keys() <= kept.keys() | claimed
        assert sum(self.engine.stowed.values()) <= self.residency.host.used_bytes <= HOST_BYTES

    @invariant()
    def every_byte_is_in_one_tier(self) -> None:
        assert not self.engine.held.keys() & self.engine.stowed.keys()

    @invariant()
    def users_are_counted_and_what_they_use_is_there(self) -> None:
        counted = {one.model: one.users for one in self.residency.residents()}
        for name, users in self.users.items():
            assert not users or (users <= counted[name] and Weights(base="base", adapter=name) in self.engine.held)

    @invariant()
    def the_world_was_told_what_is_there(self) -> None:
        told = {name: tier for name, tier in self.told.items() if tier}
        held = {weights.adapter: "device" for weights in self.engine.held}
        assert told == held | {weights.adapter: "host" for weights in self.engine.stowed}

    def teardown(self) -> None:
        async def end() -> None:
            for _, release in list(self.releases):
                release.set()
            for name in list(self.pinned):
                self.pinned.remove(name)
                self.residency.pin(Weights(base="base", adapter=name), False)
            for _ in range(2000):
                await asyncio.sleep(0)
            assert all(task.done() for task in self.tasks), "somebody waits for ever"
            results = await asyncio.gather(*self.tasks, return_exceptions=True)
            assert all(isinstance(r, NoRoom | Unavailable | asyncio.CancelledError | int | None) for r in results), (
                results
            )
            for one in self.residency.residents():
                # A request that began while it was pinned may have brought the pin along.
                self.residency.pin(one.weights, False)
            await self.residency.drop_idle(0)
            await self.residency.host.shrink(HOST_BYTES)
            assert self.engine.held == self.engine.stowed == {}
            assert self.residency.device.used_bytes == self.residency.host.used_bytes == 0
            assert self.residency.residents() == []
            await self.residency.close()

        self.loop.run_until_complete(end())
        self.loop.close()


TestCache = Cache.TestCase
TestCache.settings = settings(max_examples=100, stateful_step_count=40, deadline=None)
