"""A background run's end is watched over SSE and posted to its webhook, with a real executor and broker behind."""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp
import msgspec
import openai
import pytest
from aiohttp import web

from catena.executor.app import open_executor
from catena.executor.config import ExecutorConfig
from catena.gateway.app import open_gateway
from catena.gateway.config import GatewayConfig, WebhookConfig
from catena.gateway.drivers.posting import open_posting
from catena.kit.clock import World
from catena.kit.config import House
from catena.kit.testing import eventually, nats_server
from tests.contract.executor.rooms import Adapters, house_at, neighbours

pytestmark = pytest.mark.contract
BODY = {"model": "large", "messages": [{"role": "user", "content": "hello there"}]}
LOOPBACK = ["127.0.0.0/8"]


@dataclass
class Target:
    """Answers `statuses` in turn, then 204, and keeps what it was sent."""

    url: str = ""
    statuses: list[int] = field(default_factory=list)
    heard: list[tuple[bytes, dict[str, str]]] = field(default_factory=list)

    async def take(self, request: web.Request) -> web.Response:
        self.heard.append((await request.read(), dict(request.headers)))
        status = self.statuses.pop(0) if self.statuses else 204
        return web.Response(status=status, headers={"location": f"{self.url}/elsewhere"})


@asynccontextmanager
async def listening() -> AsyncIterator[Target]:
    target = Target()
    app = web.Application()
    app.router.add_post("/{tail:.*}", target.take)
    runner = web.AppRunner(app)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    target.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
    try:
        yield target
    finally:
        await runner.cleanup()


@dataclass(frozen=True)
class Behind:
    house: House
    adapters: Adapters
    target: Target


@pytest.fixture
async def behind(tmp_path: Path) -> AsyncIterator[Behind]:
    async with nats_server(tmp_path) as url, listening() as target:
        house = house_at(tmp_path, bus_url=url)
        async with neighbours(house) as (adapters, *_), open_executor(house, ExecutorConfig(), World()):
            yield Behind(house, adapters, target)


@asynccontextmanager
async def gateway(behind: Behind, **hooks: Any) -> AsyncIterator[aiohttp.ClientSession]:
    webhooks = WebhookConfig(**{"private_networks": LOOPBACK, "first_retry_s": 0.02, **hooks})
    async with open_gateway(behind.house, GatewayConfig(port=0, webhooks=webhooks), World()):
        home = Path(behind.house.home)
        key = (home / "keys" / "development.key").read_text().strip()
        url = msgspec.json.decode((home / "run" / "gateway.json").read_bytes())["url"]
        async with aiohttp.ClientSession(url, headers={"Authorization": f"Bearer {key}"}) as http:
            yield http


async def submit(http: aiohttp.ClientSession, status: int = 202, key: str = "", **more: Any) -> Any:
    async with http.post("/v1/runs", json={**BODY, **more}, headers={"Idempotency-Key": key}) as answer:
        told = await answer.json()
    assert answer.status == status, told
    return told


async def events(http: aiohttp.ClientSession, id_: str, last: str = "") -> list[tuple[str, str, Any]]:
    headers = {"Last-Event-ID": last} if last else {}
    async with http.get(f"/v1/runs/{id_}/events", headers=headers) as answer:
        assert answer.status == 200
        assert answer.content_type == "text/event-stream"
        text = await answer.text()
    told = []
    for block in filter(None, text.split("\n\n")):
        fields = dict(line.split(": ", 1) for line in block.splitlines() if not line.startswith(":"))
        told.append((fields["event"], fields.get("id", ""), json.loads(fields["data"])))
    return told


async def test_a_run_is_watched_from_its_start_to_its_end(behind: Behind) -> None:
    behind.adapters.hold.add("large")
    async with gateway(behind) as http:
        id_ = (await submit(http))["run"]["id"]
        watching = asyncio.create_task(events(http, id_))
        await eventually(lambda: bool(behind.adapters.asked))
        behind.adapters.released.set()
        told = await watching
        names = [name for name, _, _ in told]
        assert names[0] == "run"
        assert [name for name in names if name != "run"] == ["stage", "end"]
        states = [data["state"] for name, _, data in told if name == "run"]
        assert states[-1] == "succeeded"
        assert len(states) == len(set(states))
        (stage,) = [(number, data) for name, number, data in told if name == "stage"]
        assert (stage[0], stage[1]["model"], stage[1]["outcome"]) == ("1", "large", "accepted")
        end = told[-1][2]["run"]
        assert end["result"]["choices"][0]["message"]["content"] == "HELLO THERE"
        assert [name for name, _, _ in await events(http, id_, "1")] == ["run", "end"]


