"""A web server with a published folder of adapters, and all that can go wrong with one."""

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

from aiohttp import web

from catena.adapters.drivers.registries.web import CHUNK

Fault = Callable[[web.Request, bytes], web.Response | None]


class Shelf:
    """`faults` answer first, one a request; `log` has each path with what was asked of it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.url = ""
        self.faults: list[Fault] = []
        self.log: list[tuple[str, str, str]] = []
        self.key = ""

    async def answer(self, request: web.Request) -> web.StreamResponse:
        asked = request.headers.get("Range", "") or request.headers.get("If-None-Match", "")
        self.log.append((request.path, asked, request.headers.get("Authorization", "")))
        path = self.folder / request.path.rpartition("/")[2]
        body = path.read_bytes() if path.is_file() else b""
        if self.faults and (answer := self.faults.pop(0)(request, body)) is not None:
            return answer
        return web.FileResponse(path) if path.is_file() else web.Response(status=404)

    @property
    def paths(self) -> list[str]:
        return [path for path, _, _ in self.log]


@asynccontextmanager
async def serving(folder: Path) -> AsyncIterator[Shelf]:
    shelf = Shelf(folder)
    app = web.Application()
    app.router.add_get("/{tail:.*}", shelf.answer)
    runner = web.AppRunner(app)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    shelf.url = f"http://127.0.0.1:{runner.addresses[0][1]}/shelf/"
    try:
        yield shelf
    finally:
        await runner.cleanup()


class Cut(web.Response):
    """Announces all of its body, sends half and hangs up."""

    async def write_eof(self, data: bytes = b"") -> None:
        assert self._req is not None and self._payload_writer is not None and isinstance(self._body, bytes)
        await self._payload_writer.write(self._body[: len(self._body) // 2])
        assert self._req.transport is not None
        self._req.transport.close()


def well(request: web.Request, body: bytes) -> None:
    """No fault."""


def cut(request: web.Request, body: bytes) -> web.Response:
    return Cut(body=body, headers={"ETag": '"1"'})


def status(code: int) -> Fault:
    return lambda request, body: web.Response(status=code)


def instead(other: bytes) -> Fault:
    return lambda request, body: web.Response(body=other)


def redirect(to: str) -> Fault:
    return lambda request, body: web.Response(status=302, headers={"Location": to})


def endless(request: web.Request, body: bytes) -> web.Response:
    return web.Response(body=bytes(len(body) + CHUNK))
