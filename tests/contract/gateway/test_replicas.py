"""Limits hold for replicas together: each hears on the bus what the others let pass."""

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from catena.api.events.v1 import events_pb2
from catena.kit.bus import open_bus
from catena.kit.clock import World
from catena.kit.event import Event
from catena.kit.testing import eventually, running
from tests.contract.gateway.rooms import Behind, gateway_with_rooms

pytestmark = pytest.mark.contract
CHAT = {"model": "base", "messages": [{"role": "user", "content": "one two"}]}


@pytest.fixture
async def behind(tmp_path: Path) -> AsyncIterator[Behind]:
    async with gateway_with_rooms(tmp_path, spend_flush_s=0.05) as one:
        yield one


async def made(http: aiohttp.ClientSession, **limits: Any) -> dict[str, Any]:
    async with http.post("/v1/keys", json={"tenant": "default", **limits}) as answer:
        key: dict[str, Any] = await answer.json()
    return key


async def ask(http: aiohttp.ClientSession, key: dict[str, Any]) -> int:
    async with http.post("/v1/chat/completions", json=CHAT, headers={"Authorization": f"Bearer {key['key']}"}) as told:
        return told.status


async def test_what_another_replica_spent_counts_here(behind: Behind) -> None:
    headers = {"Authorization": f"Bearer {behind.key}"}
    async with (
        aiohttp.ClientSession(behind.url, headers=headers) as http,
        open_bus(behind.bus, name="other") as bus,
    ):
        key = await made(http, budget_usd=1.0)
        used = events_pb2.KeyUsed(key_id=key["id"], replica="other", minute=1, cost_usd=1.0)
        data = used.SerializeToString()
        await bus.publish(Event(id="u1", type="gateway.key.used", tenant="shared", subject="k", time_s=1.0, data=data))

        async def refused() -> bool:
            return await ask(http, key) == 429

        await eventually(refused)


async def test_what_a_limited_key_uses_here_is_told_once(behind: Behind) -> None:
    heard: list[events_pb2.KeyUsed] = []

    async def hear(event: Event) -> None:
        heard.append(events_pb2.KeyUsed.FromString(event.data))

    headers = {"Authorization": f"Bearer {behind.key}"}
    async with (
        aiohttp.ClientSession(behind.url, headers=headers) as http,
        open_bus(behind.bus, name="other") as bus,
        running(bus.watch(["gateway.key.used"], hear, since_now=False)),
    ):
        key = await made(http, requests_per_minute=9)
        assert [await ask(http, key) for _ in range(3)] == [200] * 3
        await eventually(lambda: sum(told.requests for told in heard) == 3)
    assert {told.key_id for told in heard} == {key["id"]}
    assert sum(told.tokens for told in heard) == 3 * 4
    assert sum(told.cost_usd for told in heard) == pytest.approx(0.003)
    assert all(told.minute <= World().clock.now() // 60 for told in heard)
