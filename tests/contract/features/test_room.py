import asyncio
import subprocess
import sys
from contextlib import asynccontextmanager

import msgspec
import pytest

from catena.api.events.v1.events_pb2 import ValueSet
from catena.api.features.v1 import features_pb2 as pb
from catena.api.features.v1.features_pb2_grpc import FeaturesServiceStub
from catena.features.app import open_features
from catena.features.config import FeaturesConfig
from catena.kit.bus import open_bus
from catena.kit.caller import Caller, as_caller
from catena.kit.clock import World
from catena.kit.config import AuthConfig, BusConfig, House, SqlConfig
from catena.kit.dial import dial
from catena.kit.errors import Conflict, Invalid, Missing, Unavailable
from catena.kit.jsonvalue import from_json, to_json
from catena.kit.testing import eventually, nats_server, postgres, running

pytestmark = pytest.mark.contract
TOKEN = "test-token"
NOWHERE = "nats://127.0.0.1:1"


class Room:
    def __init__(self, stub):
        self._stub = stub

    async def ask(self, method, request, tenant="acme"):
        with as_caller(Caller(tenant)):
            return await getattr(self._stub, method)(request)

    async def set(self, value, *, feature="age", entity="u1", tenant="acme", **fields):
        item = pb.Value(entity_type="user", entity_id=entity, feature=feature, value=from_json(value), **fields)
        return await self.ask("Set", pb.SetRequest(values=[item]), tenant)

    async def get(self, *features, entity="u1", tenant="acme", **fields):
        asked = pb.GetRequest(entity_type="user", entity_id=entity, features=features, **fields)
        return (await self.ask("Get", asked, tenant)).row

    async def value(self, feature="age", **fields):
        (item,) = (await self.get(feature, **fields)).values
        return to_json(item.value) if item.status == "PRESENT" else item.status


@asynccontextmanager
async def called(house):
    async with dial(house.address("features"), token=TOKEN) as channel:
        yield Room(FeaturesServiceStub(channel))


@asynccontextmanager
async def opened(house, config=None):
    async with open_features(house, config or FeaturesConfig(), World()), called(house) as room:
        yield room


def house_at(home, **fields):
    return House(home=str(home), auth=AuthConfig(service_token=TOKEN), **({"bus": BusConfig(url=NOWHERE)} | fields))


@pytest.fixture
async def room(tmp_path):
    async with opened(house_at(tmp_path / "home")) as room:
        yield room


async def test_values_are_set_and_read_with_all_that_is_known_of_them(room):
    stored = (await room.set({"a": [1, 2.5, None]}, event_s=1000.0)).values[0]
    (read,) = (await room.get("age")).values
    assert read == stored
    assert (read.version, read.event_s, read.status, read.definition_version) == (1, 1000, "PRESENT", 0)
    assert to_json(read.value) == {"a": [1, 2.5, None]} and read.created_s > 1_700_000_000
    assert (await room.get("age", entity="u2")).values[0].status == "MISSING"


async def test_groups_are_read_as_vectors_one_by_one_and_in_batches(room):
    group = pb.Group(name="profile", entity_type="user", features=["age", "taste"], description="who asks")
    assert (await room.ask("PutGroup", pb.PutGroupRequest(group=group))).group.version == 1
    for entity, age in (("u1", 30), ("u2", 40)):
        await room.set(age, entity=entity)
        await room.set([0.5, age / 10], entity=entity, feature="taste")
    assert list((await room.get(group="profile")).vector) == [30, 0.5, 3]
    asked = pb.BatchGetRequest(entity_type="user", entity_ids=["u2", "nobody", "u1"], group="profile")
    rows = (await room.ask("BatchGet", asked)).rows
    assert [list(row.vector) for row in rows] == [[40, 0.5, 4], [], [30, 0.5, 3]]


async def test_a_definition_types_and_expires_values(room):
    definition = pb.Definition(entity_type="user", name="age", type="number", ttl_s=0.2)
    assert (await room.ask("PutDefinition", pb.PutDefinitionRequest(definition=definition))).definition.version == 1
    with pytest.raises(Invalid, match="is a number"):
        await room.set("thirty")
    await room.set(30)
    assert await room.value() == 30

    async def expired():
        return await room.value() == "OUTSIDE_TTL"

    await eventually(expired)


