"""Bases under one byte budget: who leaves, who stays, who waits."""

import asyncio
from collections.abc import Awaitable
from typing import Any

import pytest

from catena.adapters.core.bases import BaseLoads
from catena.adapters.core.errors import NoRoom
from catena.adapters.core.records import BaseRecord
from catena.adapters.core.work import BaseFacts, BaseSource, Weights
from catena.kit.clock import ManualClock
from catena.kit.config import ModelType
from catena.kit.errors import Invalid, Unavailable

SIZES = {"a": 100, "b": 100, "c": 150, "huge": 1000}


class Engine:
    """Refuses what correct loads never ask: a second load of what is held, and freeing what is used."""

    def __init__(self) -> None:
        self.held: dict[str, int] = {}
        self.log: list[str] = []
        self.exact: dict[str, int] = {}
        self.used: list[str] = []
        self.failure: Exception | None = None
        self.open = asyncio.Event()
        self.open.set()

    async def load_base(self, base: BaseSource) -> BaseFacts:
        assert base.name not in self.held
        self.log.append(f"+{base.name}")
        await self.open.wait()
        if self.failure is not None:
            failure, self.failure = self.failure, None
            raise failure
        self.held[base.name] = self.exact.get(base.name, SIZES[base.name])
        return BaseFacts(bytes=self.held[base.name], context_tokens=64, dtype="float32")

    async def unload(self, weights: Weights) -> int:
        assert not weights.adapter and weights.base not in self.used
        await asyncio.sleep(0)
        self.log.append(f"-{weights.base}")
        return self.held.pop(weights.base, 0)


class Files:
    def names(self) -> list[str]:
        return list(SIZES)

    def kind(self, name: str) -> ModelType:
        return "chat"

    def known(self, name: str) -> BaseRecord | None:
        return None

    def problem(self, name: str) -> str:
        return ""

    async def get(self, name: str) -> BaseRecord:
        told: dict[str, Any] = {"architecture": "L", "parameters": 1, "context_tokens": 64, "dtype": "F32"}
        return BaseRecord(name=name, folder=f"/{name}", digest=f"d-{name}", bytes=SIZES[name], **told)

    async def check(self, name: str) -> BaseRecord:
        return await self.get(name)


class Adapted:
    def __init__(self) -> None:
        self.pinned: set[str] = set()
        self.cleared: list[str] = []

    def pins(self, base: str) -> bool:
        return base in self.pinned

    async def clear(self, base: str) -> None:
        self.cleared.append(base)


class Bench:
    def __init__(self, budget: int = 250) -> None:
        self.engine, self.adapted, self.clock = Engine(), Adapted(), ManualClock()
        self.loads = BaseLoads(
            Files(),  # type: ignore[arg-type]
            self.engine,  # type: ignore[arg-type]
            self.adapted,
            clock=self.clock,
            budget_bytes=budget,
        )

    async def load(self, *names: str) -> None:
        for name in names:
            self.clock.advance(1)
            await self.loads.load(name)

    def use(self, name: str, *, beside: str = "") -> tuple[asyncio.Task[None], asyncio.Event]:
        """Hold a base, and then another beside it, until told to let go."""
        release = asyncio.Event()

        async def held() -> None:
            async with self.loads.hold(name):
                self.engine.used.append(name)
                try:
                    if beside:
                        async with self.loads.hold(beside, beside=True):
                            await release.wait()
                    else:
                        await release.wait()
                finally:
                    self.engine.used.remove(name)

        return asyncio.create_task(held()), release


async def settled() -> None:
    for _ in range(50):
        await asyncio.sleep(0)


async def soon(work: Awaitable[Any]) -> Any:
    async with asyncio.timeout(30):
        return await work


async def test_the_base_used_longest_ago_leaves_with_its_adapters_and_comes_back_when_asked_for() -> None:
    bench = Bench()
    await bench.load("a", "b", "a", "c")

    assert bench.engine.log == ["+a", "+b", "-b", "+c"]
    assert bench.adapted.cleared == ["b"]
    assert bench.loads.used_bytes == sum(bench.engine.held.values()) == 250

    await bench.load("b")
    assert bench.engine.log[4:] == ["-a", "+b"]


async def test_without_a_budget_every_base_stays() -> None:
    bench = Bench(budget=0)

    await bench.load("a", "b", "c", "huge")

    assert len(bench.engine.held) == 4


async def test_a_base_in_use_or_with_a_pinned_adapter_stays() -> None:
    bench = Bench()
    bench.adapted.pinned.add("a")
    await bench.load("a", "b")
    using, release = bench.use("b")
    await settled()

    waiting = asyncio.create_task(bench.loads.load("c"))
    await settled()
    assert not waiting.done() and set(bench.engine.held) == {"a", "b"}
    release.set()
    await soon(waiting)

    assert set(bench.engine.held) == {"a", "c"}
    await using


async def test_where_everything_is_pinned_the_refusal_names_the_cure_at_once() -> None:
    bench = Bench()
    bench.adapted.pinned |= {"a", "b"}
    await bench.load("a", "b")

    with pytest.raises(NoRoom, match=r"unpin.*base_budget_bytes") as caught:
        await soon(bench.loads.load("c"))

    assert caught.value.retry_after_s > 0
    assert set(bench.engine.held) == {"a", "b"}


