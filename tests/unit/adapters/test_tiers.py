"""Device and host memory: what leaves the one for the other, what comes back, and what must not."""

import asyncio

import pytest

from catena.adapters.core.pressure import Bounds, Pressure
from catena.adapters.core.records import Stored
from catena.adapters.core.work import Weights
from catena.kit.errors import Invalid, Unavailable
from tests.unit.adapters.test_residency import Bench


def weights(name: str) -> Weights:
    return Weights(base="base", adapter=name)


def kept(bench: Bench) -> list[str]:
    return [resident.model for resident in bench.residency.host.residents()]


async def test_what_is_evicted_comes_back_without_passing_the_gate_again() -> None:
    bench = Bench(size=100, host=100)
    await bench.use("a", "b")
    assert (bench.resident, kept(bench)) == (["b"], ["a"])
    bench.engine.log.clear()

    await bench.use("a")

    assert (bench.resident, kept(bench)) == (["a"], [])
    # Its place was still its own while it came back, so that there was none for `b`.
    assert bench.engine.log == ["unload b", "restore a"]
    assert bench.sources == ["a", "b"]


async def test_they_take_turns_where_both_tiers_hold_one_more_than_is_in_use() -> None:
    bench = Bench(size=100, host=200)
    await bench.use("a", "b", "a", "b", "a", "b")

    assert bench.sources == ["a", "b"]
    device, host, disk = bench.residency.tiers(Stored(count=7, bytes=70))
    assert (device.tally.hits, device.tally.misses, device.tally.evictions) == (0, 6, 5)
    assert (host.tally.hits, host.tally.misses, host.tally.evictions) == (4, 2, 0)
    assert (disk.tally.hits, disk.tally.misses, disk.adapters, disk.bytes) == (2, 0, 7, 70)
    assert (device.bytes, host.bytes) == (100, 100)


async def test_without_a_budget_nothing_is_kept() -> None:
    bench = Bench(size=100)
    await bench.use("a", "b", "a")

    assert kept(bench) == []
    assert bench.sources == ["a", "b", "a"]
    host = bench.residency.host.tally
    assert (host.hits, host.misses, host.evictions) == (0, 0, 0)


async def test_the_coldest_leaves_host_memory_first() -> None:
    bench = Bench(size=100, host=200)
    await bench.use("a", "b", "c", "d")

    assert kept(bench) == ["b", "c"]
    assert bench.engine.log[-4:] == ["load c", "unload a", "stow c", "load d"]
    assert bench.residency.host.tally.evictions == 1


async def test_what_is_worth_less_than_what_would_have_to_go_for_it_is_not_kept() -> None:
    bench = Bench(size=100, host=100, policy="cost")
    bench.engine.on_load = lambda _: bench.clock.advance(1)
    await bench.use(*["hot"] * 5, "once", "cold")

    assert (bench.resident, kept(bench)) == (["cold"], ["hot"])


async def test_what_nobody_vouches_for_any_more_passes_the_gate_again() -> None:
    bench = Bench(size=100, host=100)
    await bench.use("a", "b")
    bench.disowned.add("a")

    await bench.use("a")

    assert bench.sources == ["a", "b", "a"]
    assert "restore a" not in bench.engine.log
    assert bench.residency.host.tally.misses == 3


async def test_what_the_engine_cannot_bring_back_is_read_from_disk() -> None:
    bench = Bench(size=100, host=100)
    await bench.use("a", "b")
    bench.engine.failure = Unavailable("no device memory")

    await bench.use("a")

    assert bench.sources == ["a", "b", "a"]
    assert bench.resident == ["a"]
    assert bench.engine.stowed.keys() <= {weights("b")}


async def test_a_withdrawn_adapter_leaves_host_memory_even_on_its_way_there() -> None:
    bench = Bench(size=100, host=200)
    await bench.use("a", "b")
    await bench.residency.dismiss(weights("a"))
    assert kept(bench) == []

    bench.engine.gate.clear()
    using = asyncio.create_task(bench.use("c"))
    for _ in range(20):
        await asyncio.sleep(0)
    assert bench.engine.log[-1] == "stow b"
    await bench.residency.dismiss(weights("b"))
    bench.engine.gate.set()
    await using

    assert kept(bench) == []
    assert bench.engine.stowed == {}


async def test_unloading_frees_both_tiers() -> None:
    bench = Bench(size=100, host=200)
    await bench.use("a", "b")

    assert await bench.residency.unload(weights("a")) == 100
    assert await bench.residency.unload(weights("a")) == 0
    bench.engine.gate.clear()
    using = asyncio.create_task(bench.use("c"))
    for _ in range(20):
        await asyncio.sleep(0)
    assert bench.engine.log[-1] == "stow b"
    unloading = asyncio.create_task(bench.residency.unload(weights("b")))
    await asyncio.sleep(0)
    bench.engine.gate.set()
    await using

    assert await unloading == 100
    assert (bench.resident, kept(bench)) == (["c"], [])


