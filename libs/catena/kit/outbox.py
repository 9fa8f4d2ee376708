"""Events that are told if, and only if, the state change behind them was committed; effects that happen once.

A room that emits puts its events into its own database, in the transaction of the change; a relay publishes them in
order and, a moment later, deletes what the broker has stored. A room that consumes notes each event's id in the
transaction of the effect. Together: at least once on the wire, once in effect.
"""

import asyncio
import contextlib
import time
import zlib
from collections.abc import Sequence
from typing import Protocol, TypeAlias

import sqlalchemy as sa
import structlog
from google.protobuf.message import Message
from sqlalchemy.ext.asyncio import AsyncConnection

from catena.kit.cancel import heed_cancel
from catena.kit.clock import World
from catena.kit.errors import CatenaError
from catena.kit.event import Event, check
from catena.kit.store import EMITTED, Store, upsert
from catena.kit.telemetry import current_traceparent

LEASE_S = 10.0
POLL_S = 0.5
CLEAR_S = 0.25
"""How long published events may stay: to delete many costs as much as to delete one."""
PACE_S = 0.1
"""Between two looks at a stream of events: one look costs nearly as much as the events that it finds."""
BATCH, ABREAST = 200, 32
REMEMBER_S = 14 * 86_400.0
"""How long an event's id is remembered: twice as long as the broker keeps events."""

log = structlog.get_logger()

_TABLES = sa.MetaData()
_OUTBOX = sa.Table(
    "outbox",
    _TABLES,
    sa.Column("seq", sa.BigInteger().with_variant(sa.Integer, "sqlite"), primary_key=True, autoincrement=True),
    sa.Column("id", sa.Text, nullable=False, unique=True),
    sa.Column("type", sa.Text, nullable=False),
    sa.Column("tenant", sa.Text, nullable=False),
    sa.Column("subject", sa.Text, nullable=False),
    sa.Column("time_s", sa.Double, nullable=False),
    sa.Column("data", sa.LargeBinary, nullable=False),
    sa.Column("traceparent", sa.Text, nullable=False),
)
_CARRIED = [column.name for column in _OUTBOX.columns if column.name != "seq"]
_LEASE = sa.Table(
    "outbox_lease",
    _TABLES,
    sa.Column("name", sa.Text, primary_key=True),
    sa.Column("holder", sa.Text, nullable=False),
    sa.Column("until_s", sa.Double, nullable=False),
)
_INBOX = sa.Table(
    "inbox",
    _TABLES,
    sa.Column("consumer", sa.Text, primary_key=True),
    sa.Column("event_id", sa.Text, primary_key=True),
    sa.Column("at_s", sa.Double, nullable=False),
    sa.Index("inbox_at", "at_s"),
)


class Publisher(Protocol):
    """What the relay needs of the bus."""

    async def publish(self, event: Event, *, timeout_s: float = 30.0) -> None:
        """Return once the broker has stored `event`."""
        ...


def outbox_table(metadata: sa.MetaData) -> sa.Table:
    """Declare the outbox, and its relay's lease, among a room's own tables."""
    _LEASE.to_metadata(metadata)
    return _OUTBOX.to_metadata(metadata)


def inbox_table(metadata: sa.MetaData) -> sa.Table:
    """Declare the inbox among a room's own tables."""
    return _INBOX.to_metadata(metadata)


async def put(conn: AsyncConnection, *events: Event) -> None:
    """Promise `events`, in this order; they are told once `conn`'s transaction (of `Store.begin`) is committed.

    Raises Invalid when one could never be published.
    """
    if not events:
        return
    rows = [
        {
            "id": event.id,
            "type": event.type,
            "tenant": event.tenant,
            "subject": event.subject,
            "time_s": event.time_s,
            "data": event.data,
            "traceparent": event.traceparent,
        }
        for event in map(check, events)
    ]
    if conn.dialect.name == "postgresql":
        # Numbers are drawn before the commit; in turn, so that their order is the order of the commits.
        await conn.execute(
            sa.select(sa.func.pg_advisory_xact_lock(sa.func.hashtext(sa.func.current_schema() + ".outbox")))
        )
    await conn.execute(_OUTBOX.insert(), rows)
    conn.info[EMITTED] = True


