"""The registry on both databases."""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import pytest
import sqlalchemy as sa

from catena.adapters.core.errors import AdapterWithdrawn, AliasMoved, UnknownAdapter, VersionTaken
from catena.adapters.core.records import Admitted, Use
from catena.adapters.drivers.registry import SqlRegistry
from catena.adapters.drivers.tables import FALLBACKS, FINDINGS, KNOWN_BASES, METADATA, MIGRATIONS, NAMES
from catena.api.events.v1 import events_pb2
from catena.kit.clock import ManualClock, still_world
from catena.kit.errors import Invalid
from catena.kit.outbox import Outbox
from catena.kit.store import Store, open_store
from catena.kit.testing import MemoryBus, eventually, postgres, running, sqlite_url

CODE = Admitted(
    name="code",
    version="1",
    digest="1" * 64,
    base="base",
    base_digest="b" * 64,
    bytes=1 << 33,
    rank=8,
    tasks=("code", "review"),
    metrics={"accuracy": 0.5},
    training_rows=9,
    signer="trainer",
)


class Bench:
    def __init__(self, store: Store) -> None:
        self.world = still_world()
        self.bus = MemoryBus()
        self.outbox = Outbox(store, self.bus, self.world)
        self.registry = SqlRegistry(store, self.outbox, self.world, replica="r1")

    async def told(self, count: int) -> list[str]:
        async def all_there() -> bool:
            return len(self.bus.events) >= count

        async with running(self.outbox.run()):
            await eventually(all_there)
        return [event.type.removeprefix("adapters.") for event in self.bus.events]


@pytest.fixture(params=["sqlite", "postgres"])
async def bench(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Bench]:
    if request.param == "sqlite":
        async with open_store(sqlite_url(tmp_path), METADATA, room="adapters", migrations=MIGRATIONS) as store:
            yield Bench(store)
    else:
        async with postgres() as url, open_store(url, METADATA, room="adapters", migrations=MIGRATIONS) as store:
            yield Bench(store)


async def test_a_version_is_found_as_it_was_registered(bench: Bench) -> None:
    added = await bench.registry.add("acme", CODE)

    found = await bench.registry.find("acme", "base", "code", "1")

    assert found == added
    assert (found.model, found.bytes, found.tasks, found.metrics) == (
        "base@code:1", 1 << 33, ("code", "review"), {"accuracy": 0.5},
    )  # fmt: skip
    assert found.created_s == bench.world.clock.now()


async def test_registering_twice_is_harmless_and_another_digest_a_conflict(bench: Bench) -> None:
    await bench.registry.add("acme", CODE)
    await bench.registry.add("acme", CODE)
    await bench.registry.add("other", replace(CODE, digest="2" * 64))

    with pytest.raises(VersionTaken):
        await bench.registry.add("acme", replace(CODE, digest="2" * 64))
    assert await bench.told(2) == ["adapter.registered", "adapter.registered"]


async def test_own_adapters_come_before_shared_ones(bench: Bench) -> None:
    await bench.registry.add("shared", CODE)
    assert (await bench.registry.find("acme", "base", "code", "1")).tenant == "shared"

    await bench.registry.add("acme", replace(CODE, digest="2" * 64))

    assert (await bench.registry.find("acme", "base", "code", "1")).digest == "2" * 64
    assert (await bench.registry.find("other", "base", "code", "1")).digest == "1" * 64


async def test_unknown_names_say_what_there_is(bench: Bench) -> None:
    await bench.registry.add("acme", CODE)

    with pytest.raises(UnknownAdapter, match="it has versions 1"):
        await bench.registry.find("acme", "base", "code", "stable")
    with pytest.raises(UnknownAdapter, match="no adapter"):
        await bench.registry.find("stranger", "base", "code", "1")