async def test_who_wants_what_is_on_its_way_out_of_host_memory_reads_it_anew() -> None:
    bench = Bench(size=100, host=200)
    await bench.use("a", "b")
    bench.engine.gate.clear()
    unloading = asyncio.create_task(bench.residency.unload(weights("a")))
    await asyncio.sleep(0)
    using = asyncio.create_task(bench.use("a"))
    for _ in range(20):
        await asyncio.sleep(0)
    bench.engine.gate.set()
    await asyncio.gather(unloading, using)

    assert bench.sources == ["a", "b", "a"]
    assert (bench.resident, kept(bench)) == (["a"], ["b"])


async def test_a_place_is_not_kept_for_what_an_engine_lost_meanwhile() -> None:
    bench = Bench(size=100, host=100)
    await bench.use("a", "b")
    bench.engine.gate.clear()
    using = asyncio.create_task(bench.use("c"))
    for _ in range(20):
        await asyncio.sleep(0)
    assert bench.engine.log[-1] == "unload a"
    bench.engine.loaded.clear()
    bench.engine.held.clear()
    bench.residency.lost()
    bench.engine.gate.set()
    await using

    assert (bench.resident, kept(bench), bench.residency.host.used_bytes) == (["c"], [], 0)
    assert "stow b" not in bench.engine.log


async def test_a_lost_engine_leaves_neither_tier_with_anything() -> None:
    bench = Bench(size=100, host=100)
    await bench.use("a", "b")
    bench.engine.loaded.clear()
    bench.engine.held.clear()
    bench.engine.stowed.clear()

    bench.residency.lost()

    assert (bench.resident, kept(bench), bench.residency.host.used_bytes) == ([], [], 0)
    assert [(change.model, change.tier) for change in bench.changes] == [
        ("a", "device"), ("a", "host"), ("b", "device"), ("b", ""), ("a", ""),
    ]  # fmt: skip
    await bench.use("a")
    assert bench.sources == ["a", "b", "a"]


async def test_each_phase_of_a_load_is_timed() -> None:
    bench = Bench(size=100, host=100)
    wanted = bench.wanted("a")
    ready = wanted.source

    async def slow() -> object:
        bench.clock.advance(2)
        return await ready()

    object.__setattr__(wanted, "source", slow)
    async with bench.residency.hold(wanted):
        pass
    await bench.use("b", "a")

    disk, _, host = bench.residency.loads
    assert (disk.tier, disk.seconds) == ("disk", {"gate": 2.0, "room": 0.0, "read": 0.25, "copy": 0.5, "probe": 0.125})
    assert (host.tier, host.seconds) == ("host", {"gate": 0.0, "room": 0.0, "copy": 0.5})


async def test_what_the_gate_refuses_is_a_miss_of_the_disk() -> None:
    bench = Bench()
    wanted = bench.wanted("a")

    async def refused() -> object:
        raise Invalid("tampered")

    object.__setattr__(wanted, "source", refused)
    with pytest.raises(Invalid):
        async with bench.residency.hold(wanted):
            pass

    disk = bench.residency.tiers(Stored())[2]
    assert (disk.tally.hits, disk.tally.misses) == (0, 1)


@pytest.mark.parametrize(
    ("unified", "free", "device", "host"),
    [
        (True, 50, ["d"], ["a", "b", "c"]),
        (True, 49, ["d"], ["b", "c"]),
        (False, -151, ["d"], []),
        (True, -251, [], []),
    ],
    ids=["enough", "host memory gives first", "only host memory is the machine's", "the device is the machine's too"],
)
async def test_a_machine_that_runs_short_takes_host_memory_first(
    unified: bool, free: int, device: list[str], host: list[str]
) -> None:
    bench = Bench(size=100, host=300)
    await bench.use("a", "b", "c", "d")

    def left() -> int:
        """What was free, and what was freed since."""
        return free + 400 - bench.engine.used - sum(bench.engine.stowed.values())

    bounds = Bounds(critical=1.0, reserve_bytes=50)
    await Pressure(bench.residency, bounds=bounds, free=left, unified=unified).relieve()

    assert (bench.resident, kept(bench)) == (device, host)


async def test_what_is_long_idle_goes_from_a_full_device_to_host_memory() -> None:
    bench = Bench(size=100, host=100)
    await bench.use("a")
    bench.clock.advance(601)

    freed = await Pressure(bench.residency, bounds=Bounds(), free=lambda: None, unified=False).relieve()

    assert (freed, bench.resident, kept(bench)) == (100, [], ["a"])


async def test_what_a_load_waited_behind_others_and_what_is_proven_once_is_not_what_it_costs() -> None:
    bench = Bench()
    bench.engine.on_load = lambda _: bench.clock.advance(60)

    await bench.use("a")

    assert bench.residency.history.reload_s(weights("a"), 100) == 0.25 + 0.5
