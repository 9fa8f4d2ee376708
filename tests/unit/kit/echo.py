"""A small gRPC service made of byte handlers, so that the chassis is tested through real servers and sockets."""

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from typing import Any

import grpc

from catena.kit import dial as kit_dial
from catena.kit.serve import Limits, Server, open_server

TOKEN = "a-token"
WAY = {"direct": True}
"""Whether calls go through a server's door, or over its socket: both must behave alike."""
Unary = Callable[[bytes], Awaitable[bytes]]
Stream = Callable[[bytes], AsyncIterator[bytes]]


def dial(address: str, **options: Any) -> AbstractAsyncContextManager[grpc.aio.Channel]:
    return kit_dial.dial(address, **options, **WAY)


def service(room: str, unary: Unary | None = None, stream: Stream | None = None) -> Callable[[grpc.aio.Server], None]:
    """`catena.api.<room>.v1.EchoService` with the methods `Say` and `Recite`."""
    methods: dict[str, Any] = {}
    if unary is not None:

        async def say(request: bytes, _context: Any) -> bytes:
            return await unary(request)

        methods["Say"] = grpc.unary_unary_rpc_method_handler(say)
    if stream is not None:

        async def recite(request: bytes, _context: Any) -> AsyncIterator[bytes]:
            messages = stream(request)
            try:
                async for message in messages:
                    yield message
            finally:
                await messages.aclose()  # type: ignore[attr-defined]

        methods["Recite"] = grpc.unary_stream_rpc_method_handler(recite)
    handler = grpc.method_handlers_generic_handler(name(room), methods)
    return lambda server: server.add_generic_rpc_handlers((handler,))


def name(room: str) -> str:
    return f"catena.api.{room}.v1.EchoService"


class Client:
    def __init__(self, channel: grpc.aio.Channel, room: str) -> None:
        self.say: Any = channel.unary_unary(f"/{name(room)}/Say")
        self.recite: Any = channel.unary_stream(f"/{name(room)}/Recite")


@asynccontextmanager
async def serving(
    folder: Path,
    room: str = "echo",
    *,
    unary: Unary | None = None,
    stream: Stream | None = None,
    limits: Limits | None = None,
) -> AsyncIterator[Server]:
    address = f"unix:{folder}/{room}.sock"
    limits = limits or Limits(grace_s=0)
    async with open_server(
        address, [service(room, unary, stream)], names=[name(room)], token=TOKEN, limits=limits
    ) as s:
        yield s


@asynccontextmanager
async def echo(folder: Path, room: str = "echo", **options: Any) -> AsyncIterator[Client]:
    async with serving(folder, room, **options) as server, dial(server.address, token=TOKEN) as channel:
        yield Client(channel, room)
