import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from catena.adapters.core.errors import NoRoom
from catena.adapters.core.records import Change
from catena.adapters.core.residency import Budget, Residency, Resident, Wanted, fits, victim
from catena.adapters.core.work import AdapterSource, Part, Weights
from catena.kit.clock import ManualClock
from catena.kit.errors import Unavailable
from tests.unit.adapters.fakes import FakeEngine


class Bench:
    def __init__(self, *, size: int = 300, count: int = 10) -> None:
        self.engine = FakeEngine()
        self.clock = ManualClock()
        self.changes: list[Change] = []
        self.sources: list[str] = []
        self.residency = Residency(
            self.engine, clock=self.clock, budget=Budget(bytes=size, count=count), tell=self.changes.append
        )

    def wanted(self, name: str, *, pinned: bool = False, size: int = 100) -> Wanted:
        weights = Weights(base="base", adapter=name)

        async def source() -> AdapterSource:
            self.sources.append(name)
            return AdapterSource(weights=weights, parts=(Part(folder="/", modules=()),))

        return Wanted(weights=weights, tenant="t", model=name, bytes=size, source=source, pinned=pinned)

    async def use(self, *names: str) -> None:
        for name in names:
            self.clock.advance(1)
            async with self.residency.hold(self.wanted(name)):
                pass

    @asynccontextmanager
    async def holding(self, name: str) -> AsyncIterator[Resident]:
        async with self.residency.hold(self.wanted(name)) as resident:
            yield resident

    @property
    def resident(self) -> list[str]:
        return [resident.model for resident in self.residency.residents()]


def resident(name: str, *, size: int = 100, users: int = 0, pinned: bool = False, used_s: float = 0.0) -> Resident:
    weights = Weights(base="b", adapter=name)
    return Resident(weights=weights, tenant="t", model=name, bytes=size, users=users, pinned=pinned, last_used_s=used_s)


def test_the_coldest_idle_adapter_goes_first() -> None:
    held = [resident("hot", used_s=9), resident("cold", used_s=1), resident("cool", used_s=5)]

    leaving = victim(held, 100, Budget(bytes=300, count=10))

    assert leaving is held[1]


def test_pinned_and_used_adapters_stay() -> None:
    held = [resident("pinned", pinned=True), resident("used", users=1), resident("idle", used_s=9)]

    assert victim(held, 100, Budget(bytes=300, count=10)) is held[2]
    assert victim(held[:2], 200, Budget(bytes=300, count=10)) is None


@pytest.mark.parametrize(("need", "count", "fit"), [(100, 3, True), (101, 3, False), (1, 2, False)])
def test_bytes_and_count_both_bound(need: int, count: int, fit: bool) -> None:
    held = [resident("a"), resident("b")]

    assert fits(held, need, Budget(bytes=300, count=count)) is fit


async def test_evicts_by_bytes_in_order_of_last_use() -> None:
    bench = Bench(size=300)

    await bench.use("a", "b", "c", "a", "d")

    assert bench.resident == ["d", "a", "c"]
    assert (bench.residency.tally.hits, bench.residency.tally.misses, bench.residency.tally.evictions) == (1, 4, 1)
    assert [(change.model, change.tier) for change in bench.changes][-2:] == [("b", ""), ("d", "device")]


async def test_all_who_want_one_adapter_share_one_load() -> None:
    bench = Bench()
    bench.engine.gate.clear()
    waiting = [asyncio.create_task(bench.use("a")) for _ in range(5)]
    await asyncio.sleep(0)

    bench.engine.gate.set()
    await asyncio.gather(*waiting)

    assert bench.engine.log == ["load a"]
    assert bench.sources == ["a"]


async def test_a_load_outlives_the_one_who_asked_first() -> None:
    bench = Bench()
    bench.engine.gate.clear()
    first = asyncio.create_task(bench.use("a"))
    second = asyncio.create_task(bench.use("a"))
    await asyncio.sleep(0)
    first.cancel()
    await asyncio.sleep(0)

    bench.engine.gate.set()
    await second

    assert bench.engine.log == ["load a"]
    assert bench.residency.residents()[0].users == 0


async def test_a_failed_load_fails_all_who_wait_and_is_tried_again_for_the_next() -> None:
    bench = Bench()
    bench.engine.failure = Unavailable("lost")
    results = await asyncio.gather(bench.use("a"), bench.use("a"), return_exceptions=True)

    assert all(isinstance(result, Unavailable) for result in results)
    assert bench.resident == []
    await bench.use("a")
    assert bench.resident == ["a"]


async def test_who_finds_everything_in_use_waits_for_a_release() -> None:
    bench = Bench(size=100)
    async with bench.holding("a"):
        waiting = asyncio.create_task(bench.use("b"))
        for _ in range(20):
            await asyncio.sleep(0)
        assert bench.engine.log == ["load a"]

    await waiting

    assert bench.engine.log == ["load a", "unload a", "load b"]


async def test_a_load_that_nobody_waits_for_any_more_gives_up_its_place() -> None:
    bench = Bench(size=100)
    async with bench.holding("a"):
        impatient = asyncio.create_task(bench.use("b"))
        for _ in range(20):
            await asyncio.sleep(0)
        impatient.cancel()
        await asyncio.gather(impatient, return_exceptions=True)
        for _ in range(20):
            await asyncio.sleep(0)

        assert bench.resident == ["a"]

    await bench.use("c")
    assert bench.resident == ["c"]


async def test_pins_that_fill_the_budget_are_an_error_and_no_deadlock() -> None:
    bench = Bench(size=100)
    async with bench.residency.hold(bench.wanted("a", pinned=True)):
        pass

    with pytest.raises(NoRoom):
        await bench.use("b")


async def test_what_is_larger_than_the_budget_is_refused() -> None:
    bench = Bench(size=100)

    with pytest.raises(NoRoom):
        async with bench.residency.hold(bench.wanted("a", size=101)):
            pass


async def test_unloading_waits_for_the_last_user() -> None:
    bench = Bench()
    async with bench.holding("a"):
        unloading = asyncio.create_task(bench.residency.unload(Weights(base="base", adapter="a")))
        await asyncio.sleep(0)
        assert not unloading.done()

    assert await unloading == 100
    assert bench.resident == []


async def test_a_dismissed_adapter_leaves_with_its_last_user() -> None:
    bench = Bench()
    async with bench.holding("a"):
        async with bench.holding("a"):
            await bench.residency.dismiss(Weights(base="base", adapter="a"))
        assert bench.resident == ["a"]

    assert bench.resident == []
    assert bench.engine.log == ["load a", "unload a"]


async def test_a_lost_engine_is_filled_anew() -> None:
    bench = Bench()
    await bench.use("a")
    bench.engine.loaded.clear()

    bench.residency.lost()

    assert bench.resident == []
    await bench.use("a")
    assert bench.engine.log == ["load a", "load a"]
    assert [change.tier for change in bench.changes] == ["device", "", "device"]