@pytest.mark.parametrize(("id_", "last", "status"), [("nothing", "", 404), ("nothing", "x", 400)])
async def test_a_watch_that_cannot_be_keeps_its_status(behind: Behind, id_: str, last: str, status: int) -> None:
    async with gateway(behind) as http, http.get(f"/v1/runs/{id_}/events", headers={"Last-Event-ID": last}) as answer:
        assert answer.status == status


async def test_the_end_of_a_run_is_posted_signed_and_without_its_texts(behind: Behind) -> None:
    async with gateway(behind) as http:
        told = await submit(http, webhook={"url": f"{behind.target.url}/hook"})
        await eventually(lambda: bool(behind.target.heard))
    body, headers = behind.target.heard[0]
    openai.OpenAI(api_key="unused").webhooks.verify_signature(body, headers, secret=told["webhook"]["secret"])
    event = json.loads(body)
    assert (event["type"], event["data"]["id"]) == ("run.succeeded", told["run"]["id"])
    assert event["data"]["execution_id"]
    assert b"HELLO" not in body


async def test_a_target_that_fails_is_posted_to_again_under_the_same_id(behind: Behind) -> None:
    behind.target.statuses += [500, 302, 429]
    async with gateway(behind) as http:
        await submit(http, webhook={"url": behind.target.url})
        await eventually(lambda: len(behind.target.heard) == 4, 30)
        await asyncio.sleep(0.3)
    assert len(behind.target.heard) == 4
    assert len({headers["webhook-id"] for _, headers in behind.target.heard}) == 1


async def test_a_webhook_is_given_up_after_its_attempts(behind: Behind) -> None:
    behind.target.statuses += [500] * 50
    async with gateway(behind, attempts=3) as http:
        await submit(http, webhook={"url": behind.target.url})
        await eventually(lambda: len(behind.target.heard) == 3, 30)
        await asyncio.sleep(0.5)
    assert len(behind.target.heard) == 3


async def test_a_run_that_ends_while_the_gateway_is_away_is_posted_when_it_is_back(behind: Behind) -> None:
    behind.adapters.hold.add("large")
    async with gateway(behind) as http:
        await submit(http, webhook={"url": behind.target.url})
    behind.adapters.released.set()
    assert behind.target.heard == []
    async with gateway(behind):
        await eventually(lambda: len(behind.target.heard) == 1, 30)


async def test_a_repeat_keeps_the_webhook_it_had(behind: Behind) -> None:
    behind.adapters.hold.add("large")
    async with gateway(behind) as http:
        told = [await submit(http, key="once", webhook={"url": behind.target.url}) for _ in range(2)]
        behind.adapters.released.set()
        await eventually(lambda: bool(behind.target.heard), 30)
        await asyncio.sleep(0.3)
    assert told[0]["webhook"] == told[1]["webhook"]
    assert len(behind.target.heard) == 1


async def test_addresses_inside_are_refused_unless_they_are_allowed(behind: Behind) -> None:
    async with gateway(behind, private_networks=[]) as http:
        for url in (behind.target.url, "http://169.254.169.254/latest/meta-data", "http://[::1]/"):
            assert (await submit(http, 400, webhook={"url": url}))["error"]["code"] == "bad_webhook"
    assert behind.adapters.asked == []


async def test_a_name_that_leads_inside_is_not_posted_to(behind: Behind) -> None:
    port = behind.target.url.rpartition(":")[2]
    async with open_posting([], 5.0) as post:
        assert "private_networks" in await post(f"http://localhost:{port}/", b"{}", {})
    assert behind.target.heard == []
    async with open_posting([*LOOPBACK, "::1/128"], 5.0) as post:
        assert await post(f"http://localhost:{port}/", b"{}", {}) == ""
