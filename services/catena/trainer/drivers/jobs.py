"""The durable queue: jobs in SQL under leases, each change in one transaction with the event that tells it."""

import asyncio
from dataclasses import fields
from typing import Any

import msgspec
import sqlalchemy as sa
from google.protobuf.message import Message
from sqlalchemy.ext.asyncio import AsyncConnection

from catena.api.events.v1 import events_pb2
from catena.kit.clock import World
from catena.kit.errors import Missing
from catena.kit.outbox import Outbox
from catena.kit.store import Store, upsert
from catena.kit.telemetry import counter
from catena.trainer.core.job import ENDED, ClaimLost, Job, Material, Progress
from catena.trainer.core.ports import Hold, News
from catena.trainer.core.spec import JobSpec
from catena.trainer.drivers.tables import jobs, materials

_OPEN = jobs.c.state.not_in(sorted(ENDED))
_KEPT = frozenset({"id", "tenant", "spec", "created_s", "attempts", "stalled", "mark", "cancelling", "revision"})
SPEED_JOBS = 5


class SqlJobs:
    """`core.ports.Jobs` over a `Store`, on behalf of one `holder`."""

    def __init__(self, store: Store, outbox: Outbox, world: World, *, holder: str, lease_s: float) -> None:
        """`holder` names this process among those that share the database."""
        self._store = store
        self._outbox = outbox
        self._world = world
        self._holder = holder
        self._lease_s = lease_s
        self._news = asyncio.Condition()

    async def create(self, job: Job, material: Material, request_id: str) -> Job:
        """Store it, or find the one that this request made before."""
        async with self._store.begin() as conn:
            values = _row(job) | {"base": job.spec.base, "holder": "", "held_until_s": 0.0}
            new = upsert(jobs, conn).values(**values, request_id=request_id or None).on_conflict_do_nothing()
            if (await conn.execute(new.returning(jobs.c.id))).first() is None:
                same = sa.select(jobs).where(jobs.c.tenant == job.tenant, jobs.c.request_id == request_id)
                return _job((await conn.execute(same)).mappings().one())
            await conn.execute(materials.insert().values(job_id=job.id, body=msgspec.json.encode(material)))
        await self._tell()
        return job

    async def get(self, tenant: str, job_id: str) -> Job:
        """One job of the tenant."""
        async with self._store.connect() as conn:
            found = (await conn.execute(_one(tenant, job_id))).mappings().first()
        if found is None:
            raise Missing(f"no job {job_id!r} here; `catena jobs` lists them", code="unknown_job")
        return _job(found)

    async def find(self, tenant: str, state: str, limit: int, after: str) -> list[Job]:
        """Jobs, newest first; all tenants' when `tenant` is empty."""
        query = sa.select(jobs).order_by(jobs.c.created_s.desc(), jobs.c.id.desc()).limit(limit)
        if tenant:
            query = query.where(jobs.c.tenant == tenant)
        if state:
            query = query.where(jobs.c.state == state)
        async with self._store.connect() as conn:
            if after:
                last = (await conn.execute(sa.select(jobs.c.created_s).where(jobs.c.id == after))).scalar()
                if last is not None:
                    query = query.where(sa.tuple_(jobs.c.created_s, jobs.c.id) < sa.tuple_(last, after))
            return [_job(row) for row in (await conn.execute(query)).mappings()]

    async def material(self, job_id: str) -> Material:
        """The frozen rows."""
        async with self._store.connect() as conn:
            body = (await conn.execute(sa.select(materials.c.body).where(materials.c.job_id == job_id))).scalar_one()
        return msgspec.json.decode(body, type=Material)

    async def cancel(self, tenant: str, job_id: str) -> Job:
        """Note the wish; end at once what nobody runs."""
        async with self._store.begin() as conn:
            found = (await conn.execute(_one(tenant, job_id))).mappings().first()
            if found is None:
                raise Missing(f"no job {job_id!r} here; `catena jobs` lists them", code="unknown_job")
            job, now_s = _job(found), self._world.clock.now()
            if job.ended:
                return job
            values: dict[str, Any] = {"cancelling": True}
            if not found["holder"] or found["held_until_s"] < now_s:
                values |= {"state": "cancelled", "reason": "cancelled on request", "finished_s": now_s, "holder": ""}
            job = await _change(conn, jobs.c.id == job_id, values)
            if job.ended:
                await self._emit(conn, job, "finished")
        await self._tell()
        return job

    async def claim(self) -> Job | None:
        """Take the oldest job that waits or was left."""
        async with self._store.begin() as conn:
            now_s = self._world.clock.now()
            free = sa.or_(jobs.c.holder == "", jobs.c.held_until_s < now_s)
            oldest = sa.select(jobs).where(_OPEN, free).order_by(jobs.c.created_s, jobs.c.id).limit(1)
            found = (await conn.execute(oldest.with_for_update(skip_locked=True))).mappings().first()
            if found is None:
                return None
            job = _job(found)
            values: dict[str, Any] = {
                "holder": self._holder,
                "held_until_s": now_s + self._lease_s,
                "attempts": job.attempts + 1,
                "stalled": job.stalled + 1 if job.mark >= job.checkpoint else 0,
                "mark": job.checkpoint,
            }
            job = await _change(conn, jobs.c.id == job.id, values)
            await self._emit(conn, job, "started")
        await self._tell()
        return job

    async def renew(self, job_id: str) -> Hold:
        """Hold on for another lease."""
        async with self._store.begin() as conn:
            mine = sa.and_(jobs.c.id == job_id, jobs.c.holder == self._holder)
            until_s = self._world.clock.now() + self._lease_s
            kept = await conn.execute(
                jobs.update().where(mine).values(held_until_s=until_s).returning(jobs.c.cancelling)
            )
            row = kept.first()
        if row is None:
            return "lost"
        return "cancel" if row.cancelling else "held"

    async def save(self, job: Job, news: News = "nothing") -> Job:
        """Store what the holder changed."""
        values = {name: value for name, value in _row(job).items() if name not in _KEPT}
        if job.ended:
            values |= {"holder": "", "held_until_s": 0.0}
        async with self._store.begin() as conn:
            saved = await _change(conn, sa.and_(jobs.c.id == job.id, jobs.c.holder == self._holder), values)
            await self._emit(conn, saved, news)
        if saved.ended:
            counter("trainer", "jobs_total", "jobs that ended, by how", ["outcome"]).labels(saved.state).inc()
        await self._tell()
        return saved

    async def release(self, job_id: str, *, died: str = "") -> None:
        """Let go; a process that died counts as an attempt that stalled, a room that closed does not."""
        values: dict[str, Any] = {"holder": "", "held_until_s": 0.0}
        values |= {"reason": died} if died else {"mark": -1}
        async with self._store.begin() as conn:
            mine = sa.and_(jobs.c.id == job_id, jobs.c.holder == self._holder)
            await conn.execute(jobs.update().where(mine).values(**values))
        await self._tell()

    async def take_back(self) -> None:
        """Free what this holder held before it was started again, so that nobody waits for the lease to run out."""
        async with self._store.begin() as conn:
            await conn.execute(jobs.update().where(jobs.c.holder == self._holder).values(holder="", held_until_s=0.0))

    async def speed(self, base: str) -> float | None:
        """The mean over the newest jobs that came to an end."""
        done = sa.select(jobs.c.progress).where(jobs.c.base == base, jobs.c.state.in_(["succeeded", "rejected"]))
        async with self._store.connect() as conn:
            rows = (await conn.execute(done.order_by(jobs.c.finished_s.desc()).limit(SPEED_JOBS))).scalars().all()
        found = [row["tokens_per_s"] for row in rows if row]
        return sum(found) / len(found) if found else None

    async def changed(self, timeout_s: float) -> None:
        """Wait for a change made by this process; others' are seen after `timeout_s`."""
        try:
            async with asyncio.timeout(timeout_s), self._news:
                await self._news.wait()
        except TimeoutError:
            return

    async def _tell(self) -> None:
        async with self._news:
            self._news.notify_all()

    async def _emit(self, conn: AsyncConnection, job: Job, news: News) -> None:
        if news == "nothing":
            return
        await self._outbox.put(
            conn, type=f"trainer.job.{news}", tenant=job.tenant, subject=job.id, message=_told(job, news)
        )