async def test_a_base_larger_than_the_budget_is_refused_and_nobody_leaves_for_it() -> None:
    bench = Bench()
    await bench.load("a")

    with pytest.raises(NoRoom, match="raise adapters"):
        await bench.load("huge")

    assert set(bench.engine.held) == {"a"}


async def test_one_that_is_always_in_use_gives_another_its_turn() -> None:
    bench = Bench(budget=150)
    first, release = bench.use("a")
    await settled()
    waiting = asyncio.create_task(bench.loads.load("c"))
    await settled()
    second, again = bench.use("a")
    await settled()
    assert bench.engine.used == ["a"]

    release.set()
    await soon(waiting)
    await settled()

    assert bench.engine.log == ["+a", "-a", "+c", "-c", "+a"]
    again.set()
    await soon(asyncio.gather(first, second))


async def test_two_that_hold_what_the_other_wants_do_not_wait_for_ever() -> None:
    bench = Bench(budget=200)
    bench.engine.exact = {"c": 100}
    one, _ = bench.use("a", beside="c")
    two, _ = bench.use("b", beside="c")

    results = await soon(asyncio.gather(one, two, return_exceptions=True))

    assert [type(result) for result in results] == [NoRoom, NoRoom]
    assert bench.engine.used == []
    await bench.load("c")


async def test_who_holds_a_base_joins_one_that_others_wait_for() -> None:
    bench = Bench(budget=200)
    await bench.load("a", "b")
    using, release = bench.use("a")
    await settled()
    waiting = asyncio.create_task(bench.loads.load("c"))
    other, end = bench.use("b", beside="a")
    await settled()
    release.set()
    end.set()

    await soon(asyncio.gather(using, other, waiting))
    assert "c" in bench.engine.held


async def test_one_load_serves_all_who_wait_and_outlives_any_of_them() -> None:
    bench = Bench()
    bench.engine.open.clear()
    waiting = [asyncio.create_task(bench.loads.load("a")) for _ in range(3)]
    await settled()
    waiting[0].cancel()
    await settled()
    bench.engine.open.set()

    results = await asyncio.gather(*waiting, return_exceptions=True)

    assert bench.engine.log == ["+a"]
    assert [type(result).__name__ for result in results] == ["CancelledError", "BaseFacts", "BaseFacts"]


async def test_whom_nobody_waits_for_makes_no_room() -> None:
    bench = Bench(budget=150)
    using, release = bench.use("a")
    await settled()
    waiting = asyncio.create_task(bench.loads.load("c"))
    await settled()
    waiting.cancel()
    await settled()
    release.set()
    await using
    await settled()

    assert bench.engine.log == ["+a"]
    assert bench.loads.used_bytes == 100


async def test_one_that_comes_to_more_than_its_files_waits_for_that_much_room_the_next_time() -> None:
    bench = Bench()
    bench.engine.exact = {"b": 200}
    using, release = bench.use("a")
    await settled()

    with pytest.raises(NoRoom):
        await bench.load("b")
    assert bench.engine.held == {"a": 100}
    release.set()
    await using
    await bench.load("b")

    assert bench.engine.held == {"b": 200}
    assert bench.loads.used_bytes == 200


async def test_a_failed_load_leaves_nothing_and_is_told_until_it_succeeds() -> None:
    bench = Bench()
    bench.engine.failure = Invalid("no such architecture", code="bad")
    with pytest.raises(Invalid):
        await bench.load("a")
    told = {state.name: state.problem for state in bench.loads.states()}
    assert (bench.loads.used_bytes, told["a"]) == (0, "no such architecture")

    await bench.load("a")
    assert not any(state.problem for state in bench.loads.states())
    bench.engine.failure = Unavailable("lost")
    with pytest.raises(Unavailable):
        await bench.load("b")
    assert not any(state.problem for state in bench.loads.states())


async def test_a_lost_engine_holds_nothing_and_its_users_go_on() -> None:
    bench = Bench()
    using, release = bench.use("a")
    await settled()
    bench.engine.held.clear()
    bench.loads.lost()
    assert (bench.loads.used_bytes, bench.loads.has("a")) == (0, False)

    await bench.load("a")
    release.set()
    await using

    assert bench.loads.used_bytes == 100
    assert bench.loads.has("a")


async def test_a_load_that_an_engine_was_lost_under_fails() -> None:
    bench = Bench()
    bench.engine.open.clear()
    waiting = asyncio.create_task(bench.loads.load("a"))
    await settled()
    bench.loads.lost()
    bench.engine.open.set()

    with pytest.raises(Unavailable, match="ask again"):
        await waiting

    assert bench.loads.used_bytes == 0


async def test_unloading_waits_for_the_last_user_and_admits_nobody_new() -> None:
    bench = Bench()
    using, release = bench.use("a")
    await settled()
    unloading = asyncio.create_task(bench.loads.unload("a"))
    newcomer, go = bench.use("a")
    await settled()
    assert bench.engine.used == ["a"] and not unloading.done()

    release.set()
    assert await soon(unloading) == 100
    await settled()
    go.set()
    await soon(asyncio.gather(using, newcomer))

    assert bench.engine.log == ["+a", "-a", "+a"]
    assert await bench.loads.unload("b") == 0


async def test_warming_loads_what_fits_side_by_side() -> None:
    bench = Bench()

    failures = await bench.loads.load_all()

    assert failures == []
    assert set(bench.engine.held) == {"a", "b"}
