import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse
from starlette.routing import Route

from catena.gateway.drivers.web import open_web

BALANCERS_IDLE_S = 60.0


class Hurried(asyncio.SelectorEventLoop):
    """A loop whose clock can be put on."""

    ahead_s = 0.0

    def time(self) -> float:
        return super().time() + self.ahead_s


async def hello(_request: Request) -> PlainTextResponse:
    return PlainTextResponse("hello")


async def ask(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bytes:
    writer.write(b"GET / HTTP/1.1\r\nHost: here\r\n\r\n")
    await writer.drain()
    return await asyncio.wait_for(reader.readuntil(b"hello"), 30)


@asynccontextmanager
async def connected(url: str) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    reader, writer = await asyncio.open_connection("127.0.0.1", int(url.rpartition(":")[2]))
    try:
        yield reader, writer
    finally:
        writer.close()


def web(folder: Path, drain_s: float = 1.0):  # type: ignore[no-untyped-def]
    app = Starlette(routes=[Route("/", hello)])
    return open_web(app, "127.0.0.1", 0, elsewhere=True, front=folder / "gateway.json", drain_s=drain_s)


def test_an_idle_connection_outlives_the_patience_of_load_balancers(tmp_path: Path) -> None:
    async def idle(loop: Hurried) -> None:
        async with web(tmp_path) as url, connected(url) as (reader, writer):
            await ask(reader, writer)
            loop.ahead_s += BALANCERS_IDLE_S
            await asyncio.sleep(0.05)
            assert b"200 OK" in await ask(reader, writer)
            loop.ahead_s += 2 * BALANCERS_IDLE_S
            assert await asyncio.wait_for(reader.read(), 30) == b"", "one that stays idle is closed at last"

    with asyncio.Runner(loop_factory=Hurried) as runner:
        loop = runner.get_loop()
        assert isinstance(loop, Hurried)
        runner.run(idle(loop))


async def test_idle_connections_do_not_hold_up_the_end(tmp_path: Path) -> None:
    async with web(tmp_path, drain_s=30.0) as url:
        reader, writer = await asyncio.open_connection("127.0.0.1", int(url.rpartition(":")[2]))
        await ask(reader, writer)
        began = time.monotonic()
    assert time.monotonic() - began < 10
    assert await asyncio.wait_for(reader.read(), 30) == b""
    writer.close()
