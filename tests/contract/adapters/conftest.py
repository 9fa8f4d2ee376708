from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from catena.adapters.app import open_adapters
from catena.adapters.config import AdaptersConfig
from catena.api.adapters.v1.adapters_pb2_grpc import AdaptersServiceStub
from catena.artifacts.signature import make_key, sign
from catena.kit.caller import Caller, as_caller
from catena.kit.clock import World
from catena.kit.config import AuthConfig, BusConfig, House, ModelConfig
from catena.kit.dial import dial
from tests.contract.adapters.making import make_adapter, seal

TOKEN = "test-token"
MODELS = Path(__file__).parents[3] / "demo" / "models"


class Room:
    """A running room, called as another room would call it for a tenant."""

    def __init__(self, house: House, stub: AdaptersServiceStub) -> None:
        self.house = house
        self._stub = stub

    async def ask(self, method: str, request: Any, tenant: str = "acme") -> Any:
        with as_caller(Caller(tenant)):
            return await getattr(self._stub, method)(request)

    async def stream(self, request: Any, tenant: str = "acme") -> list[Any]:
        with as_caller(Caller(tenant)):
            return [answer async for answer in self._stub.Generate(request)]

    async def ask_all(self, method: str, request: Any, tenant: str = "acme") -> list[Any]:
        with as_caller(Caller(tenant)):
            return [answer async for answer in getattr(self._stub, method)(request)]

    def begin(self, request: Any, tenant: str = "acme") -> Any:
        with as_caller(Caller(tenant)):
            return self._stub.Generate(request)


def new_house(home: Path) -> House:
    """A house with both demo models, and a key that it trusts."""
    house = House(
        home=str(home),
        auth=AuthConfig(service_token=TOKEN),
        bus=BusConfig(url="nats://127.0.0.1:1"),
        models=[ModelConfig(name=name, path=str(MODELS / name)) for name in ("demo-small", "demo-large")],
    )
    pair = make_key(house.folder("keys"), "trainer")
    (house.folder("keys", "trusted") / "trainer.pub").write_bytes(pair.public.read_bytes())
    return house


def new_adapter(
    house: House, name: str, version: str = "1", *, signed: bool = True, folder: str = "", **config: Any
) -> Path:
    """A sealed, signed adapter for `demo-large`, made once a name and version, or `folder`."""
    made = house.folder("made") / (folder or f"{name}-{version}")
    if not made.exists():
        make_adapter(MODELS / "demo-large", made, **{"seed": 1} | config)
        seal(made, MODELS / "demo-large", name=name, version=version, base_name="demo-large", tasks=(name,))
        if signed:
            sign(made, house.folder("keys") / "trainer.pem")
    return made


@asynccontextmanager
async def open_room(house: House, **config: Any) -> AsyncIterator[Room]:
    async with (
        open_adapters(house, AdaptersConfig(**config), World()),
        dial(house.address("adapters"), token=TOKEN) as channel,
    ):
        yield Room(house, AdaptersServiceStub(channel))


@pytest.fixture
def house(tmp_path: Path) -> House:
    return new_house(tmp_path / "home")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def room(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Room]:
    """One room for the tests of a module that need nothing special of it; an engine takes seconds to start."""
    async with open_room(new_house(tmp_path_factory.mktemp("room"))) as opened:
        yield opened
