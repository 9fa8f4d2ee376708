"""Plain names on both databases, and on one that was made before there were any."""

from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import pytest
import sqlalchemy as sa

from catena.adapters.core.serving import NameTaken, PlainName, UnknownName
from catena.adapters.drivers.names import SqlNames
from catena.adapters.drivers.registry import SqlRegistry
from catena.adapters.drivers.tables import FINDINGS, KNOWN_BASES, METADATA, MIGRATIONS, NAMES
from catena.api.events.v1 import events_pb2
from catena.kit.clock import still_world
from catena.kit.outbox import Outbox
from catena.kit.store import Store, open_store
from catena.kit.testing import MemoryBus, eventually, postgres, running, sqlite_url
from tests.contract.adapters.test_registry import CODE


class Bench:
    def __init__(self, store: Store) -> None:
        world = still_world()
        self.bus = MemoryBus()
        self.outbox = Outbox(store, self.bus, world)
        self.registry = SqlRegistry(store, self.outbox, world, replica="r1")
        self.names = SqlNames(store, self.outbox, self.registry, world.clock)

    async def named(self, name: str, *, tenant: str = "acme", version: str = "1") -> PlainName:
        record = await self.registry.add(tenant, replace(CODE, version=version, digest=version * 64))
        return PlainName(tenant=tenant, name=name, path=f"/loras/{version}", record=record, created_s=5.0)


@pytest.fixture(params=["sqlite", "postgres", "older"])
async def bench(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Bench]:
    if request.param == "postgres":
        async with postgres() as url, open_store(url, METADATA, room="adapters", migrations=MIGRATIONS) as store:
            yield Bench(store)
        return
    if request.param == "older":
        before = sa.MetaData()
        for table in METADATA.tables.values():
            if table not in (NAMES, FINDINGS, KNOWN_BASES):
                table.to_metadata(before)
        async with open_store(sqlite_url(tmp_path), before, room="adapters", migrations=MIGRATIONS[:1]):
            pass
    async with open_store(sqlite_url(tmp_path), METADATA, room="adapters", migrations=MIGRATIONS) as store:
        yield Bench(store)


async def test_a_name_is_kept_found_given_anew_and_forgotten(bench: Bench) -> None:
    first, second = await bench.named("plain"), await bench.named("plain", version="2")
    await bench.names.put(first, replace=False)
    with pytest.raises(NameTaken):
        await bench.names.put(second, replace=False)
    assert await bench.names.find("acme", "plain") == first
    assert await bench.names.serves(first.record)

    await bench.names.put(second, replace=True)

    assert not await bench.names.serves(first.record)
    assert await bench.names.of_models() == {("acme", "base@code:2"): ["plain"]}
    await bench.names.drop(second)
    await bench.names.drop(second)
    with pytest.raises(UnknownName):
        await bench.names.find("acme", "plain")
    async with running(bench.outbox.run()):
        await eventually(lambda: len(bench.bus.events) == 5)
    told = [events_pb2.AdapterServed.FromString(e.data) for e in bench.bus.events if e.type.endswith(".served")]
    assert [(one.name, one.model) for one in told] == [
        ("plain", "base@code:1"), ("plain", "base@code:2"), ("plain", "")
    ]  # fmt: skip


async def test_a_tenant_sees_its_names_before_the_shared_ones_and_nobody_elses(bench: Bench) -> None:
    for tenant, version in (("acme", "1"), ("shared", "2"), ("other", "3")):
        await bench.names.put(await bench.named("plain", tenant=tenant, version=version), replace=False)
    await bench.names.put(await bench.named("more", tenant="shared", version="4"), replace=False)

    seen = {(one.name, one.record.model) for one in await bench.names.seen_by("acme")}

    assert seen == {("plain", "base@code:1"), ("more", "base@code:4")}
    assert [one.tenant for one in await bench.names.seen_by("third")] == ["shared", "shared"]


async def test_a_withdrawn_version_is_asked_for_by_no_name(bench: Bench) -> None:
    await bench.names.put(await bench.named("plain"), replace=False)
    await bench.registry.withdraw("acme", "base", "code", "1", "worse")
    assert not await bench.names.seen_by("acme")
