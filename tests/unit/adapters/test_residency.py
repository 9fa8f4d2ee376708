import asyncio
import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from catena.adapters.core.errors import NoRoom
from catena.adapters.core.eviction import History, Policy, fits, victim
from catena.adapters.core.records import Change
from catena.adapters.core.residency import Residency
from catena.adapters.core.resident import Budget, Resident, Wanted
from catena.adapters.core.work import AdapterSource, Part, Weights
from catena.kit.clock import ManualClock
from catena.kit.errors import Denied, Unavailable
from tests.unit.adapters.fakes import FakeEngine


class Bench:
    def __init__(self, *, size: int = 300, count: int = 10, policy: Policy = "lru", host: int = 0) -> None:
        self.engine = FakeEngine()
        self.clock = ManualClock()
        self.changes: list[Change] = []
        self.sources: list[str] = []
        self.disowned: set[str] = set()
        self.doubted: list[str] = []
        self.residency = Residency(
            self.engine,
            clock=self.clock,
            budget=Budget(bytes=size, count=count),
            tell=self.changes.append,
            policy=policy,
            host_bytes=host,
        )

    def wanted(self, name: str, *, pinned: bool = False, size: int = 100) -> Wanted:
        weights = Weights(base="base", adapter=name)

        async def source() -> AdapterSource:
            self.sources.append(name)
            return AdapterSource(weights=weights, parts=(Part(folder="/", modules=(), digest="", dtype="F32"),))

        async def vouched() -> bool:
            return name not in self.disowned

        return Wanted(
            weights=weights,
            tenant="t",
            model=name,
            bytes=size,
            source=source,
            vouched=vouched,
            doubt=lambda: self.doubted.append(name),
            pinned=pinned,
        )

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


def equal(_: Resident) -> float:
    return 0.0


def test_the_coldest_idle_adapter_goes_first() -> None:
    held = [resident("hot", used_s=9), resident("cold", used_s=1), resident("cool", used_s=5)]

    leaving = victim(held, 100, Budget(bytes=300, count=10), equal)

    assert leaving is held[1]


def test_pinned_and_used_adapters_stay() -> None:
    held = [resident("pinned", pinned=True), resident("used", users=1), resident("idle", used_s=9)]

    assert victim(held, 100, Budget(bytes=300, count=10), equal) is held[2]
    assert victim(held[:2], 200, Budget(bytes=300, count=10), equal) is None


@pytest.mark.parametrize(("need", "count", "fit"), [(100, 3, True), (101, 3, False), (1, 2, False)])
def test_bytes_and_count_both_bound(need: int, count: int, fit: bool) -> None:
    held = [resident("a"), resident("b")]

    assert fits(held, need, Budget(bytes=300, count=count)) is fit


@pytest.mark.parametrize(
    ("kept", "leaving"),
    [
        ({"uses": 5}, {"uses": 1}),
        ({"seconds": 4.0}, {"seconds": 1.0}),
        ({"size": 50}, {"size": 100}),
        ({"last_s": 500.0}, {"last_s": 0.0}),
    ],
    ids=["often used", "slow to load", "small", "used lately"],
)
def test_what_is_worth_the_least_per_byte_goes_first(kept: dict[str, float], leaving: dict[str, float]) -> None:
    history, now_s = History(half_life_s=600), 1000.0
    held = []
    for name, changes in (("kept", kept), ("leaving", leaving)):
        facts = {"uses": 2, "seconds": 2.0, "size": 80, "last_s": 100.0} | changes
        one = resident(name, size=int(facts["size"]), used_s=-facts["last_s"])
        history.loaded(one.weights, seconds=facts["seconds"], bytes=one.bytes, now_s=0)
        for _ in range(int(facts["uses"])):
            history.used(one.weights, facts["last_s"])
        held.append(one)

    assert victim(held, 200, Budget(bytes=200, count=10), lambda one: history.worth(one, now_s)) is held[1]


