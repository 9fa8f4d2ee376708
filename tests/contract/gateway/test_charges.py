"""What a key is charged, with a real executor and broker behind the gateway."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
import msgspec
import pytest
import sqlalchemy as sa

from catena.api.gateway.v1 import gateway_pb2
from catena.api.types.v1 import types_pb2
from catena.executor.app import open_executor
from catena.executor.config import ExecutorConfig
from catena.gateway.app import open_gateway
from catena.gateway.config import GatewayConfig
from catena.gateway.drivers.keys import KeyStore
from catena.gateway.drivers.tables import METADATA, MIGRATIONS
from catena.kit.clock import World, still_world
from catena.kit.config import House
from catena.kit.outbox import Outbox
from catena.kit.store import open_store
from catena.kit.testing import MemoryBus, eventually, nats_server, postgres, sqlite_url
from catena.sdk.client import AsyncCatena
from tests.contract.executor.rooms import Adapters, house_at, neighbours

pytestmark = pytest.mark.contract
COST_USD = (10 * 10 + 2 * 40) / 1e6
BODY = {"model": "large", "messages": [{"role": "user", "content": "hello there"}]}


@dataclass(frozen=True)
class Behind:
    """What outlives a gateway."""

    house: House
    adapters: Adapters


@pytest.fixture
async def behind(tmp_path: Path) -> AsyncIterator[Behind]:
    async with nats_server(tmp_path) as url:
        house = house_at(tmp_path, bus_url=url)
        async with neighbours(house) as (adapters, *_), open_executor(house, ExecutorConfig(), World()):
            yield Behind(house, adapters)


@asynccontextmanager
async def gateway(behind: Behind) -> AsyncIterator[aiohttp.ClientSession]:
    async with open_gateway(behind.house, GatewayConfig(port=0), World()):
        home = Path(behind.house.home)
        key = (home / "keys" / "development.key").read_text().strip()
        url = msgspec.json.decode((home / "run" / "gateway.json").read_bytes())["url"]
        async with aiohttp.ClientSession(url, headers={"Authorization": f"Bearer {key}"}) as http:
            yield http


async def post(http: aiohttp.ClientSession, path: str, body: Any, key: str = "") -> tuple[int, Any]:
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    async with http.post(path, json=body, headers=headers) as answer:
        return answer.status, await answer.json()


async def spent(http: aiohttp.ClientSession, name: str) -> float:
    async with http.get("/v1/keys") as told:
        keys = {key["name"]: key["spent_usd"] for key in (await told.json())["data"]}
    return float(keys[name])


async def test_a_background_run_uses_up_the_budget_of_its_key(behind: Behind) -> None:
    async with gateway(behind) as http:
        _, made = await post(http, "/v1/keys", {"tenant": "default", "name": "poor", "budget_usd": COST_USD})
        assert (await post(http, "/v1/runs", BODY, made["key"]))[0] == 202
        await eventually(lambda: spent(http, "poor"))
        assert await spent(http, "poor") == pytest.approx(COST_USD)
        status, told = await post(http, "/v1/runs", BODY, made["key"])
        assert (status, told["error"]["code"]) == (429, "insufficient_quota")


async def test_over_grpc_it_does_too(behind: Behind) -> None:
    async with gateway(behind) as http:
        _, made = await post(http, "/v1/keys", {"tenant": "default", "name": "poor", "tokens_per_minute": 5})
        asked = types_pb2.ChatRequest(messages=[types_pb2.ChatMessage(role="user", content="hello there")])
        chat = gateway_pb2.ChatRequest(model="large", request=asked)
        async with AsyncCatena(behind.house.address("gateway"), key=made["key"]) as catena:
            await catena.gateway.SubmitRun(gateway_pb2.SubmitRunRequest(chat=chat))
            await eventually(lambda: spent(http, "poor"))
        assert await spent(http, "poor") == pytest.approx(COST_USD)


@pytest.mark.parametrize(
    ("path", "body", "times"),
    [
        ("/v1/predict", {"model_id": "large", "data": "hello there"}, 1),
        ("/v1/batch_predict", {"model_id": "large", "data": ["hello there", "good morning"]}, 2),
        ("/v1/chat/completions", BODY, 1),
    ],
)
async def test_every_way_of_asking_is_charged_and_shown_alike(
    behind: Behind, path: str, body: dict[str, Any], times: int
) -> None:
    async with gateway(behind) as http:
        assert (await post(http, path, body))[0] == 200
        assert await spent(http, "development") == pytest.approx(times * COST_USD)
        async with http.get("/dashboard/data") as told:
            view = await told.json()
    assert (view["requests"], view["cost_usd"]) == (1, pytest.approx(times * COST_USD))
    assert view["by_model"] == {"large": 1}


async def shown(http: aiohttp.ClientSession) -> dict[str, Any]:
    async with http.get("/dashboard/data") as told:
        view: dict[str, Any] = await told.json()
    return view


async def test_a_stream_that_its_client_cuts_is_charged_once_and_shown(behind: Behind) -> None:
    behind.adapters.hold.add("large")
    async with gateway(behind) as http:
        async with http.post("/v1/chat/completions", json={**BODY, "stream": True}) as answer:
            async for line in answer.content:
                if b"HELLO" in line:
                    break
        async with asyncio.timeout(30):
            await behind.adapters.cancelled.wait()
        await eventually(lambda: spent(http, "development"))
        cost_usd = await spent(http, "development")
        view = await shown(http)
        assert (view["requests"], view["cancelled"], view["cost_usd"]) == (1, 1, pytest.approx(cost_usd))
        assert view["tokens"] > 0
    async with gateway(behind) as http:
        assert await spent(http, "development") == pytest.approx(cost_usd)


async def test_a_client_that_leaves_before_its_answer_pays_for_what_was_made(behind: Behind) -> None:
    behind.adapters.hold.add("large")
    async with gateway(behind) as http:
        asking = asyncio.create_task(post(http, "/v1/chat/completions", BODY))
        await eventually(lambda: bool(behind.adapters.asked))
        asking.cancel()
        async with asyncio.timeout(30):
            await behind.adapters.cancelled.wait()
        await eventually(lambda: spent(http, "development"))
        cost_usd = await spent(http, "development")
        view = await shown(http)
    assert (view["requests"], view["cancelled"], view["cost_usd"]) == (1, 1, pytest.approx(cost_usd))


async def test_what_a_failed_request_made_is_charged(behind: Behind) -> None:
    behind.adapters.cut.add("large")
    async with gateway(behind) as http:
        assert (await post(http, "/v1/chat/completions", BODY))[0] == 503
        await eventually(lambda: spent(http, "development"))
        view = await shown(http)
        assert (view["requests"], view["failures"]) == (1, 1)
        assert view["cost_usd"] == pytest.approx(await spent(http, "development"))


async def test_a_refused_request_is_counted_at_once_and_free(behind: Behind) -> None:
    async with gateway(behind) as http:
        assert (await post(http, "/v1/chat/completions", {**BODY, "model": "larg"}))[0] == 404
        assert (await shown(http))["refused"] == 1
        assert await spent(http, "development") == 0


async def test_a_prediction_over_grpc_is_charged(behind: Behind) -> None:
    async with gateway(behind) as http:
        key = (Path(behind.house.home) / "keys" / "development.key").read_text().strip()
        async with AsyncCatena(behind.house.address("gateway"), key=key) as catena:
            await catena.predict("large", "hello there")
        assert await spent(http, "development") == pytest.approx(COST_USD)


async def test_an_idempotency_key_is_refused_for_another_request(behind: Behind) -> None:
    async with gateway(behind) as http:
        told = []
        for content in ("hello there", "hello there", "good morning"):
            body = {**BODY, "messages": [{"role": "user", "content": content}]}
            async with http.post("/v1/runs", json=body, headers={"Idempotency-Key": "once"}) as answer:
                told.append((answer.status, await answer.json()))
    assert [status for status, _ in told] == [202, 202, 409]
    assert told[0][1]["run"]["id"] == told[1][1]["run"]["id"]
    assert told[2][1]["error"]["code"] == "request_id_reused"


async def test_the_dashboard_shows_a_background_run_that_ended(behind: Behind) -> None:
    async with gateway(behind) as http:
        await post(http, "/v1/runs", BODY)

        async def shown() -> bool:
            async with http.get("/dashboard/data") as told:
                view = await told.json()
            return bool(view["by_model"] == {"large": 1} and view["cost_usd"] == pytest.approx(COST_USD))

        await eventually(shown)


async def test_a_run_that_ends_while_the_gateway_is_away_is_charged_once(behind: Behind) -> None:
    behind.adapters.hold.add("large")
    async with gateway(behind) as http:
        assert (await post(http, "/v1/runs", BODY))[0] == 202
    behind.adapters.released.set()
    async with gateway(behind) as http:
        await eventually(lambda: spent(http, "development"))
        assert await spent(http, "development") == pytest.approx(COST_USD)
    async with gateway(behind) as http:
        assert await spent(http, "development") == pytest.approx(COST_USD)
        await post(http, "/v1/runs", BODY)

        async def twice() -> bool:
            return await spent(http, "development") > 1.5 * COST_USD

        await eventually(twice)
        assert await spent(http, "development") == pytest.approx(2 * COST_USD)


@pytest.mark.parametrize("database", ["sqlite", "postgresql"])
async def test_a_database_from_before_learns_to_charge_once(tmp_path: Path, database: str) -> None:
    before = sa.MetaData()
    for table in METADATA.tables.values():
        if table.name not in ("inbox", "webhooks"):
            table.to_metadata(before)
    async with AsyncExitStack() as stack:
        url = sqlite_url(tmp_path) if database == "sqlite" else await stack.enter_async_context(postgres())
        async with open_store(url, before, room="gateway"):
            pass
        store = await stack.enter_async_context(open_store(url, METADATA, room="gateway", migrations=MIGRATIONS))
        keys = KeyStore(store, Outbox(store, MemoryBus(), still_world()))
        assert [await keys.spend_once(event, "k", 0.5) for event in ("a", "a", "b")] == [True, False, True]
        assert (await keys.load())[1] == {"k": 1.0}
