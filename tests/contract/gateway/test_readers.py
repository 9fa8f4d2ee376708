"""A client that stops reading a long answer, through every room: what it costs the others, and what is left of it."""

import asyncio
import json
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import psutil
import pytest
from structlog.testing import capture_logs

from catena.api.adapters.v1 import adapters_pb2
from catena.api.adapters.v1.adapters_pb2_grpc import AdaptersServiceStub
from catena.api.gateway.v1 import gateway_pb2
from catena.api.gateway.v1.gateway_pb2_grpc import GatewayServiceStub
from catena.api.types.v1 import types_pb2
from catena.kit.dial import dial
from catena.kit.testing import eventually
from tests.contract.adapters.conftest import TOKEN
from tests.contract.gateway.test_lora import Running, running

__all__ = ["running"]
pytestmark = pytest.mark.asyncio(loop_scope="module")
LONG: dict[str, Any] = {"max_tokens": 900, "temperature": 1.0, "n": 8, "ignore_eos": True}
"""Of this, with twenty alternatives a token, some twenty megabytes would come as server-sent events."""
MOST_GROWTH = 64 << 20


@asynccontextmanager
async def over_http(running: Running, model: str) -> AsyncIterator[None]:
    """An answer whose beginning is read, and no more of it until the block ends."""
    body = json.dumps({"model": model, "prompt": "upper: stalled", "stream": True, "logprobs": 20} | LONG).encode()
    host, port = running.url.removeprefix("http://").split(":")
    head = f"POST /v1/completions HTTP/1.1\r\nHost: {host}\r\nAuthorization: Bearer {running.key}\r\n"
    head += f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    with socket.socket() as line:
        line.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 8192)
        line.setblocking(False)
        loop = asyncio.get_running_loop()
        await loop.sock_connect(line, (host, int(port)))
        await loop.sock_sendall(line, head.encode() + body)
        assert (await loop.sock_recv(line, 512)).startswith(b"HTTP/1.1 200")
        yield


@asynccontextmanager
async def over_grpc(running: Running, model: str) -> AsyncIterator[None]:
    """The same over gRPC."""
    sampling = types_pb2.Sampling(**LONG, logprobs=True, top_logprobs=20)
    request = gateway_pb2.CompleteRequest(model=model, prompt="upper: stalled", sampling=sampling)
    async with dial(running.house.address("gateway"), token=running.key, timeout_s=120) as channel:
        call = GatewayServiceStub(channel).Complete(request)
        assert await call.read()
        yield
        call.cancel()


@pytest.mark.parametrize("stalled", [over_http, over_grpc])
async def test_a_client_that_stops_reading_holds_up_nobody_and_leaves_nothing(running: Running, stalled: Any) -> None:
    name = stalled.__name__.replace("_", "-")
    await running.post("/v1/load_lora_adapter", {"lora_name": name, "lora_path": running.placed(name)})
    wanted, _ = await running.complete("demo-large", "upper: one")
    memory = psutil.Process()
    before = memory.memory_info().rss

    with capture_logs() as logs:
        async with stalled(running, name):
            assert (await state(running))[0] == {name: 1}
            asked = (running.complete("demo-large", "upper: one", seed=number) for number in range(8))
            answers = await asyncio.gather(*asked)
            await eventually(still(running), every_s=0.5)

            assert {text for text, _ in answers} == {wanted}
            assert memory.memory_info().rss - before < MOST_GROWTH

        async def gone() -> bool:
            return not (await state(running))[0]

        await eventually(gone)
    assert not [entry for entry in logs if entry["log_level"] == "error"]
    assert (await running.complete("demo-large", "upper: one", seed=99))[0] == wanted
    assert (await running.post("/v1/unload_lora_adapter", {"lora_name": name}))[0] == 200


def still(running: Running) -> Callable[[], Awaitable[bool]]:
    """Whether nothing was written since this was last asked."""
    before = -1

    async def same() -> bool:
        nonlocal before
        last, before = before, (await state(running))[1]
        return last == before

    return same


async def state(running: Running) -> tuple[dict[str, int], int]:
    """Users of adapters that have any, by adapter; and how many tokens were written since the start."""
    async with dial(running.house.address("adapters"), token=TOKEN) as channel:
        told = await AdaptersServiceStub(channel).GetResidency(adapters_pb2.GetResidencyRequest())
    users = {each.model.partition("@")[2].partition(":")[0]: each.users for each in told.residents if each.users}
    return users, told.tokens