async def test_an_alias_moves_only_from_where_it_was_seen(bench: Bench) -> None:
    registry, second = bench.registry, replace(CODE, version="2", digest="2" * 64)
    for admitted in (CODE, second):
        await registry.add("acme", admitted)
    await registry.set_alias("acme", "base", "code", "stable", version="1", expected="")

    with pytest.raises(AliasMoved):
        await registry.set_alias("acme", "base", "code", "stable", version="2", expected="")
    with pytest.raises(AliasMoved):
        await registry.set_alias("acme", "base", "code", "stable", version="", expected=second.digest)
    moved = await registry.set_alias("acme", "base", "code", "stable", version="2", expected=CODE.digest)
    again = await registry.set_alias("acme", "base", "code", "stable", version="2", expected=CODE.digest)

    assert moved == again
    assert (await registry.find("acme", "base", "code", "stable")).version == "2"
    assert (await registry.find("acme", "base", "code", "2")).aliases == ("stable",)
    assert (await registry.find("acme", "base", "code", "1")).aliases == ()
    assert await registry.set_alias("acme", "base", "code", "stable", version="", expected=second.digest) is None
    with pytest.raises(UnknownAdapter):
        await registry.find("acme", "base", "code", "stable")
    told = await bench.told(5)
    assert told.count("adapter.aliased") == 3
    generations = [
        events_pb2.AdapterAliased.FromString(event.data).generation
        for event in bench.bus.events
        if event.type.endswith("aliased")
    ]
    assert generations == sorted(set(generations))


async def test_of_many_who_move_one_alias_one_wins(bench: Bench) -> None:
    for version in range(1, 9):
        await bench.registry.add("acme", replace(CODE, version=str(version), digest=f"{version}" * 64))

    results = await asyncio.gather(
        *(
            bench.registry.set_alias("acme", "base", "code", "stable", version=str(version), expected="")
            for version in range(1, 9)
        ),
        return_exceptions=True,
    )

    won = [result for result in results if not isinstance(result, BaseException)]
    assert len(won) == 1
    assert all(isinstance(result, AliasMoved) for result in results if isinstance(result, BaseException))
    assert await bench.registry.find("acme", "base", "code", "stable") == won[0]


async def test_withdrawing_takes_the_aliases_along_and_is_final(bench: Bench) -> None:
    registry = bench.registry
    await registry.add("acme", CODE)
    await registry.set_alias("acme", "base", "code", "stable", version="1", expected="")

    for _ in range(2):
        withdrawn = await registry.withdraw("acme", "base", "code", "1", "worse")

    assert (withdrawn.status, withdrawn.aliases) == ("withdrawn", ())
    assert (await registry.find("acme", "base", "code", "1")).status == "withdrawn"
    for attempt in (
        registry.set_alias("acme", "base", "code", "stable", version="1", expected=""),
        registry.add("acme", CODE),
    ):
        with pytest.raises(AdapterWithdrawn):
            await attempt
    with pytest.raises(UnknownAdapter):
        await registry.withdraw("acme", "base", "code", "9", "")
    told = await bench.told(4)
    assert told == ["adapter.registered", "adapter.aliased", "adapter.withdrawn", "adapter.aliased"]


async def test_pages_hold_everything_once(bench: Bench) -> None:
    for name in ("b", "a", "c", "d"):
        tasks = ("odd",) if name in "ac" else ("even",)
        await bench.registry.add("acme", replace(CODE, name=name, tasks=tasks))
    await bench.registry.add("shared", replace(CODE, name="a"))
    await bench.registry.add("stranger", replace(CODE, name="x"))

    async def names(task: str, size: int) -> list[str]:
        found, after = [], ""
        while True:
            page, after = await bench.registry.page("acme", base="base", task=task, after=after, size=size)
            assert len(page) <= size
            found += [record.name for record in page]
            if not after:
                return found

    assert await names("", 2) == ["a", "a", "b", "c", "d"]
    assert await names("odd", 1) == ["a", "c"]
    assert await names("even", 10) == ["b", "d"]
    with pytest.raises(Invalid):
        await bench.registry.page("acme", base="", task="", after="odd token", size=1)


async def test_uses_add_up_and_pins_stay(bench: Bench) -> None:
    registry = bench.registry
    record = await registry.add("acme", CODE)
    use = Use(tenant="acme", base="base", name="code", version="1")
    await registry.count_uses({use: 2})
    await registry.count_uses({use: 3})
    await registry.set_pinned(record, True)

    page, _ = await registry.page("acme", base="", task="", after="", size=10)

    assert (page[0].uses, page[0].last_used_s) == (5, bench.world.clock.now())
    assert [pinned.model for pinned in await registry.pinned()] == ["base@code:1"]


