"""What is kept of remote registries and of bases, on both databases."""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import pytest

from catena.adapters.core.updates import Finding
from catena.adapters.drivers.findings import SqlFindings
from catena.adapters.drivers.known_bases import SqlKnownBases
from catena.adapters.drivers.tables import METADATA, MIGRATIONS
from catena.api.events.v1 import events_pb2
from catena.kit.clock import still_world
from catena.kit.outbox import Outbox
from catena.kit.store import Store, open_store
from catena.kit.testing import MemoryBus, eventually, postgres, running, sqlite_url

FOUND = Finding(
    registry="them",
    tenant="acme",
    base="base",
    name="code",
    current="1",
    state="found",
    reason="better",
    version="2",
    digest="2" * 64,
    gain=0.05,
    at_s=7.0,
)


class Bench:
    def __init__(self, store: Store) -> None:
        self.world, self.bus = still_world(), MemoryBus()
        self.outbox = Outbox(store, self.bus, self.world)
        self.findings = SqlFindings(store, self.outbox)
        self.known = SqlKnownBases(store, self.world.clock)

    async def told(self, count: int) -> list[str]:
        async def all_there() -> bool:
            return len(self.bus.events) >= count

        async with running(self.outbox.run()):
            await eventually(all_there)
        return [events_pb2.UpdateFound.FromString(event.data).state for event in self.bus.events]


@pytest.fixture(params=["sqlite", "postgres"])
async def bench(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Bench]:
    if request.param == "sqlite":
        async with open_store(sqlite_url(tmp_path), METADATA, room="adapters", migrations=MIGRATIONS) as store:
            yield Bench(store)
        return
    async with postgres() as url, open_store(url, METADATA, room="adapters", migrations=MIGRATIONS) as store:
        yield Bench(store)


async def test_each_news_is_kept_and_told_once_whoever_finds_it(bench: Bench) -> None:
    await asyncio.gather(*(bench.findings.keep(replace(FOUND, at_s=float(at))) for at in range(4)))
    await bench.findings.keep(replace(FOUND, state="pulled"))
    await bench.findings.keep(replace(FOUND, version="3", digest="3" * 64))
    await bench.findings.keep(replace(FOUND, tenant="shared", name="other"))

    assert [(one.tenant, one.version, one.state) for one in await bench.findings.seen("acme")] == [
        ("acme", "3", "found"), ("shared", "2", "found"),
    ]  # fmt: skip
    assert [one.name for one in await bench.findings.seen("nobody")] == ["other"]
    assert await bench.told(4) == ["found", "pulled", "found", "found"]


async def test_what_is_no_news_any_more_is_forgotten(bench: Bench) -> None:
    await bench.findings.keep(FOUND)
    await bench.findings.keep(replace(FOUND, state="current", version="", digest=""))

    assert await bench.findings.seen("acme") == []


async def test_of_two_digests_that_come_first_at_once_one_counts(bench: Bench) -> None:
    digests = await asyncio.gather(*(bench.known.settle("base", digest * 64) for digest in "abc"))

    assert len(set(digests)) == 1
    assert await bench.known.settle("base", "d" * 64) == digests[0]
    await bench.known.accept("base", "d" * 64)
    assert await bench.known.settle("base", "e" * 64) == "d" * 64