async def once(conn: AsyncConnection, event_id: str, consumer: str) -> bool:
    """Whether `consumer` meets this event for the first time; noted in `conn`'s transaction, that of the effect."""
    return event_id in await first_time(conn, [event_id], consumer)


async def first_time(conn: AsyncConnection, event_ids: Sequence[str], consumer: str) -> set[str]:
    """Those of `event_ids` that `consumer` meets for the first time; otherwise as `once`."""
    sqlite = conn.dialect.name == "sqlite"
    seconds = "(julianday('now') - 2440587.5) * 86400.0" if sqlite else "extract(epoch from now())"
    now = sa.literal_column(seconds, sa.Double)
    note = upsert(_INBOX, conn).values(at_s=now).on_conflict_do_nothing().returning(_INBOX.c.event_id)
    # Sorted, so that two who note the same never wait for each other.
    notes = [{"consumer": consumer, "event_id": event_id} for event_id in sorted(set(event_ids))]
    first = set((await conn.execute(note, notes)).scalars())
    if any(zlib.crc32(event_id.encode()) % 1000 == 0 for event_id in first):
        await conn.execute(_INBOX.delete().where(_INBOX.c.at_s < now - REMEMBER_S))
    return first


async def relay(
    store: Store,
    bus: Publisher,
    *,
    world: World,
    lease_s: float = LEASE_S,
    poll_s: float = POLL_S,
    batch: int = BATCH,
) -> None:
    """Publish what was put, in order, until cancelled. Of several relays on one database one works at a time.

    Wakes at once for commits of this process (ten times a second while they keep coming), within `poll_s` for those of
    others. A relay that loses its lease midway, or its process, does no harm: what is published again is so under the
    same ids. Consecutive events of one type about different entities are on the way at once: should the connection
    break just then, their order among each other may change, and theirs only.
    """
    me = world.new_id()
    held_until_s, idle = 0.0, False
    forwarding = _Forwarding(store, bus, batch=batch, within_s=lease_s / 2)
    try:
        while True:
            heed_cancel()
            sent, now_s = 0, world.clock.now()
            try:
                if now_s > held_until_s:
                    forwarding.forget()
                if now_s > held_until_s - lease_s / 2:
                    held_until_s = await _take_lease(store, me, now_s, lease_s)
                if held_until_s:
                    await forwarding.pace()
                    await forwarding.clear(idle=idle)
                    sent = await forwarding.forward()
            except CatenaError as error:
                log.warning("outbox waits", error=str(error))
            except Exception:
                log.exception("outbox stumbles")
            if sent < batch:
                patience_s = min(poll_s, CLEAR_S) if forwarding.done else poll_s
                idle = not await _woken(store, patience_s if held_until_s else lease_s / 4)
    finally:
        with contextlib.suppress(CatenaError):
            await asyncio.shield(forwarding.clear(idle=True))
            await asyncio.shield(_end_lease(store, me))


class Outbox:
    """A room's outbox with everything bound: its database, the bus, and the world."""

    def __init__(self, store: Store, bus: Publisher, world: World) -> None:
        """The tables of `outbox_table` must be part of `store`'s metadata."""
        self._store = store
        self._bus = bus
        self._world = world

    async def put(self, conn: AsyncConnection, *, type: str, tenant: str, message: Message, subject: str = "") -> Event:
        """Promise an event in `conn`'s transaction, caused by the current span; returns it as it will be told."""
        event = Event(
            id=self._world.new_id(),
            type=type,
            tenant=tenant,
            subject=subject,
            time_s=self._world.clock.now(),
            data=message.SerializeToString(),
            traceparent=current_traceparent(),
        )
        await put(conn, event)
        return event

    def wake(self) -> None:
        """Let the relay look now; `Store.begin` does so by itself."""
        self._store.emitted.set()

    async def run(self) -> None:
        """Relay until cancelled."""
        await relay(self._store, self._bus, world=self._world)


