"""Execution records: committed in groups with their events, a moment after the answer; read back; scored; forgotten."""

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import msgspec
import sqlalchemy as sa
import structlog
from google.protobuf.message import Message as Proto
from sqlalchemy.ext.asyncio import AsyncConnection

from catena.executor.core.chat import Message, Score
from catena.executor.core.events import Record
from catena.executor.core.figures import PipelineFigures
from catena.executor.drivers import tables
from catena.executor.drivers.figures import count, read_figures
from catena.kit import outbox
from catena.kit.clock import World
from catena.kit.errors import CatenaError
from catena.kit.event import Event
from catena.kit.store import Store, upsert, upsert_for
from catena.kit.telemetry import current_traceparent, trace_id

COMPLETED = "executor.execution.completed"
GROUP_S = 0.035
MOST_AT_ONCE = 200
MOST_WAITING = 20_000
DAY_S = 86_400.0
log = structlog.get_logger()


@dataclass(frozen=True, slots=True, kw_only=True)
class Kept:
    """The texts of an execution, for tenants that keep them."""

    prompt: tuple[Message, ...]
    answer: str


@dataclass(frozen=True, slots=True)
class Waiting:
    """A record on its way, with the trace that it came from."""

    record: Record
    traceparent: str


class SqlRecords:
    """Takes records without waiting; `run` writes them, every 35 ms what has come."""

    def __init__(self, store: Store, world: World, *, event: Callable[[Record], Proto]) -> None:
        """`event` makes the body of `executor.execution.completed`."""
        self._store = store
        self._world = world
        self._event = event
        self._waiting: list[Waiting] = []
        self._news = asyncio.Event()

    def add(self, record: Record) -> None:
        """Take a record; the newest are kept should the database be away for long."""
        self._waiting.append(Waiting(replace(record, trace_id=trace_id()), current_traceparent()))
        if len(self._waiting) > MOST_WAITING:
            self._waiting.pop(0)
            log.error("execution record dropped", waiting=MOST_WAITING)
        self._news.set()

    async def run(self) -> None:
        """Write until cancelled, and at the end what is left."""
        try:
            while True:
                await self._news.wait()
                await asyncio.sleep(GROUP_S)
                self._news.clear()
                await self._flush()
        finally:
            await asyncio.shield(self._flush_all())

    async def write(self, conn: AsyncConnection, waiting: Sequence[Waiting]) -> None:
        """Write records that are not there yet, with figures and events, in the transaction of `conn`."""
        rows = {item.record.id: _row(item.record) for item in waiting}
        new = set((await conn.execute(_inserting(conn.dialect.name), list(rows.values()))).scalars())
        fresh = {item.record.id: item for item in waiting if item.record.id in new}
        if not fresh:
            return
        records = [item.record for item in fresh.values()]
        marks = [
            {
                "tenant": record.tenant,
                "execution_id": record.id,
                "number": f"verifier-{place}",
                "source": score.source,
                "value": score.value,
                "created_s": record.created_s,
            }
            for record in records
            for place, score in enumerate(record.scores)
        ]
        if marks:
            await conn.execute(tables.scores.insert(), marks)
        await count(conn, records)
        await outbox.put(conn, *(self._told(item) for item in fresh.values()))

    async def get(self, tenant: str, execution_id: str) -> Record | None:
        """The record with every score so far."""
        query = sa.select(tables.executions).where(
            tables.executions.c.id == execution_id, tables.executions.c.tenant == tenant
        )
        marks = sa.select(tables.scores).where(
            tables.scores.c.tenant == tenant, tables.scores.c.execution_id == execution_id
        )
        async with self._store.connect() as conn:
            row = (await conn.execute(query)).mappings().one_or_none()
            given = (await conn.execute(marks.order_by(tables.scores.c.number))).mappings().all()
        if row is None:
            return None
        found = msgspec.json.decode(row["record"], type=Record)
        judged = tuple(Score(value=mark["value"], source=mark["source"]) for mark in given)
        texts = msgspec.json.decode(row["texts"], type=Kept) if row["texts"] else Kept(prompt=(), answer="")
        return replace(found, scores=judged, prompt=texts.prompt, answer=texts.answer)

    async def figures(self, tenant: str, name: str) -> Sequence[PipelineFigures]:
        """The tenant's figures by pipeline or shape; `name` empty: all."""
        return await read_figures(self._store, tenant, name)

    async def score(self, event_id: str, tenant: str, execution_id: str, value: float) -> None:
        """Note a user's judgement, once an event; it shows on the tenant's execution of that id, if there is one."""
        mark = {
            "tenant": tenant,
            "execution_id": execution_id,
            "number": event_id,
            "source": "feedback",
            "value": value,
            "created_s": self._world.clock.now(),
        }
        async with self._store.begin() as conn:
            await conn.execute(upsert(tables.scores, conn).values(mark).on_conflict_do_nothing())

    async def forget(self, *, records_days: float, texts_days: float) -> None:
        """Remove what is older than it may be kept; 0 days: kept for ever."""
        now_s = self._world.clock.now()
        old = tables.executions.c.created_s
        async with self._store.begin() as conn:
            if records_days:
                await conn.execute(tables.executions.delete().where(old < now_s - records_days * DAY_S))
                given = tables.scores.c.created_s
                await conn.execute(tables.scores.delete().where(given < now_s - records_days * DAY_S))
            if texts_days:
                wipe = tables.executions.update().values(texts=None)
                await conn.execute(wipe.where(old < now_s - texts_days * DAY_S, tables.executions.c.texts.is_not(None)))

    async def _flush_all(self) -> None:
        while self._waiting and await self._flush():
            pass

    async def _flush(self) -> bool:
        """Write what is there now, what comes meanwhile is another group's; False: the database is away."""
        due = list(self._waiting)
        for first in range(0, len(due), MOST_AT_ONCE):
            group = due[first : first + MOST_AT_ONCE]
            try:
                async with self._store.begin() as conn:
                    await self.write(conn, group)
            except CatenaError as error:
                log.warning("execution records wait", waiting=len(self._waiting), error=error.message)
                self._news.set()
                await asyncio.sleep(GROUP_S)
                return False
            written = {id(item) for item in group}
            self._waiting = [item for item in self._waiting if id(item) not in written]
        return True

    def _told(self, item: Waiting) -> Event:
        record = item.record
        return Event(
            id=f"completed-{record.id}",
            type=COMPLETED,
            tenant=record.tenant,
            subject=record.id,
            time_s=self._world.clock.now(),
            data=self._event(record).SerializeToString(),
            traceparent=item.traceparent,
        )


async def forget_daily(records: SqlRecords, *, records_days: float, texts_days: float, every_s: float) -> None:
    """Remove what is too old now and every `every_s`, until cancelled."""
    while True:
        try:
            await records.forget(records_days=records_days, texts_days=texts_days)
        except CatenaError as error:
            log.warning("old records stay", error=error.message)
        await asyncio.sleep(every_s)


@cache
def _inserting(dialect: str) -> Any:
    insert = upsert_for(tables.executions, dialect).on_conflict_do_nothing()
    return insert.returning(tables.executions.c.id)


def _row(record: Record) -> dict[str, object]:
    texts = Kept(prompt=record.prompt, answer=record.answer)
    bare = replace(record, prompt=(), answer="", scores=())
    return {
        "id": record.id,
        "tenant": record.tenant,
        "created_s": record.created_s,
        "record": msgspec.json.encode(bare),
        "texts": msgspec.json.encode(texts) if record.prompt or record.answer else None,
    }
