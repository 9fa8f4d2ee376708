"""A gateway that stops, and one that stumbles: what clients are told, and what the trace tells."""

import asyncio
import re
from collections.abc import Iterator
from contextlib import AsyncExitStack
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import aiohttp
import pytest
import structlog
from starlette.requests import Request
from starlette.responses import Response

from catena.gateway.core.keys import Gateway, Key, digest_of
from catena.gateway.handlers.http import Front
from catena.kit.config import House
from catena.kit.errors import Missing
from catena.kit.telemetry import Telemetry, read_trace, setup
from tests.contract.gateway.rooms import gateway_with_rooms

pytestmark = pytest.mark.contract
HELLO = {"model": "base", "messages": [{"role": "user", "content": "one"}]}


@pytest.fixture
def telemetry(tmp_path: Path) -> Iterator[Telemetry]:
    with setup("gateway", House(home=str(tmp_path))) as running:
        yield running
    structlog.reset_defaults()


async def test_what_outlasts_the_drain_is_told_to_come_back(tmp_path: Path) -> None:
    async with AsyncExitStack() as stack:
        behind = await stack.enter_async_context(gateway_with_rooms(tmp_path, drain_s=0.5))
        headers = {"Authorization": f"Bearer {behind.key}"}
        async with aiohttp.ClientSession(behind.url, headers=headers) as http:

            async def ask() -> tuple[int, str, dict[str, Any]]:
                async with http.post("/v1/chat/completions", json={**HELLO, "model": "stuck"}) as answer:
                    return answer.status, answer.headers.get("retry-after", ""), await answer.json()

            asking = asyncio.create_task(ask())
            async with asyncio.timeout(30):
                await behind.executor.began.wait()
            await stack.aclose()
            status, after, told = await asking
    assert (status, after, told["error"]["code"]) == (503, "1", "unavailable")


@pytest.mark.parametrize(
    ("raised", "status", "told"),
    [
        (Missing("unknown model 'x'", code="unknown_model"), 404, "unknown model 'x'"),
        (ValueError("the prompt"), 500, r"ValueError at test_faults.py:\d+"),
    ],
)
async def test_the_trace_of_a_request_that_failed_says_how(
    tmp_path: Path, telemetry: Telemetry, raised: Exception, status: int, told: str
) -> None:
    async def stumble(*_: object) -> Response:
        raise raised

    key = Key(id="k", digest=digest_of("ck-1"), tenant="default")
    unused: Any = None
    asking: Any = SimpleNamespace(gateway=Gateway([key], {}))
    names = ("reader", "models", "passage", "runs", "keys", "lora", "registry", "live", "inference")
    front = Front(asking=asking, cors_origins=[], **dict.fromkeys(names, unused))
    scope = {"type": "http", "path": "/v1/models", "headers": [(b"x-api-key", b"ck-1")]}
    answer = await front.guarded(stumble)(Request(scope))
    telemetry.flush()
    (span,) = read_trace(tmp_path, answer.headers["x-catena-trace-id"])
    assert answer.status_code == status
    assert re.fullmatch(told, span.error)


async def test_the_trace_of_a_stream_that_broke_off_says_so(tmp_path: Path, telemetry: Telemetry) -> None:
    async with gateway_with_rooms(tmp_path) as behind:
        headers = {"Authorization": f"Bearer {behind.key}"}
        body = {**HELLO, "model": "cut", "stream": True}
        async with (
            aiohttp.ClientSession(behind.url, headers=headers) as http,
            http.post("/v1/chat/completions", json=body) as answer,
        ):
            assert "stream_cut" in await answer.text()
        telemetry.flush()
    traces = (tmp_path / "traces").glob("*")
    assert any("gateway.stream" in line and "upstream broke off" in line for path in traces for line in path.open())