_Numbered: TypeAlias = Sequence[tuple[int, Event]]


class _Forwarding:
    """Publishes what is in the outbox, and deletes it a moment later, much at once."""

    def __init__(self, store: Store, bus: Publisher, *, batch: int, within_s: float) -> None:
        self.done: list[str] = []
        """Ids of what is published, though still there."""
        self._upto = 0
        self._store = store
        self._bus = bus
        self._batch = batch
        self._within_s = within_s
        self._cleared_s = self._told_s = time.monotonic()

    async def pace(self) -> None:
        """Let what comes one after the other gather: an event that comes alone is told at once."""
        await asyncio.sleep(max(0.0, self._told_s + PACE_S - time.monotonic()))

    async def forward(self) -> int:
        """Publish the oldest events; how many."""
        query = sa.select(_OUTBOX).where(_OUTBOX.c.seq > self._upto).order_by(_OUTBOX.c.seq).limit(self._batch)
        async with self._store.connect() as conn:
            rows = (await conn.execute(query)).mappings().all()
        left: _Numbered = [(row["seq"], Event(**{name: row[name] for name in _CARRIED})) for row in rows]
        while left:
            several, left = _abreast(left)
            publishing = (self._bus.publish(event, timeout_s=self._within_s) for _, event in several)
            outcomes = await asyncio.gather(*publishing, return_exceptions=True)
            self._told_s = time.monotonic()
            for (seq, event), outcome in zip(several, outcomes, strict=True):
                if isinstance(outcome, BaseException):
                    raise outcome
                self._upto = seq
                self.done.append(event.id)
        return len(rows)

    async def clear(self, *, idle: bool) -> None:
        """Delete what is published, if nothing else is to be done or it is time."""
        if not self.done or not (idle or time.monotonic() - self._cleared_s > CLEAR_S):
            return
        async with self._store.begin() as conn:
            await conn.execute(_OUTBOX.delete().where(_OUTBOX.c.id.in_(self.done)))
        self.forget()
        self._cleared_s = time.monotonic()

    def forget(self) -> None:
        """Look at everything again: another relay may have been here, and SQLite counts an emptied table from 1."""
        self.done, self._upto = [], 0


def _abreast(left: _Numbered) -> tuple[_Numbered, _Numbered]:
    """The first events that may be on the way at once, and the others: of one type, each about another entity."""
    first, about = left[0][1], set[str]()
    for count, (_, event) in enumerate(left[:ABREAST]):
        if (event.type, event.tenant) != (first.type, first.tenant) or not event.subject or event.subject in about:
            return left[: max(count, 1)], left[max(count, 1) :]
        about.add(event.subject)
    return left[:ABREAST], left[ABREAST:]


async def _take_lease(store: Store, me: str, now_s: float, lease_s: float) -> float:
    """Take or renew the lease; until when it holds, or 0 when another relay has it."""
    until_s = now_s + lease_s
    async with store.begin() as conn:
        claim = upsert(_LEASE, conn).values(name="relay", holder=me, until_s=until_s)
        free = sa.or_(_LEASE.c.holder == me, _LEASE.c.until_s < now_s)
        claim = claim.on_conflict_do_update(
            index_elements=["name"], set_={"holder": me, "until_s": until_s}, where=free
        )
        taken = (await conn.execute(claim.returning(_LEASE.c.holder))).first()
    return until_s if taken else 0.0


async def _end_lease(store: Store, me: str) -> None:
    async with store.begin() as conn:
        await conn.execute(_LEASE.update().where(_LEASE.c.holder == me).values(until_s=0.0))


async def _woken(store: Store, poll_s: float) -> bool:
    """Whether something was put within `poll_s`."""
    try:
        async with asyncio.timeout(poll_s):
            await store.emitted.wait()
    except TimeoutError:
        return False
    store.emitted.clear()
    return True
