"""What every room stands on: its database, the bus, its outbox, channels to other rooms, a server, background work.

A room's `app` opens one chassis and puts its own parts on it; when the block ends, all of it is taken down in order.
"""

import asyncio
import contextlib
import os
import secrets
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Sequence
from contextlib import AsyncExitStack, ExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import sqlalchemy as sa
import structlog
from opentelemetry.trace import SpanKind

from catena.kit import nats_server
from catena.kit.bus import Bus, open_bus
from catena.kit.caller import Caller, as_caller, unhurried
from catena.kit.clock import World
from catena.kit.config import House
from catena.kit.dial import dial
from catena.kit.event import Event
from catena.kit.outbox import Outbox
from catena.kit.serve import Admit, Limits, Server, open_server
from catena.kit.store import Migration, Store, open_store
from catena.kit.telemetry import recorded, span

TOKEN = "service.token"
AddService = Callable[[grpc.aio.Server], None]
log = structlog.get_logger()


@dataclass(slots=True, kw_only=True)
class Chassis:
    """The parts of one running room. `store` and `outbox` raise AssertionError in a room that keeps no tables."""

    room: str
    house: House
    world: World
    token: str
    bus: Bus
    _stack: AsyncExitStack
    _tasks: set[asyncio.Task[None]]
    _store: Store | None = None
    _outbox: Outbox | None = None

    @property
    def store(self) -> Store:
        """The room's own database."""
        assert self._store is not None, f"{self.room} opened its chassis without metadata"
        return self._store

    @property
    def outbox(self) -> Outbox:
        """The room's promised events."""
        assert self._outbox is not None, f"{self.room} opened its chassis without metadata"
        return self._outbox

    async def dial(self, room: str) -> grpc.aio.Channel:
        """A channel to another room; it connects when first used and closes with the chassis."""
        return await self._stack.enter_async_context(dial(self.house.address(room), token=self.token))

    def background(self, work: Coroutine[Any, Any, None], name: str) -> None:
        """Run `work` until the room closes. A failure is logged; the room goes on."""
        with unhurried():
            task = asyncio.create_task(self._watched(work, name), name=f"{self.room}: {name}")
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        task.add_done_callback(lambda _: work.close())  # it never began where the room closed at once

    def consume(
        self, durable: str, types: Sequence[str], handle: Callable[[Event], Awaitable[None]], *, in_flight: int = 1
    ) -> None:
        """Hand every event of `types` to `handle`, as its tenant and within its trace, from where `durable` stopped."""

        async def traced(event: Event) -> None:
            name = f"{self.room}.on_{event.type.replace('.', '_')}"
            with as_caller(Caller(event.tenant)), span(name, parent=event.traceparent, kind=SpanKind.CONSUMER):
                await handle(event)

        self.background(self.bus.consume(durable, types, traced, in_flight=in_flight), durable)

    def consume_together(
        self, durable: str, types: Sequence[str], handle: Callable[[Sequence[Event]], Awaitable[None]]
    ) -> None:
        """Hand events of `types` to `handle` in groups, of any tenants; each recorded trace among theirs has a span."""

        async def traced(events: Sequence[Event]) -> None:
            with ExitStack() as spans:
                for event in events:
                    if recorded(event.traceparent):
                        name = f"{self.room}.on_{event.type.replace('.', '_')}"
                        spans.enter_context(span(name, parent=event.traceparent, kind=SpanKind.CONSUMER))
                await handle(events)

        self.background(self.bus.consume_together(durable, types, traced), durable)

    def watch(
        self, types: Sequence[str], handle: Callable[[Event], Awaitable[None]], *, since_now: bool = True
    ) -> None:
        """Show events of `types` to this process as they come; for caches, which every replica must clear.

        `since_now` False begins with the oldest that the bus keeps.
        """
        self.background(self.bus.watch(types, handle, since_now=since_now), "watch")

    @asynccontextmanager
    async def serve(
        self,
        *services: AddService,
        names: Sequence[str],
        limits: Limits | None = None,
        admit: Admit | None = None,
    ) -> AsyncIterator[Server]:
        """Serve at the room's address until the block ends; other rooms are admitted unless `admit` says who is."""
        address = self.house.address(self.room)
        async with open_server(
            address,
            services,
            names=names,
            token=admit or self.token,
            world=self.world,
            limits=limits or Limits(grace_s=self.house.drain_s),
        ) as server:
            log.info("room open", room=self.room, address=server.address)
            yield server

    async def _watched(self, work: Coroutine[Any, Any, None], name: str) -> None:
        try:
            await work
        except Exception:
            log.exception("background work failed", room=self.room, work=name)


@asynccontextmanager
async def open_chassis(
    room: str,
    house: House,
    world: World,
    *,
    metadata: sa.MetaData | None = None,
    migrations: Sequence[Migration] = (),
) -> AsyncIterator[Chassis]:
    """Open what `room` stands on; with `metadata` also its database and the relay of its outbox."""
    async with AsyncExitStack() as stack:
        url = nats_server.url(house.folder(), house.bus.url)
        bus = await stack.enter_async_context(open_bus(url, name=room))
        chassis = Chassis(
            room=room, house=house, world=world, token=service_token(house), bus=bus, _stack=stack, _tasks=set()
        )
        if metadata is not None:
            chassis._store = await stack.enter_async_context(
                open_store(
                    house.database_url(room),
                    metadata,
                    room=room,
                    migrations=migrations,
                    synchronous=house.sql.synchronous,
                )
            )
            chassis._outbox = Outbox(chassis.store, bus, world)
        stack.push_async_callback(_end, chassis._tasks)
        if chassis._outbox is not None and "outbox" in (metadata.tables if metadata is not None else ()):
            chassis.background(chassis.outbox.run(), "outbox")
        yield chassis


async def _end(tasks: set[asyncio.Task[None]]) -> None:
    waiting = list(tasks)
    for task in waiting:
        task.cancel()
    await asyncio.gather(*waiting, return_exceptions=True)


def service_token(house: House) -> str:
    """What rooms show each other: as configured, else the one kept, and made once, in `home/keys/service.token`."""
    if not house.auth.service_token:
        path = house.folder("keys") / TOKEN
        if not path.exists():
            make_once(path, secrets.token_urlsafe(32))
    return kept_token(house)


def kept_token(house: House) -> str:
    """The same for a visitor, who makes nothing: empty where no room has run yet."""
    path = Path(house.home) / "keys" / TOKEN
    return house.auth.service_token or (path.read_text().strip() if path.exists() else "")


def make_once(path: Path, text: str) -> None:
    """Put a whole file at `path`, its owner's alone; of processes that start together, the first one's stays."""
    with tempfile.NamedTemporaryFile("w", dir=path.parent) as draft:
        draft.write(text)
        draft.flush()
        with contextlib.suppress(FileExistsError):
            os.link(draft.name, path)
