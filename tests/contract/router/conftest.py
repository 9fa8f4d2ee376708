from contextlib import asynccontextmanager

import grpc
import pytest

from catena.api.executor.v1 import executor_pb2
from catena.api.executor.v1.executor_pb2_grpc import (
    ExecutorServiceServicer,
    add_ExecutorServiceServicer_to_server,
)
from catena.api.router.v1.router_pb2_grpc import RouterServiceStub
from catena.kit.bus import open_bus
from catena.kit.caller import Caller, as_caller
from catena.kit.clock import World
from catena.kit.config import AuthConfig, BusConfig, House
from catena.kit.dial import dial
from catena.kit.serve import open_server
from catena.kit.testing import nats_server
from catena.router.app import open_router
from catena.router.config import DomainConfig, RouterConfig

TOKEN = "test-token"
PIPELINES = {
    "cascade": {"fast": "small", "main": "large", "threshold": 0.5, "min_chars": 0},
    "draft-refine": {"draft": "small", "main": "large"},
    "consensus": {"members": ["small", "large", "large"]},
    "speculative": {"draft": "small", "main": "large"},
    "search": {"main": "large"},
}
DOMAINS = [
    DomainConfig(name="upper", examples=["upper: hello", "upper: tin", "upper: gate", "upper: moss"]),
    DomainConfig(name="reverse", examples=["reverse: hello", "reverse: tin", "reverse: stone", "reverse: mask"]),
    DomainConfig(name="add", examples=["add 27+58", "add 3+9", "add 14+77", "add 60+12"]),
    DomainConfig(
        name="fact",
        examples=["code: falcon", "code: heron", "file: open_router", "file: load_store"],
        needs_memory=True,
    ),
]
CONFIG = RouterConfig(domains=DOMAINS, refit_s=0.05, exploration=0.0, exploration_floor=0.0)


class Catalogue(ExecutorServiceServicer):
    """An executor that has models and nothing else."""

    def __init__(self):
        self.models = [model("small", 0.1, 0.4), model("large", 1.0, 4.0)]

    async def ListModels(self, request, context):
        return executor_pb2.ListModelsResponse(models=self.models)

    async def Embed(self, request, context):
        """The first letter of a text is its meaning."""
        if request.model != "letters":
            await context.abort(grpc.StatusCode.UNAVAILABLE, f"{request.model} is away")
        rows = [[3.0 * (text[:1] == letter) for letter in "abcdefgh"] for text in request.texts]
        return executor_pb2.EmbedResponse(vectors=[executor_pb2.Vector(values=row) for row in rows])


def model(name, price_input, price_output, **fields):
    return executor_pb2.Model(
        name=name, type="chat", price_input=price_input, price_output=price_output, status="active", **fields
    )


class Room:
    """A running router, called as another room would on a tenant's behalf."""

    def __init__(self, stub, bus, catalogue):
        self.bus = bus
        self.catalogue = catalogue
        self._stub = stub

    async def ask(self, method, request, tenant="acme"):
        with as_caller(Caller(tenant)):
            return await getattr(self._stub, method)(request)


@pytest.fixture
async def broker(tmp_path):
    async with nats_server(tmp_path / "nats") as url:
        yield url


@pytest.fixture
def house(tmp_path, broker, minilm):
    return House(
        home=str(tmp_path / "home"),
        embedding=str(minilm),
        auth=AuthConfig(service_token=TOKEN),
        bus=BusConfig(url=broker),
        pipelines=PIPELINES,
    )


@pytest.fixture
def open_room(house):
    @asynccontextmanager
    async def opened(config=CONFIG):
        catalogue = Catalogue()
        world = World()
        serve = open_server(
            house.address("executor"),
            [lambda server: add_ExecutorServiceServicer_to_server(catalogue, server)],
            names=["catena.api.executor.v1.ExecutorService"],
            token=TOKEN,
            world=world,
        )
        async with (
            serve,
            open_router(house, config, world),
            dial(house.address("router"), token=TOKEN) as channel,
            open_bus(house.bus.url, name="test") as bus,
        ):
            yield Room(RouterServiceStub(channel), bus, catalogue)

    return opened


@pytest.fixture
async def room(open_room):
    async with open_room() as room:
        yield room
