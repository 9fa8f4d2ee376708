import asyncio
import json
import math
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, suppress
from functools import partial
from pathlib import Path

import pytest

from catena.kit.dial import deadline_s, unhurried, within
from catena.kit.errors import Conflict, Denied, Exhausted, Invalid, Late, Missing, Unavailable
from catena.kit.serve import Caller, caller, http_status
from catena.kit.wire import verb_of
from tests.unit.kit.echo import TOKEN, WAY, Client, dial, echo, serving


@pytest.fixture(autouse=True, params=[True, False], ids=["direct", "socket"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(WAY, "direct", request.param)


async def tell_deadline(_request: bytes) -> bytes:
    return json.dumps(deadline_s()).encode()


async def test_a_call_without_timeout_gets_the_channels(tmp_path: Path) -> None:
    async with (
        serving(tmp_path, unary=tell_deadline) as server,
        dial(server.address, token=TOKEN, timeout_s=7) as channel,
    ):
        assert 6 < float(await Client(channel, "echo").say(b"")) <= 7.2


async def test_the_deadline_that_travels_is_the_least_of_own_and_remaining(tmp_path: Path) -> None:
    async with echo(tmp_path, "back", unary=tell_deadline) as back:

        async def pass_on(request: bytes) -> bytes:
            return bytes(await back.say(b"", timeout=float(request)))

        async with echo(tmp_path, "front", unary=pass_on) as front:
            assert 4 < float(await front.say(b"100", timeout=5)) <= 5.2
            assert 1 < float(await front.say(b"2", timeout=5)) <= 2.2


async def test_streams_carry_the_deadline_too(tmp_path: Path) -> None:
    async def recite(request: bytes) -> AsyncIterator[bytes]:
        yield await tell_deadline(request)

    async with echo(tmp_path, stream=recite) as client:
        with within(3):
            heard = [float(message) async for message in client.recite(b"", timeout=100)]
    assert 2 < heard[0] <= 3.2


async def test_a_block_may_shrink_the_deadline_but_never_stretch_it() -> None:
    assert deadline_s() == math.inf
    with within(5):
        with within(50):
            assert deadline_s() <= 5
        with within(1):
            assert deadline_s() <= 1
        with unhurried():
            assert deadline_s() == math.inf
        assert 1 < deadline_s() <= 5
    with within(-1):
        assert deadline_s() == 0


async def test_a_call_with_no_time_left_is_late(tmp_path: Path) -> None:
    async with echo(tmp_path, unary=tell_deadline) as client:
        with within(0), pytest.raises(Late):
            await client.say(b"")


async def test_work_that_outlives_a_call_is_free_of_its_deadline(tmp_path: Path) -> None:
    later: list[asyncio.Task[tuple[float, Caller]]] = []

    async def look() -> tuple[float, Caller]:
        return deadline_s(), caller()

    async def submit(_request: bytes) -> bytes:
        with unhurried():
            later.append(asyncio.create_task(look()))
        return b""

    async with echo(tmp_path, unary=submit) as client:
        await client.say(b"", timeout=5)
    assert await later[0] == (math.inf, Caller("shared", "user"))


async def test_nobody_there_is_unavailable_and_names_the_address(tmp_path: Path) -> None:
    address = f"unix:{tmp_path}/nobody.sock"
    async with dial(address, token=TOKEN) as channel:
        with pytest.raises(Unavailable, match=r"nobody\.sock") as caught:
            await Client(channel, "echo").say(b"")
        assert caught.value.retry_after_s > 0
        with pytest.raises(Unavailable):
            [message async for message in Client(channel, "echo").recite(b"")]


async def test_a_room_that_comes_back_is_found_by_the_same_channel(tmp_path: Path) -> None:
    async with dial(f"unix:{tmp_path}/echo.sock", token=TOKEN) as channel:
        client = Client(channel, "echo")
        for _life in range(2):
            async with serving(tmp_path, unary=tell_deadline):
                assert float(await client.say(b"", wait_for_ready=True, timeout=10)) > 0


async def test_an_error_that_a_handler_raised_is_not_retried_by_the_transport(tmp_path: Path) -> None:
    ran = []

    async def fail(request: bytes) -> bytes:
        ran.append(request)
        raise Unavailable("the provider is down")

    async with echo(tmp_path, unary=fail) as client:
        with pytest.raises(Unavailable, match=r"^the provider is down$"):
            await client.say(b"once")
    assert ran == [b"once"]


async def test_too_large_a_message_is_exhausted(tmp_path: Path) -> None:
    async with echo(tmp_path, unary=tell_deadline) as client:
        with pytest.raises(Exhausted):
            await client.say(bytes(65 * 1024 * 1024))


def test_a_tenant_that_cannot_travel_is_invalid() -> None:
    for tenant in ("", "a b", "é", "x" * 65, "a\n"):
        with pytest.raises(Invalid) as caught:
            Caller(tenant)
        assert caught.value.code == "bad_tenant"


@pytest.mark.parametrize(
    ("method", "verb"),
    [
        ("/catena.api.router.v1.RouterService/GetStats", "router.get_stats"),
        ("/catena.api.executor.v1beta1.ExecutorService/Run", "executor.run"),
        ("/grpc.health.v1.Health/Check", "health.check"),
        ("/Echo/Say", "echo.say"),
    ],
)
def test_a_method_is_named_by_room_and_verb(method: str, verb: str) -> None:
    assert verb_of(method) == verb


def test_each_kind_has_its_http_status() -> None:
    kinds = [Invalid, Missing, Conflict, Exhausted, Unavailable, Late, Denied]
    assert [http_status(kind("x")) for kind in kinds] == [400, 404, 409, 429, 503, 504, 403]


async def test_a_room_that_is_slow_to_take_a_connection_is_waited_for(tmp_path: Path) -> None:
    async def answer(request: bytes) -> bytes:
        return request

    async with AsyncExitStack() as stack:
        server = await stack.enter_async_context(serving(tmp_path, unary=answer))
        front = f"{tmp_path}/slow.sock"
        slow = await asyncio.start_unix_server(partial(passed_on, server.address.removeprefix("unix:"), 0.5), front)
        stack.push_async_callback(slow.wait_closed)
        stack.callback(slow.close)
        channel = await stack.enter_async_context(dial(f"unix:{front}", token=TOKEN))
        assert await Client(channel, "echo").say(b"hello") == b"hello"


async def passed_on(path: str, after_s: float, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Pass bytes both ways between a connection, after a while, and the socket at `path`."""
    await asyncio.sleep(after_s)
    there, here = await asyncio.open_unix_connection(path)

    async def pipe(source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
        with suppress(ConnectionError):
            while more := await source.read(65536):
                sink.write(more)
                await sink.drain()
        sink.close()

    await asyncio.gather(pipe(reader, here), pipe(there, writer))
