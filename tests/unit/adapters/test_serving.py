import asyncio
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest

from catena.adapters.core.adapters import Adapters
from catena.adapters.core.errors import BadModel
from catena.adapters.core.manner import Manner
from catena.adapters.core.records import AdapterRecord
from catena.adapters.core.resident import Budget
from catena.adapters.core.serving import NameTaken, PlainName, Serving, UnknownName, labels
from catena.kit.clock import still_world
from catena.kit.errors import Invalid
from tests.unit.adapters.fakes import FakeBases, FakeEngine, FakeGate, FakeRegistry

pytestmark = pytest.mark.unit


class FakeNames:
    def __init__(self) -> None:
        self.kept: dict[tuple[str, str], PlainName] = {}

    async def find(self, tenant: str, name: str) -> PlainName:
        if (tenant, name) not in self.kept:
            raise UnknownName(name)
        return self.kept[tenant, name]

    async def put(self, served: PlainName, *, replace: bool) -> None:
        if not replace and (served.tenant, served.name) in self.kept:
            raise NameTaken(served.name)
        self.kept[served.tenant, served.name] = served

    async def drop(self, served: PlainName) -> None:
        self.kept.pop((served.tenant, served.name), None)

    async def seen_by(self, tenant: str) -> Sequence[PlainName]:
        return list(self.kept.values())

    async def serves(self, record: AdapterRecord) -> bool:
        return any(served.record.digest == record.digest for served in self.kept.values())

    async def of_models(self) -> Mapping[tuple[str, str], Sequence[str]]:
        return {}


class Bench:
    def __init__(self) -> None:
        world = still_world()
        self.engine, self.registry, self.names = FakeEngine(), FakeRegistry(), FakeNames()
        self.adapters = Adapters(
            engine=self.engine,
            registry=self.registry,
            bases=FakeBases(),
            gate=FakeGate(),
            world=world,
            manner=Manner(budget=Budget(bytes=1000, count=10)),
            free=lambda: None,
        )

        async def source(path: str) -> Path | bytes:
            return Path(path)

        self.serving = Serving(self.adapters, self.registry, self.names, source=source, clock=world.clock)


async def test_a_name_serves_one_adapter_until_it_is_given_anew() -> None:
    bench = Bench()
    await bench.serving.serve("acme", "plain", "a")
    with pytest.raises(NameTaken):
        await bench.serving.serve("acme", "plain", "b")

    await bench.serving.serve("acme", "plain", "b", replace=True)

    assert bench.engine.log == ["load digest-a", "load digest-b", "unload digest-a"]
    assert [(one.name, one.path) for one in await bench.serving.names("acme")] == [("plain", "b")]


async def test_weights_leave_with_the_last_name_that_serves_them() -> None:
    bench = Bench()
    for name in ("one", "two"):
        await bench.serving.serve("acme", name, "a")

    assert await bench.serving.stop("acme", "one") == 0
    assert await bench.serving.stop("acme", "two") == 100
    with pytest.raises(UnknownName):
        await bench.serving.stop("acme", "two")


async def test_two_who_give_the_same_name_at_once_do_not_both_get_it() -> None:
    bench = Bench()
    asked = [bench.serving.serve("acme", "plain", path) for path in ("a", "b")]

    ended = await asyncio.gather(*asked, return_exceptions=True)

    assert [type(one) for one in ended] == [AdapterRecord, NameTaken]
    assert bench.engine.log == ["load digest-a"]


@pytest.mark.parametrize("name", ["", "auto", "base", "base@a", "a b", "pipeline:x", "../x", "x" * 201])
async def test_a_name_that_could_mean_something_else_is_refused(name: str) -> None:
    bench = Bench()
    with pytest.raises((BadModel, Invalid)):
        await bench.serving.serve("acme", name, "a")
    assert bench.engine.log == []


async def test_residents_are_told_by_the_names_that_clients_use() -> None:
    names = {("acme", "base@a:1"): ["plain", "simple"]}
    assert labels("base@a:1", "acme", names) == ["plain", "simple"]
    assert labels("base@a:1", "other", names) == ["base@a:1"]
    assert labels("base@{a:1=0.7,b:2=0.3}", "acme", names) == ["plain", "simple", "base@b:2"]
