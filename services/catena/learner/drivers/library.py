"""The learner's SQL: feedback, data sets with their samples, promotions."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import asdict, fields
from typing import Any

import sqlalchemy as sa
from google.protobuf.message import Message
from sqlalchemy.ext.asyncio import AsyncConnection

from catena.api.events.v1 import events_pb2
from catena.kit.clock import World
from catena.kit.errors import Missing
from catena.kit.outbox import Outbox, inbox_table, once, outbox_table
from catena.kit.store import Json, Store, upsert
from catena.learner.core.judging import prompt_digest
from catena.learner.core.records import Dataset, Feedback, Promotion, Sample

METADATA = sa.MetaData()
outbox_table(METADATA)
inbox_table(METADATA)
COLLECTING = sa.text("state = 'collecting'")
FEEDBACK = sa.Table(
    "feedback",
    METADATA,
    sa.Column("id", sa.String, primary_key=True),
    sa.Column("tenant", sa.String, nullable=False),
    sa.Column("execution_id", sa.String, nullable=False, index=True),
    sa.Column("score", sa.Float),
    sa.Column("correction", sa.Text, nullable=False),
    sa.Column("comment", sa.Text, nullable=False),
    sa.Column("prompt", sa.Text, nullable=False),
    sa.Column("task", sa.String, nullable=False),
    sa.Column("request_id", sa.String, nullable=False),
    sa.Column("created_s", sa.Float, nullable=False),
    sa.UniqueConstraint("tenant", "request_id"),
)
DATASETS = sa.Table(
    "datasets",
    METADATA,
    sa.Column("id", sa.String, primary_key=True),
    sa.Column("tenant", sa.String, nullable=False, index=True),
    sa.Column("task", sa.String, nullable=False),
    sa.Column("state", sa.String, nullable=False),
    sa.Column("threshold", sa.Integer, nullable=False),
    sa.Column("job_id", sa.String, nullable=False),
    sa.Column("digest", sa.String, nullable=False),
    sa.Column("created_s", sa.Float, nullable=False),
    sa.Index(
        "datasets_one_collecting",
        "tenant",
        "task",
        unique=True,
        sqlite_where=COLLECTING,
        postgresql_where=COLLECTING,
    ),
)
SAMPLES = sa.Table(
    "samples",
    METADATA,
    sa.Column("dataset_id", sa.String, sa.ForeignKey("datasets.id"), primary_key=True),
    sa.Column("prompt_digest", sa.String, primary_key=True),
    sa.Column("task", sa.String, nullable=False),
    sa.Column("prompt", sa.Text, nullable=False),
    sa.Column("context", sa.Text, nullable=False),
    sa.Column("completion", sa.Text, nullable=False),
    sa.Column("corrected", sa.Boolean, nullable=False),
    sa.Column("agent_type", sa.String, nullable=False),
)
PROMOTIONS = sa.Table(
    "promotions",
    METADATA,
    sa.Column("id", sa.String, primary_key=True),
    sa.Column("tenant", sa.String, nullable=False, index=True),
    sa.Column("dataset_id", sa.String, nullable=False, unique=True),
    sa.Column("domain", sa.String, nullable=False),
    sa.Column("state", sa.String, nullable=False),
    sa.Column("candidate", sa.String, nullable=False),
    sa.Column("incumbent", sa.String, nullable=False),
    sa.Column("previous", sa.String, nullable=False),
    sa.Column("experiment_id", sa.String, nullable=False, index=True),
    sa.Column("job_id", sa.String, nullable=False, index=True),
    sa.Column("reason", sa.Text, nullable=False),
    sa.Column("metrics", Json, nullable=False),
    sa.Column("created_s", sa.Float, nullable=False),
    sa.Column("updated_s", sa.Float, nullable=False),
)
FEEDBACK_COLUMNS = [FEEDBACK.c[field.name] for field in fields(Feedback)]
SAMPLE_COLUMNS = [SAMPLES.c[field.name] for field in fields(Sample)]


"""Executions that end within so many seconds have their feedback looked up together."""


class SqlLibrary:
    """Implements `core.ports.Library`."""

    def __init__(self, store: Store, outbox: Outbox, world: World) -> None:
        """Use the room's database and outbox."""
        self._store = store
        self._outbox = outbox
        self._world = world

    async def keep_feedback(self, tenant: str, feedback: Feedback) -> str:
        """Commit feedback with its event; a repeated request id gives the first one's id."""
        request = feedback.request_id or feedback.id
        async with self._store.begin() as conn:
            put = upsert(FEEDBACK, conn).values(**{**asdict(feedback), "request_id": request}, tenant=tenant)
            kept = put.on_conflict_do_nothing(index_elements=["tenant", "request_id"]).returning(FEEDBACK.c.id)
            if (await conn.execute(kept)).first() is None:
                first = sa.select(FEEDBACK.c.id).where(FEEDBACK.c.tenant == tenant, FEEDBACK.c.request_id == request)
                return str((await conn.execute(first)).scalar_one())
            told = events_pb2.FeedbackRecorded(
                feedback_id=feedback.id,
                execution_id=feedback.execution_id,
                score=feedback.score,
                corrected=bool(feedback.correction),
                task=feedback.task,
            )
            await self._tell(conn, "learner.feedback.recorded", tenant, feedback.id, told)
        return feedback.id

    async def feedback(self, tenant: str, id_: str) -> Feedback:
        """One piece. Raises Missing."""
        query = sa.select(*FEEDBACK_COLUMNS).where(FEEDBACK.c.tenant == tenant, FEEDBACK.c.id == id_)
        async with self._store.connect() as conn:
            row = (await conn.execute(query)).mappings().first()
        if row is None:
            raise Missing(f"no feedback {id_!r}", code="unknown_feedback")
        return Feedback(**row)

    async def feedback_on(self, executions: Sequence[tuple[str, str]]) -> list[list[Feedback]]:
        """What was told so far of each of the executions, by tenant and id; oldest first."""
        ids = FEEDBACK.c.execution_id.in_({execution_id for _, execution_id in executions})
        query = sa.select(FEEDBACK.c.tenant, *FEEDBACK_COLUMNS).where(ids)
        query = query.order_by(FEEDBACK.c.created_s, FEEDBACK.c.id)
        told = defaultdict(list)
        async with self._store.connect() as conn:
            for row in (await conn.execute(query)).mappings():
                fields = dict(row)
                told[fields.pop("tenant"), row["execution_id"]].append(Feedback(**fields))
        return [told[one] for one in executions]

    async def collect(self, tenant: str, source: str, samples: Sequence[Sample], threshold: int) -> list[Dataset]:
        """Add samples; a later one about the same prompt replaces the earlier. A repeated source adds nothing."""
        async with self._store.begin() as conn:
            tasks = sorted({sample.task for sample in samples})
            if not await once(conn, source, f"samples of {tenant}"):
                found = [await conn.scalar(_collecting(tenant, task)) for task in tasks]
                return [await _dataset(conn, id_) for id_ in found if id_ is not None]
            sets = {task: await self._open_set(conn, tenant, task, threshold) for task in tasks}
            for sample in samples:
                key = {"dataset_id": sets[sample.task], "prompt_digest": prompt_digest(sample)}
                put = upsert(SAMPLES, conn).values(**key, **asdict(sample))
                await conn.execute(put.on_conflict_do_update(index_elements=list(key), set_=asdict(sample)))
            return [await _dataset(conn, id_) for id_ in sets.values()]

    async def freeze(self, dataset: Dataset, digest: str, promotion: Promotion) -> bool:
        """Close the data set and open its promotion, unless either changed since it was read."""
        async with self._store.begin() as conn:
            await conn.scalar(_collecting(dataset.tenant, dataset.task))
            now = await _dataset(conn, dataset.id)
            if now != dataset or now.state != "collecting":
                return False
            await conn.execute(_set(DATASETS, dataset.id, {"state": "ready", "digest": digest}))
            await conn.execute(PROMOTIONS.insert().values(**asdict(promotion)))
            told = events_pb2.DatasetReady(dataset_id=dataset.id, task=dataset.task, rows=dataset.rows)
            await self._tell(conn, "learner.dataset.ready", dataset.tenant, dataset.id, told)
        return True

    async def samples(self, dataset_id: str) -> list[Sample]:
        """The samples of a data set, in the order of their prompts' digests."""
        query = sa.select(*SAMPLE_COLUMNS).where(SAMPLES.c.dataset_id == dataset_id).order_by(SAMPLES.c.prompt_digest)
        async with self._store.connect() as conn:
            return [Sample(**row) for row in (await conn.execute(query)).mappings()]

    async def dataset(self, id_: str) -> Dataset:
        """One data set. Raises Missing."""
        async with self._store.connect() as conn:
            return await _dataset(conn, id_)

    async def datasets(self, tenant: str) -> list[Dataset]:
        """The tenant's data sets, newest first."""
        query = sa.select(DATASETS.c.id).where(DATASETS.c.tenant == tenant).order_by(DATASETS.c.created_s.desc())
        async with self._store.connect() as conn:
            return [await _dataset(conn, id_) for id_ in (await conn.execute(query)).scalars().all()]

    async def trained_by(self, dataset_id: str, job_id: str) -> None:
        """Note the job of a data set that is not done, also with its promotion."""
        async with self._store.begin() as conn:
            await conn.execute(
                _set(DATASETS, dataset_id, {"state": "training", "job_id": job_id}).where(DATASETS.c.state != "done")
            )
            same = PROMOTIONS.c.dataset_id == dataset_id
            await conn.execute(PROMOTIONS.update().where(same).values(job_id=job_id))

    async def promotion(
        self, *, id_: str = "", dataset_id: str = "", job_id: str = "", experiment_id: str = ""
    ) -> Promotion | None:
        """The promotion that is known by one of these."""
        asked = {"id": id_, "dataset_id": dataset_id, "job_id": job_id, "experiment_id": experiment_id}
        wanted = [PROMOTIONS.c[name] == value for name, value in asked.items() if value]
        async with self._store.connect() as conn:
            row = (await conn.execute(sa.select(PROMOTIONS).where(*wanted))).mappings().first() if wanted else None
        return Promotion(**row) if row else None

    async def promotions(self, tenant: str, state: str) -> list[Promotion]:
        """The tenant's promotions, newest first."""
        query = sa.select(PROMOTIONS).where(PROMOTIONS.c.tenant == tenant).order_by(PROMOTIONS.c.created_s.desc())
        if state:
            query = query.where(PROMOTIONS.c.state == state)
        async with self._store.connect() as conn:
            return [Promotion(**row) for row in (await conn.execute(query)).mappings()]

    async def move(self, before: Promotion, after: Promotion) -> bool:
        """Commit a step with its event, if nobody moved the promotion since."""
        async with self._store.begin() as conn:
            still = sa.and_(PROMOTIONS.c.id == before.id, PROMOTIONS.c.state == before.state)
            done = await conn.execute(PROMOTIONS.update().where(still).values(**asdict(after)))
            if not done.rowcount:
                return False
            if after.state != "canary":
                await conn.execute(_set(DATASETS, after.dataset_id, {"state": "done"}))
            told = events_pb2.PromotionDecided(
                promotion_id=after.id,
                candidate=after.candidate,
                incumbent=after.incumbent,
                state=after.state,
                reason=after.reason,
                domain=after.domain,
            )
            await self._tell(conn, "learner.promotion.decided", after.tenant, after.id, told)
        return True

    async def _open_set(self, conn: AsyncConnection, tenant: str, task: str, threshold: int) -> str:
        known: str | None = await conn.scalar(_collecting(tenant, task))
        if known is not None:
            return known
        made = Dataset(
            id=self._world.new_id(), tenant=tenant, task=task, threshold=threshold, created_s=self._world.clock.now()
        )
        values = {name: value for name, value in asdict(made).items() if name in DATASETS.c}
        put = upsert(DATASETS, conn).values(**values)
        await conn.execute(put.on_conflict_do_nothing(index_elements=["tenant", "task"], index_where=COLLECTING))
        return str((await conn.execute(_collecting(tenant, task))).scalar_one())

    async def _tell(self, conn: AsyncConnection, type_: str, tenant: str, subject: str, message: Message) -> None:
        await self._outbox.put(conn, type=type_, tenant=tenant, message=message, subject=subject)


def _collecting(tenant: str, task: str) -> sa.Select[Any]:
    """The set that collects now, held until the transaction ends, so that nobody freezes it meanwhile."""
    same = sa.and_(DATASETS.c.tenant == tenant, DATASETS.c.task == task, DATASETS.c.state == "collecting")
    return sa.select(DATASETS.c.id).where(same).with_for_update()


async def _dataset(conn: AsyncConnection, id_: str) -> Dataset:
    row = (await conn.execute(sa.select(DATASETS).where(DATASETS.c.id == id_))).mappings().first()
    if row is None:
        raise Missing(f"no data set {id_!r}; list them with ListDatasets", code="unknown_dataset")
    counts = sa.select(sa.func.count(), sa.func.sum(sa.case((SAMPLES.c.corrected, 1), else_=0)))
    rows, corrections = (await conn.execute(counts.where(SAMPLES.c.dataset_id == id_))).one()
    return Dataset(**row, rows=rows, corrections=corrections or 0)


def _set(table: sa.Table, id_: str, values: Mapping[str, Any]) -> sa.Update:
    return table.update().where(table.c.id == id_).values(**values)