def _told(job: Job, news: News) -> Message:
    if news == "started":
        return events_pb2.JobStarted(job_id=job.id, adapter=job.spec.adapter, base=job.spec.base, attempt=job.attempts)
    if news == "progressed":
        at = job.progress or Progress(step=0, total_steps=0)
        return events_pb2.JobProgressed(job_id=job.id, step=at.step, total_steps=at.total_steps, loss=at.loss)
    return events_pb2.JobFinished(
        job_id=job.id,
        state=job.state,
        model=job.model,
        digest=job.digest,
        metrics=job.metrics,
        reason=job.reason,
    )


async def _change(conn: AsyncConnection, where: sa.ColumnElement[bool], values: dict[str, Any]) -> Job:
    """Update the one row of `where` and return it as it is then. Raises ClaimLost when there is none."""
    update = jobs.update().where(where).values(**values, revision=jobs.c.revision + 1).returning(jobs)
    row = (await conn.execute(update)).mappings().first()
    if row is None:
        raise ClaimLost("the job is held by another trainer now; this one fell silent for longer than trainer.lease_s")
    return _job(row)


def _one(tenant: str, job_id: str) -> sa.Select[Any]:
    return sa.select(jobs).where(jobs.c.id == job_id, jobs.c.tenant == tenant)


def _row(job: Job) -> dict[str, Any]:
    values = {field.name: getattr(job, field.name) for field in fields(job)}
    return values | {"spec": msgspec.to_builtins(job.spec), "progress": msgspec.to_builtins(job.progress)}


def _job(row: sa.RowMapping) -> Job:
    values = {field.name: row[field.name] for field in fields(Job)}
    values["spec"] = msgspec.convert(row["spec"], JobSpec)
    values["progress"] = msgspec.convert(row["progress"], Progress | None)
    return Job(**values)
