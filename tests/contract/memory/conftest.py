from contextlib import asynccontextmanager

import pytest

from catena.api.memory.v1.memory_pb2_grpc import MemoryServiceStub
from catena.kit.caller import Caller, as_caller
from catena.kit.clock import World
from catena.kit.config import AuthConfig, BusConfig, House
from catena.kit.dial import dial
from catena.memory.app import open_memory
from catena.memory.config import MemoryConfig

TOKEN = "test-token"


class Room:
    """A running memory room, called as a user of a tenant would through the gateway."""

    def __init__(self, house, stub):
        self.house = house
        self._stub = stub

    async def ask(self, method, request, tenant="acme"):
        with as_caller(Caller(tenant)):
            return await getattr(self._stub, method)(request)


@pytest.fixture
def house(tmp_path, minilm):
    return House(
        home=str(tmp_path / "home"),
        auth=AuthConfig(service_token=TOKEN),
        bus=BusConfig(url="nats://127.0.0.1:1"),
        embedding=str(minilm),
    )


@pytest.fixture
def open_room():
    @asynccontextmanager
    async def opened(house, config=None):
        async with open_memory(house, config or MemoryConfig(), World()), called(house) as room:
            yield room

    return opened


@pytest.fixture
def call_room():
    return called


@asynccontextmanager
async def called(house):
    async with dial(house.address("memory"), token=TOKEN) as channel:
        yield Room(house, MemoryServiceStub(channel))


@pytest.fixture
async def room(house, open_room):
    async with open_room(house) as room:
        yield room