def test_the_chance_of_reuse_follows_the_rate_of_uses_and_fades() -> None:
    history, weights = History(half_life_s=100), Weights(base="b", adapter="a")
    assert history.reuse(weights, 0) == 0.0
    for second in range(0, 1000, 10):
        history.used(weights, second)

    # A use each 10 s holds the count near 0.1 x 100 / ln 2 = 14; ten half-lives later little is left of it.
    assert history.reuse(weights, 1000) > 0.999
    assert history.reuse(weights, 2000) == pytest.approx(1 - 2 ** -(14.4 / 1024), rel=0.1)


def test_what_was_never_loaded_takes_as_long_as_its_bytes_at_the_pace_of_the_others() -> None:
    history, known, unknown = History(), Weights(base="b", adapter="a"), Weights(base="b", adapter="x")
    assert history.reload_s(unknown, 500) == 0.0
    history.loaded(known, seconds=2.0, bytes=1000, now_s=0)

    assert history.reload_s(unknown, 500) == 1.0
    assert (history.bytes(known, 7), history.bytes(unknown, 7)) == (1000, 7)
    history.loaded(known, seconds=4.0, bytes=1000, now_s=0)
    assert history.reload_s(known, 1000) == 3.0


def test_a_long_history_keeps_the_liveliest() -> None:
    history = History(remembered=10)
    lively = Weights(base="b", adapter="lively")
    for _ in range(3):
        history.used(lively, 0)
    for number in range(100):
        history.used(Weights(base="b", adapter=str(number)), 0)

    assert history.reuse(lively, 0) == 1 - 2**-3


async def test_the_often_used_survives_a_sweep_that_empties_an_lru() -> None:
    async def survives(policy: Policy) -> bool:
        bench = Bench(size=300, policy=policy)
        bench.engine.on_load = lambda _: bench.clock.advance(1)
        await bench.use(*["hot"] * 5, "a", "b", "c", "d", "e")
        return "hot" in bench.resident

    assert await survives("cost")
    assert not await survives("lru")


async def test_evicts_by_bytes_in_order_of_last_use() -> None:
    bench = Bench(size=300)

    await bench.use("a", "b", "c", "a", "d")

    assert bench.resident == ["d", "a", "c"]
    assert (
        bench.residency.device.tally.hits,
        bench.residency.device.tally.misses,
        bench.residency.device.tally.evictions,
    ) == (1, 4, 1)
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


async def test_the_gate_doubts_what_the_engine_refuses_and_nothing_that_fails_otherwise() -> None:
    bench = Bench()
    for failure in (Unavailable("lost"), Denied("altered")):
        bench.engine.failure = failure
        with pytest.raises(type(failure)):
            await bench.use("a")

    assert bench.doubted == ["a"]
    assert bench.sources == ["a"] * 3, "asked once more when it is doubted"
    assert bench.resident == []


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


async def test_nobody_joins_what_is_being_drained_but_those_who_hold_another() -> None:
    bench = Bench()
    async with bench.holding("a"):
        unloading = asyncio.create_task(bench.residency.unload(Weights(base="base", adapter="a")))
        late = asyncio.create_task(bench.use("a"))
        await asyncio.sleep(0)
        async with bench.residency.hold(bench.wanted("a"), beside=True) as joined:
            assert joined.users == 2
        assert not late.done()

    assert await unloading == 100
    await late
    assert bench.engine.log == ["load a", "unload a", "load a"]


async def test_a_name_that_is_leaving_is_loaded_anew_once_it_is_gone() -> None:
    bench = Bench()
    await bench.use("a")
    bench.engine.gate.clear()
    unloading = asyncio.create_task(bench.residency.unload(Weights(base="base", adapter="a")))
    await asyncio.sleep(0)
    again = asyncio.create_task(bench.use("a"))
    await asyncio.sleep(0)
    assert (bench.residency.device.used_bytes, bench.residency.has(Weights(base="base", adapter="a"))) == (100, False)

    bench.engine.gate.set()
    await asyncio.gather(unloading, again)

    assert bench.engine.log == ["load a", "unload a", "load a"]