async def test_residency_is_told(bench: Bench) -> None:
    await bench.registry.tell_residency("acme", "base@code:1", "device", 42)

    assert await bench.told(1) == ["residency.changed"]
    told = events_pb2.ResidencyChanged.FromString(bench.bus.events[0].data)
    assert (told.replica, told.model, told.tier, told.bytes) == ("r1", "base@code:1", "device", 42)


async def test_a_name_that_is_not_there_is_known_not_to_be_for_a_while(bench: Bench, tmp_path: Path) -> None:
    elsewhere = SqlRegistry(bench.registry._store, bench.outbox, bench.world, replica="r2", unknown_s=5.0)
    clock = bench.world.clock
    assert isinstance(clock, ManualClock)
    with pytest.raises(UnknownAdapter):
        await elsewhere.find("acme", "base", "code", "1")

    await bench.registry.add("acme", CODE)

    clock.advance(4.9)
    with pytest.raises(UnknownAdapter, match="no adapter"):
        await elsewhere.find("acme", "base", "code", "1")
    clock.advance(0.2)
    assert (await elsewhere.find("acme", "base", "code", "1")).digest == CODE.digest
    assert (await bench.registry.find("acme", "base", "code", "1")).digest == CODE.digest


async def test_what_is_registered_here_is_known_here_at_once(bench: Bench) -> None:
    with pytest.raises(UnknownAdapter):
        await bench.registry.find("acme", "base", "code", "1")

    await bench.registry.add("acme", CODE)

    assert (await bench.registry.find("acme", "base", "code", "1")).version == "1"


async def test_the_stable_version_of_each_adapter_is_listed_the_tenants_own_first(bench: Bench) -> None:
    registry = bench.registry
    for tenant, name, version in (("acme", "code", "1"), ("acme", "code", "2"), ("shared", "code", "9")):
        await registry.add(tenant, replace(CODE, name=name, version=version))
    await registry.add("shared", replace(CODE, name="prose"))
    await registry.add("shared", replace(CODE, name="unstable"))
    assert await registry.stable("acme", "base") == []

    await registry.set_alias("acme", "base", "code", "stable", version="2", expected="")
    await registry.set_alias("shared", "base", "code", "stable", version="9", expected="")
    await registry.set_alias("shared", "base", "prose", "stable", version="1", expected="")

    assert [r.model for r in await registry.stable("acme", "base")] == ["base@code:2", "base@prose:1"]
    assert [r.model for r in await registry.stable("other", "base")] == ["base@code:9", "base@prose:1"]
    versions = await registry.versions("acme", "base", "code")
    assert [(r.tenant, r.version) for r in versions] == [("acme", "1"), ("acme", "2"), ("shared", "9")]
    assert versions[1].aliases == ("stable",)


async def test_fallbacks_are_the_tenants_own_or_those_of_all(bench: Bench) -> None:
    registry = bench.registry
    assert list(await registry.fallbacks("acme", "base", "code")) == []

    await registry.set_fallbacks("shared", "base", "code", ["base"])
    assert list(await registry.fallbacks("acme", "base", "code")) == ["base"]
    await registry.set_fallbacks("acme", "base", "code", ["base@a", "base@b"])
    await registry.set_fallbacks("acme", "base", "code", ["base@b"])

    assert list(await registry.fallbacks("acme", "base", "code")) == ["base@b"]
    assert list(await registry.fallbacks("other", "base", "code")) == ["base"]
    await registry.set_fallbacks("acme", "base", "code", [])
    assert list(await registry.fallbacks("acme", "base", "code")) == ["base"]


async def test_a_database_from_before_fallbacks_gains_their_table(tmp_path: Path) -> None:
    url = sqlite_url(tmp_path)
    before = sa.MetaData()
    for table in METADATA.tables.values():
        if table not in (FALLBACKS, NAMES, FINDINGS, KNOWN_BASES):
            table.to_metadata(before)
    async with open_store(url, before, room="adapters") as store:
        await SqlRegistry(store, Outbox(store, MemoryBus(), still_world()), still_world(), replica="r").add("t", CODE)

    async with open_store(url, METADATA, room="adapters", migrations=MIGRATIONS) as store:
        registry = SqlRegistry(store, Outbox(store, MemoryBus(), still_world()), still_world(), replica="r")
        await registry.set_fallbacks("t", "base", "code", ["base"])

        assert list(await registry.fallbacks("t", "base", "code")) == ["base"]
        assert (await registry.find("t", "base", "code", "1")).digest == CODE.digest
