"""Background runs in SQL, with the log of their finished calls."""

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import msgspec
import sqlalchemy as sa
from google.protobuf.message import Message as Proto

from catena.executor.core.admission import Errand
from catena.executor.core.background import RunEnd, StoredRun
from catena.executor.core.events import Finished, StageResult
from catena.executor.drivers import tables
from catena.executor.drivers.payloads import put_aside, put_back
from catena.executor.drivers.records import SqlRecords, Waiting
from catena.kit.clock import World
from catena.kit.errors import Conflict
from catena.kit.event import Event
from catena.kit.outbox import Outbox
from catena.kit.store import Store, upsert
from catena.kit.telemetry import current_traceparent

FINISHED, SUBMITTED = "executor.run.finished", "executor.run.submitted"
OPEN = ("queued", "running")
_RUNS, _CALLS, _PAYLOADS = tables.runs, tables.run_calls, tables.run_payloads


@dataclass(frozen=True, slots=True, kw_only=True)
class Announcements:
    """Bodies of the events: of a run's id when it is submitted, of its id and end when it has ended."""

    submitted: Callable[[str], Proto]
    finished: Callable[[str, RunEnd], Proto]


class SqlRuns:
    """Every verb is one transaction. Whoever waits in this process is woken by each change.

    Replicas share the table: a lease says whose a run is, and `wake`, at each event of another, that there is news.
    """

    def __init__(
        self, store: Store, outbox: Outbox, records: SqlRecords, world: World, *, events: Announcements
    ) -> None:
        """Tell of runs by `events`, in the transaction of the change."""
        self._store = store
        self._outbox = outbox
        self._records = records
        self._world = world
        self._events = events
        self._news = asyncio.Event()

    async def submit(self, run: StoredRun, request_id: str) -> StoredRun:
        """Store a queued run, or return the one that the same request made before.

        Raises Conflict (`request_id_reused`) where that one was asked something else.
        """
        errand, aside = put_aside(run.errand)
        row = {
            "id": run.id,
            "tenant": run.tenant,
            "request_id": request_id or None,
            "role": run.role,
            "state": run.state,
            "created_s": run.created_s,
            "finished_s": 0.0,
            "errand": msgspec.json.encode(errand),
            "stages": b"[]",
            "error": "",
            "unwanted": False,
            "holder": "",
            "until_s": 0.0,
        }
        async with self._store.begin() as conn:
            # An INSERT's row count is not told by every driver; what it returns is.
            insert = upsert(_RUNS, conn).values(row).on_conflict_do_nothing().returning(_RUNS.c.id)
            if (await conn.execute(insert)).first() is None:
                same = sa.select(_RUNS).where(_RUNS.c.tenant == run.tenant, _RUNS.c.request_id == request_id)
                return _same(_run((await conn.execute(same)).one()), run, request_id)
            if aside:
                rows = [{"run_id": run.id, "reference": name, "body": text} for name, text in sorted(aside.items())]
                await conn.execute(_PAYLOADS.insert(), rows)
            await self._outbox.put(
                conn, type=SUBMITTED, tenant=run.tenant, message=self._events.submitted(run.id), subject=run.id
            )
        self._tell()
        return run

    async def get(self, tenant: str, run_id: str) -> StoredRun | None:
        """The run as it stands."""
        async with self._store.connect() as conn:
            query = sa.select(_RUNS).where(_RUNS.c.id == run_id, _RUNS.c.tenant == tenant)
            row = (await conn.execute(query)).one_or_none()
        return None if row is None else _run(row)

    async def claim(self, holder: str, most: int, lease_s: float) -> Sequence[StoredRun]:
        """Take runs that nobody works on, oldest first."""
        now_s = self._world.clock.now()
        free = sa.select(_RUNS.c.id).where(_RUNS.c.state.in_(OPEN), _RUNS.c.until_s <= now_s)
        async with self._store.connect() as conn:
            if (await conn.execute(free.limit(1))).scalar() is None:
                return ()
        oldest = free.order_by(_RUNS.c.created_s).limit(most).with_for_update(skip_locked=True)
        async with self._store.begin() as conn:
            ids = (await conn.execute(oldest)).scalars().all()
            if not ids:
                return ()
            held = {"state": "running", "holder": holder, "until_s": now_s + lease_s}
            await conn.execute(_RUNS.update().where(_RUNS.c.id.in_(ids)).values(held))
            rows = (await conn.execute(sa.select(_RUNS).where(_RUNS.c.id.in_(ids)).order_by(_RUNS.c.created_s))).all()
            beside = (await conn.execute(sa.select(_PAYLOADS).where(_PAYLOADS.c.run_id.in_(ids)))).all()
        aside: dict[str, dict[str, str]] = {}
        for run_id, reference, body in beside:
            aside.setdefault(run_id, {})[reference] = body
        return [replace(run, errand=put_back(run.errand, aside.get(run.id, {}))) for run in map(_run, rows)]

    async def renew(self, holder: str, run_ids: Sequence[str], lease_s: float) -> dict[str, bool]:
        """Keep holding; by run still held, whether its end is wished for."""
        if not run_ids:
            return {}
        mine = sa.and_(_RUNS.c.id.in_(run_ids), _RUNS.c.holder == holder, _RUNS.c.state == "running")
        async with self._store.begin() as conn:
            await conn.execute(_RUNS.update().where(mine).values(until_s=self._world.clock.now() + lease_s))
            rows = (await conn.execute(sa.select(_RUNS.c.id, _RUNS.c.unwanted).where(mine))).all()
        return dict(rows)

    async def release(self, holder: str) -> None:
        """Let others go on with what `holder` held."""
        mine = sa.and_(_RUNS.c.holder == holder, _RUNS.c.state == "running")
        async with self._store.begin() as conn:
            await conn.execute(_RUNS.update().where(mine).values(holder="", until_s=0.0))

    async def recall(self, run_id: str, key: str) -> bytes | None:
        """What a finished call gave."""
        async with self._store.connect() as conn:
            query = sa.select(_CALLS.c.value).where(_CALLS.c.run_id == run_id, _CALLS.c.key == key)
            value: bytes | None = (await conn.execute(query)).scalar()
        return value

    async def note(self, run_id: str, key: str, value: bytes) -> None:
        """Remember a finished call."""
        async with self._store.begin() as conn:
            insert = upsert(_CALLS, conn).values(run_id=run_id, key=key, value=value)
            await conn.execute(insert.on_conflict_do_nothing())

    async def progress(self, run_id: str, stages: Sequence[StageResult]) -> None:
        """Show the stages that ended so far."""
        async with self._store.begin() as conn:
            await conn.execute(_RUNS.update().where(_RUNS.c.id == run_id).values(stages=msgspec.json.encode(stages)))
        self._tell()

    async def finish(self, holder: str, run_id: str, end: RunEnd) -> None:
        """Commit the end with record and event, unless the run is held by somebody else by now."""
        ended = {
            "state": end.state,
            "finished_s": self._world.clock.now(),
            "result": msgspec.json.encode(end.result) if end.result else None,
            "error": end.error,
            "holder": "",
        }
        if end.result is not None:
            ended["stages"] = msgspec.json.encode(end.result.stages)
        mine = sa.and_(_RUNS.c.id == run_id, _RUNS.c.holder == holder)
        async with self._store.begin() as conn:
            done = await conn.execute(_RUNS.update().where(mine).values(ended))
            if done.rowcount:
                tenant = (await conn.execute(sa.select(_RUNS.c.tenant).where(_RUNS.c.id == run_id))).scalar_one()
                for beside in (_CALLS, _PAYLOADS):
                    await conn.execute(beside.delete().where(beside.c.run_id == run_id))
                if end.record is not None:
                    await self._records.write(conn, [Waiting(end.record, current_traceparent())])
                await self._outbox.put(
                    conn, type=FINISHED, tenant=tenant, message=self._events.finished(run_id, end), subject=run_id
                )
        self._tell()

    async def wish_end(self, tenant: str, run_id: str) -> StoredRun | None:
        """Note the wish to cancel; a queued run ends at once."""
        mine = sa.and_(_RUNS.c.id == run_id, _RUNS.c.tenant == tenant)
        ended = {"state": "cancelled", "finished_s": self._world.clock.now(), "error": "cancelled: as asked"}
        async with self._store.begin() as conn:
            await conn.execute(_RUNS.update().where(mine, _RUNS.c.state.in_(OPEN)).values(unwanted=True))
            queued = await conn.execute(_RUNS.update().where(mine, _RUNS.c.state == "queued").values(ended))
            if queued.rowcount:
                await conn.execute(_PAYLOADS.delete().where(_PAYLOADS.c.run_id == run_id))
                end = RunEnd(state="cancelled", result=None, error="", record=None)
                await self._outbox.put(
                    conn, type=FINISHED, tenant=tenant, message=self._events.finished(run_id, end), subject=run_id
                )
            row = (await conn.execute(sa.select(_RUNS).where(mine))).one_or_none()
        self._tell()
        return None if row is None else _run(row)

    async def changed(self, timeout_s: float) -> None:
        """Return when some run of this process has changed, after `timeout_s` at the latest."""
        news = self._news
        try:
            async with asyncio.timeout(timeout_s):
                await news.wait()
        except TimeoutError:
            return

    async def wake(self, _event: Event) -> None:
        """Something has changed, here or in another replica."""
        self._tell()

    def _tell(self) -> None:
        """Wake everybody who waits; each later wait gets an event of its own."""
        self._news.set()
        self._news = asyncio.Event()


def _same(found: StoredRun, run: StoredRun, request_id: str) -> StoredRun:
    # Runs of before digests were kept have none.
    if found.errand.asked and found.errand.asked != run.errand.asked:
        raise Conflict(
            f"request id {request_id!r} was used for another request, run {found.id}; use a new one",
            code="request_id_reused",
        )
    return found


def _run(row: sa.Row[tuple[object, ...]]) -> StoredRun:
    columns = row._mapping
    result = columns["result"]
    return StoredRun(
        id=columns["id"],
        tenant=columns["tenant"],
        role=columns["role"],
        state=columns["state"],
        created_s=columns["created_s"],
        finished_s=columns["finished_s"],
        errand=msgspec.json.decode(columns["errand"], type=Errand),
        stages=msgspec.json.decode(columns["stages"], type=tuple[StageResult, ...]),
        result=msgspec.json.decode(result, type=Finished) if result else None,
        error=columns["error"],
    )