async def test_unpinning_lets_a_waiting_load_go_on() -> None:
    bench = Bench(size=200)
    async with bench.residency.hold(bench.wanted("pinned", pinned=True)), bench.holding("used"):
        waiting = asyncio.create_task(bench.use("c"))
        for _ in range(20):
            await asyncio.sleep(0)
    await waiting
    bench.residency.pin(Weights(base="base", adapter="pinned"), False)
    await bench.use("d", "e")

    assert bench.resident == ["e", "d"]


async def test_a_load_that_comes_to_more_than_announced_makes_room_or_is_undone() -> None:
    bench = Bench(size=300)
    bench.engine.sizes["big"] = 250
    await bench.use("a", "b")
    await bench.use("big")
    assert (bench.resident, bench.residency.device.used_bytes) == (["big"], 250)

    bench.engine.sizes["huge"] = 301
    with pytest.raises(NoRoom):
        await bench.use("huge")
    assert bench.residency.device.used_bytes == 0
    assert bench.engine.log[-2:] == ["load huge", "unload huge"]


async def test_the_next_load_is_granted_what_the_last_one_came_to() -> None:
    bench = Bench(size=300)
    bench.engine.sizes["big"] = 250
    await bench.use("big", "a", "b")
    bench.engine.log.clear()

    await bench.use("big")

    assert bench.engine.log == ["unload a", "unload b", "load big"]


async def test_preloading_takes_free_room_only() -> None:
    bench = Bench(size=200)
    await bench.use("a")

    assert await bench.residency.preload(bench.wanted("b"))
    assert await bench.residency.preload(bench.wanted("b"))
    assert not await bench.residency.preload(bench.wanted("c"))
    await bench.use("b")

    assert bench.resident == ["b", "a"]
    tally = bench.residency.device.tally
    assert (bench.residency.preloads, tally.hits, tally.misses, tally.evictions) == (1, 1, 1, 0)


async def test_what_was_idle_for_long_is_dropped_unless_pinned_or_used() -> None:
    bench = Bench(size=1000)
    await bench.use("old")
    async with bench.residency.hold(bench.wanted("pinned", pinned=True)):
        pass
    async with bench.holding("used"):
        bench.clock.advance(601)
        await bench.use("new")

        assert await bench.residency.drop_idle(600) == 100
        assert sorted(bench.resident) == ["new", "pinned", "used"]
        assert await bench.residency.drop_idle(0) == 100
        assert sorted(bench.resident) == ["pinned", "used"]


async def test_a_load_that_the_engine_did_not_survive_is_not_resident() -> None:
    bench = Bench()
    bench.engine.on_load = lambda _: bench.residency.lost()

    with pytest.raises(Unavailable):
        await bench.use("a")

    assert bench.resident == []


async def test_a_thousand_adapters_share_a_budget_of_ten() -> None:
    bench = Bench(size=1000, policy="cost")
    rng = random.Random(5)
    names = [f"a{number}" for number in range(1000)]
    weights = [1 / (rank + 1) for rank in range(1000)]
    most = 0

    async def client(asked: list[str]) -> None:
        nonlocal most
        for name in asked:
            async with bench.residency.hold(bench.wanted(name)):
                most = max(most, bench.engine.used)
                await asyncio.sleep(0)

    await asyncio.gather(*(client(names[part::8] + rng.choices(names, weights, k=200)) for part in range(8)))

    tally = bench.residency.device.tally
    assert set(bench.sources) == set(names)
    assert most <= 1000
    assert bench.residency.device.used_bytes == bench.engine.used <= 1000
    assert tally.misses == tally.evictions + len(bench.resident) == len(bench.sources)
    assert len(bench.residency.residents()) == 10