async def test_reads_as_of_a_time(room):
    await room.set(1, event_s=1000.0)
    await room.set(2, event_s=2000.0)
    assert await room.value() == 2
    assert await room.value(as_of_s=1500.0, known_at_s=1e10) == 1
    assert await room.value(as_of_s=1500.0) == "MISSING"


async def test_tenants_are_apart(room):
    await room.set(1)
    assert await room.value(tenant="rival") == "MISSING"


async def test_bad_requests_say_what_is_wrong(room):
    with pytest.raises(Invalid, match="at least one"):
        await room.ask("Set", pb.SetRequest())
    with pytest.raises(Invalid, match="not a JSON number"):
        await room.set(float("inf"))
    with pytest.raises(Invalid, match="NUL"):
        await room.set("a\0b")
    with pytest.raises(Invalid, match="entity id"):
        await room.set(1, entity="")
    with pytest.raises(Missing, match="nope"):
        await room.get(group="nope")
    with pytest.raises(Invalid, match="number, text"):
        definition = pb.Definition(entity_type="user", name="age", type="float")
        await room.ask("PutDefinition", pb.PutDefinitionRequest(definition=definition))
    await room.ask("Set", request := pb.SetRequest(values=[item(1)], request_id="r"))
    assert (await room.ask("Set", request)).values[0].version == 1
    with pytest.raises(Conflict, match="new id"):
        await room.ask("Set", pb.SetRequest(values=[item(2)], request_id="r"))


def item(value):
    return pb.Value(entity_type="user", entity_id="u1", feature="age", value=from_json(value))


@pytest.mark.parametrize("kind", ["sqlite", "postgres"])
async def test_another_replica_forgets_what_was_written_here(tmp_path, kind):
    async with nats_server(tmp_path / "nats") as url, database(kind) as sql:
        first = house_at(tmp_path / "home", bus=BusConfig(url=url), sql=sql)
        second = msgspec.structs.replace(first, addresses={"features": f"unix:{tmp_path}/second.sock"})
        async with opened(first) as here, opened(second) as there, open_bus(url, name="outsider") as bus:
            await bus.ensure_streams()
            seen = []

            async def note(event):
                said = ValueSet.FromString(event.data)
                seen.append((event.tenant, said.entity_type, said.entity_id, list(said.features)))

            async with running(bus.consume("outsider", ["features.value.set"], note)):
                for number in range(5):
                    await here.set(number)
                    assert await here.value() == number

                    async def followed(number=number):
                        return await there.value() == number

                    await eventually(followed)
                await eventually(lambda: len(seen) == 5)
            assert set(map(str, seen)) == {"('acme', 'user', 'u1', ['age'])"}


@asynccontextmanager
async def database(kind):
    if kind == "sqlite":
        yield SqlConfig()
    else:
        async with postgres() as url:
            yield SqlConfig(url=url.replace("postgresql+psycopg", "postgresql"))


async def test_acknowledged_values_survive_kill_9_once_each(tmp_path):
    house = house_at(tmp_path / "home")
    acknowledged, process = [], start(house)
    try:
        async with called(house) as room:
            await eventually(lambda: answers(room))

            async def write_on():
                for number in range(100_000):
                    try:
                        await room.ask("Set", pb.SetRequest(values=[item(number)], request_id=f"r{number}"))
                    except Unavailable:
                        return
                    acknowledged.append(number)

            writing = asyncio.create_task(write_on())
            await eventually(lambda: len(acknowledged) > 20)
            process.kill()
            process.wait()
            await writing
            process = start(house)
            await eventually(lambda: answers(room))
            last = acknowledged[-1]
            again = await room.ask("Set", pb.SetRequest(values=[item(last)], request_id=f"r{last}"))
            assert again.values[0].version == len(acknowledged)
            assert await room.value() in (last, last + 1)
    finally:
        process.terminate()
        assert process.wait(20) == 0


def start(house):
    home = house.folder()
    settings = {"home": str(home), "auth": {"service_token": TOKEN}, "bus": {"url": NOWHERE}}
    (home / "catena.yaml").write_bytes(msgspec.yaml.encode(settings))
    command = [sys.executable, "-m", "catena.features", "--config", str(home / "catena.yaml")]
    return subprocess.Popen(command, stderr=subprocess.DEVNULL)


async def answers(room):
    try:
        await room.get("age")
    except Unavailable:
        return False
    return True
