"""Runs the ASGI application on uvicorn within the room's own event loop, and says where it listens."""

import asyncio
import contextlib
import os
import socket
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import msgspec
import uvicorn
from starlette.applications import Starlette

from catena.kit.errors import Conflict

KEEP_ALIVE_S = 75
"""How long a connection may lie idle: longer than the 60 s of usual load balancers and clients, for whoever closes it
first must not be the server, which may do so just as the next request is on its way."""


@asynccontextmanager
async def open_web(
    app: Starlette, host: str, port: int, *, elsewhere: bool, front: Path, drain_s: float
) -> AsyncIterator[str]:
    """Serve `app` until the block ends, and yield its URL, which is also written to `front`.

    Live answers may go on for `drain_s` at the end; idle connections are closed at once.
    `elsewhere`: a taken port gives a free one, and a restart keeps the one it had, so that clients find it again.
    Raises Conflict (`port_taken`) where the port is taken.
    """
    ports = [*port_before(front), port, 0] if elsewhere else [port]
    listening = listen(host, ports)
    config = uvicorn.Config(
        app,
        http="httptools",
        lifespan="off",
        log_config=None,
        access_log=False,
        server_header=False,
        timeout_keep_alive=KEEP_ALIVE_S,
        timeout_graceful_shutdown=max(1, round(drain_s)),
    )
    server = Embedded(config)
    running = asyncio.create_task(server.serve(sockets=[listening]))
    try:
        while not server.started and not running.done():  # noqa: ASYNC110 - uvicorn offers no event
            await asyncio.sleep(0.005)
        name = "127.0.0.1" if host in ("0.0.0.0", "::") else host
        url = f"http://{name}:{listening.getsockname()[1]}"
        told = front.with_suffix(".new")
        told.write_bytes(msgspec.json.encode({"url": url, "pid": os.getpid()}))
        told.replace(front)
        yield url
    finally:
        server.should_exit = True
        await asyncio.gather(running, return_exceptions=True)


class Embedded(uvicorn.Server):
    """A server that leaves signals to the room."""

    @contextlib.contextmanager
    def capture_signals(self):  # type: ignore[no-untyped-def]
        """Capture nothing."""
        yield


def port_before(front: Path) -> list[int]:
    """The port of the run before, if it was not taken down with its platform."""
    try:
        return [int(msgspec.json.decode(front.read_bytes())["url"].rpartition(":")[2])]
    except (OSError, msgspec.DecodeError, KeyError, ValueError):
        return []


def listen(host: str, ports: Sequence[int]) -> socket.socket:
    """A listening socket at the first of `ports` that is free; 0 is always."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    for wanted in ports:
        found = socket.socket(family, socket.SOCK_STREAM)
        found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            found.bind((host, wanted))
        except OSError as error:
            found.close()
            taken = error
        else:
            found.setblocking(False)
            return found
    raise Conflict(f"cannot listen at {host}:{ports[0]} ({taken}); free it or set gateway.port", code="port_taken")
