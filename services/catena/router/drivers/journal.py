"""The router's memory in SQL: a bounded window of executions, totals for ever, domains, experiments, switches.

Every write takes the next revision in its transaction, so that "what changed after revision N" has one answer for all
replicas; two writers take turns on that counter.
"""

from collections.abc import Collection, Sequence
from functools import cache
from typing import Any

import msgspec
import sqlalchemy as sa
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.ext.asyncio import AsyncConnection

from catena.api.events.v1.events_pb2 import ExperimentDecided
from catena.kit.errors import Conflict
from catena.kit.outbox import Outbox, first_time, once
from catena.kit.store import Store, upsert, upsert_for
from catena.plan.model import Plan
from catena.router.core.domains import Domain
from catena.router.core.experiments import RUNNING, STOPPED, Experiment, Outcome, count, stop
from catena.router.core.observation import Observation
from catena.router.core.ports import Changes, Noted, Report, Seen, Switch, Totals, Verdict
from catena.router.core.state import FROZEN, SHARED
from catena.router.core.steps import Step
from catena.router.core.verdicts import joined, outweighs
from catena.router.drivers import tallies
from catena.router.drivers.tables import (
    domains,
    experiments,
    observations,
    outcomes,
    revisions,
    steps,
    switches,
    totals,
)

EVENT = "router.experiment.decided"
CONSUMER = "router"
_COUNTER = "router"


class SqlJournal:
    """`Journal` over one database. `window`: executions kept for each tenant, trimmed every `trim_every` changes."""

    def __init__(self, store: Store, outbox: Outbox, *, window: int, trim_every: int = 500) -> None:
        """The tables of `tables.metadata` must be in `store`."""
        self._trim_every = trim_every
        self._store = store
        self._outbox = outbox
        self._window = window

    async def changes(self, after: int) -> Changes:
        """Everything that changed after a revision, as of one moment."""
        async with self._store.connect() as conn:
            upto = int(await conn.scalar(sa.select(revisions.c.value)) or 0)
            if upto <= after:
                return Changes(revision=after)
            noted = await _rows(
                conn,
                sa.select(observations)
                .where(observations.c.revision > after, observations.c.born > 0)
                .order_by(observations.c.born),
            )
            places = await _rows(conn, sa.select(domains).where(domains.c.revision > after))
            trials = await _rows(conn, sa.select(experiments).where(experiments.c.revision > after))
            settings = await _rows(conn, sa.select(switches).where(switches.c.revision > after))
            tuned = await _rows(conn, sa.select(steps.c.body).where(steps.c.revision > after))
        return Changes(
            revision=upto,
            observations=[_noted(row) for row in noted],
            domains=[msgspec.json.decode(row["body"], type=Domain) for row in places if row["body"] is not None],
            deleted=[(row["tenant"], row["name"]) for row in places if row["body"] is None],
            experiments=[msgspec.json.decode(row["body"], type=Experiment) for row in trials],
            switches=[Switch(tenant=row["tenant"], name=row["name"], value=row["value"]) for row in settings],
            steps=[msgspec.json.decode(row["body"], type=Step) for row in tuned],
        )

    async def observe(self, several: Sequence[Seen]) -> None:
        """Take in executions in one transaction, each once; join them with verdicts that came first."""
        async with self._store.begin() as conn:
            new = await first_time(conn, [seen.event_id for seen in several], CONSUMER)
            fresh = {seen.key: seen for seen in reversed(several) if seen.event_id in new}
            before = await _known(conn, fresh)
            wanted = [seen for key, seen in fresh.items() if key not in before or before[key]["body"] is None]
            if not wanted:
                return
            revision = await _tick(conn, len(wanted)) - len(wanted)
            rows: list[dict[str, Any]] = []
            counted: list[tuple[str, Observation]] = []
            for born, seen in enumerate(wanted, revision + 1):
                known = _weightier(seen, before.get(seen.key))
                whole = joined(seen.observation, known)
                rows.append(_kept(seen.tenant, whole, known, revision=born, born=born))
                counted.append((seen.tenant, whole))
            await _put(conn, rows)
            await tallies.add_executions(conn, counted)
            for born, (tenant, whole) in enumerate(counted, revision + 1):
                await self._count(conn, tenant, whole, born)
                if born % self._trim_every == 0:
                    await self._prune(conn, tenant)

    async def judge(self, tenant: str, verdict: Verdict, event_id: str) -> None:
        """Take in a verdict once; of several the weightier source counts, of equals the later."""
        async with self._store.begin() as conn:
            if not await once(conn, event_id, CONSUMER):
                return
            row = await _row(conn, tenant, verdict.execution_id)
            if row is not None and not outweighs(verdict.source, row["source"]):
                return
            revision = await _tick(conn)
            if row is None or row["body"] is None:
                await self._keep_verdict(conn, tenant, verdict, revision)
                return
            before = msgspec.json.decode(row["body"], type=Observation)
            whole = joined(before, verdict)
            await _put(conn, [_kept(tenant, whole, verdict, revision=revision, born=row["born"])])
            await tallies.change_score(conn, tenant, before, whole)
            await self._count(conn, tenant, whole, revision)

    async def report(self, tenant: str) -> Report:
        """Totals by configuration and domain."""
        query = sa.select(totals).where(totals.c.tenant == tenant).order_by(totals.c.plan, totals.c.domain)
        async with self._store.connect() as conn:
            rows = await _rows(conn, query)
        names = Totals.__dataclass_fields__
        found = [Totals(**{name: row[name] for name in names}) for row in rows]
        return Report(configurations=found, executions=sum(one.executions for one in found))

    async def plan_of(self, tenant: str, configuration_id: str) -> Plan | None:
        """The plan behind a configuration that ran before."""
        query = sa.select(totals.c.body).where(totals.c.tenant == tenant, totals.c.configuration_id == configuration_id)
        async with self._store.connect() as conn:
            body = await conn.scalar(query.limit(1))
        return None if body is None else msgspec.json.decode(body, type=Plan)

    async def put_domain(self, domain: Domain) -> None:
        """Add or replace a domain."""
        async with self._store.begin() as conn:
            await _put_domain(conn, domain.tenant, domain.name, domain)

    async def delete_domain(self, tenant: str, name: str) -> None:
        """Remove a domain; a mark stays, so that the configuration does not bring it back."""
        async with self._store.begin() as conn:
            await _put_domain(conn, tenant, name, None)

    async def merge_domains(self, into: Domain, gone: Sequence[str]) -> None:
        """Put a domain in the place of others, which leave marks."""
        async with self._store.begin() as conn:
            await _put_domain(conn, into.tenant, into.name, into)
            for name in gone:
                await _put_domain(conn, into.tenant, name, None)

    async def seed_domains(self, wanted: Sequence[Domain]) -> None:
        """Add those that were never there."""
        async with self._store.begin() as conn:
            for domain in wanted:
                row = {"tenant": domain.tenant, "name": domain.name, "body": msgspec.json.encode(domain).decode()}
                put = upsert(domains, conn).values(**row, revision=await _tick(conn)).on_conflict_do_nothing()
                await conn.execute(put)

    async def put_experiment(self, experiment: Experiment, request_id: str) -> Experiment:
        """Store a new experiment, or return the one that this request id made.

        Raises Conflict (`experiment_running`) when one runs on the same domain.
        """
        async with self._store.begin() as conn:
            revision = await _tick(conn)
            mine = experiments.c.tenant == experiment.tenant
            if request_id:
                same = await conn.scalar(
                    sa.select(experiments.c.body).where(mine, experiments.c.request_id == request_id)
                )
                if same is not None:
                    return msgspec.json.decode(same, type=Experiment)
            other = await conn.scalar(
                sa.select(experiments.c.id).where(
                    mine, experiments.c.domain == experiment.domain, experiments.c.state == RUNNING
                )
            )
            if other is not None:
                raise Conflict(
                    f"experiment {other} runs on domain {experiment.domain or '(all)'!r}; stop it or wait for its end",
                    code="experiment_running",
                )
            await conn.execute(
                experiments.insert().values(
                    id=experiment.id, request_id=request_id or None, **_trial(experiment, revision)
                )
            )
        return experiment

    async def stop_experiment(self, tenant: str, id: str, reason: str) -> None:
        """End a running experiment without a verdict."""
        async with self._store.begin() as conn:
            revision = await _tick(conn)
            experiment = await _experiment(conn, tenant, id)
            if experiment is not None and experiment.state == RUNNING:
                await self._decide(conn, stop(experiment, STOPPED, reason), revision)

    async def put_switch(self, switch: Switch, *, now: bool = False) -> None:
        """Set a setting; with `now`, to the revision of this very moment."""
        async with self._store.begin() as conn:
            revision = await _tick(conn)
            value = float(revision) if now else switch.value
            put = upsert(switches, conn).values(tenant=switch.tenant, name=switch.name, revision=revision, value=value)
            await conn.execute(
                put.on_conflict_do_update(
                    index_elements=["tenant", "name"], set_={"revision": revision, "value": value}
                )
            )

    async def put_step(self, step: Step) -> None:
        """Keep a step of tuning; of two that were taken at once, only the first."""
        async with self._store.begin() as conn:
            row = {"tenant": step.tenant, "number": step.number, "body": msgspec.json.encode(step).decode()}
            put = upsert(steps, conn).values(**row, revision=await _tick(conn)).on_conflict_do_nothing()
            if (await conn.execute(put.returning(steps.c.number))).first() is None:
                raise Conflict(
                    f"step {step.number} was taken meanwhile; look at it and ask again", code="tuned_meanwhile"
                )

    async def _keep_verdict(self, conn: AsyncConnection, tenant: str, verdict: Verdict, revision: int) -> None:
        values: dict[str, Any] = {
            "revision": revision,
            "judged_at": revision,
            "score": verdict.score,
            "source": verdict.source,
            "task": verdict.task,
        }
        put = upsert(observations, conn).values(
            tenant=tenant, execution_id=verdict.execution_id, born=0, body=None, **values
        )
        await conn.execute(put.on_conflict_do_update(index_elements=["tenant", "execution_id"], set_=values))

    async def _count(self, conn: AsyncConnection, tenant: str, whole: Observation, revision: int) -> None:
        """Let a judged, or failed, execution count for the experiment that chose it, once."""
        if not whole.plan.experiment_id or whole.cancelled or (whole.score is None and whole.succeeded):
            return
        experiment = await _experiment(conn, tenant, whole.plan.experiment_id)
        if experiment is None or experiment.state != RUNNING:
            return
        mark = upsert(outcomes, conn).values(experiment_id=experiment.id, execution_id=whole.execution_id)
        first = mark.on_conflict_do_nothing().returning(outcomes.c.execution_id)
        if (await conn.execute(first)).first() is None:
            return
        outcome = Outcome(
            arm=whole.plan.experiment_arm,
            quality=whole.score if whole.score is not None and whole.succeeded else 0.0,
            cost=whole.cost_usd,
            latency=whole.latency_ms,
        )
        await self._decide(conn, count(experiment, outcome), revision)

    async def _decide(self, conn: AsyncConnection, experiment: Experiment, revision: int) -> None:
        await conn.execute(
            experiments.update().where(experiments.c.id == experiment.id).values(**_trial(experiment, revision))
        )
        if experiment.state == RUNNING:
            return
        control, treatment = experiment.arms
        await self._outbox.put(
            conn,
            type=EVENT,
            tenant=experiment.tenant,
            subject=experiment.id,
            message=ExperimentDecided(
                experiment_id=experiment.id,
                state=experiment.state,
                reason=experiment.reason,
                p_quality=experiment.p["quality"],
                control_quality=control.tallies["quality"].mean,
                treatment_quality=treatment.tallies["quality"].mean,
                outcomes=experiment.outcomes,
            ),
        )

    async def _prune(self, conn: AsyncConnection, tenant: str) -> None:
        """Drop executions beyond the window; the totals keep what they add up to.

        While learning is frozen the window as it was then stays beside the one of since: a restart needs it.
        """
        frozen_at = await _frozen_at(conn, tenant)
        since = sa.and_(observations.c.tenant == tenant, observations.c.born > frozen_at)
        oldest = await conn.scalar(
            sa.select(observations.c.born)
            .where(since)
            .order_by(observations.c.born.desc())
            .offset(self._window)
            .limit(1)
        )
        if oldest is not None:
            early = sa.and_(observations.c.born == 0, observations.c.tenant == tenant)
            await conn.execute(observations.delete().where(sa.or_(since, early), observations.c.revision <= oldest))


async def _tick(conn: AsyncConnection, count: int = 1) -> int:
    """The last of the `count` next revisions; whoever takes them holds up the others until its transaction ends."""
    put = upsert(revisions, conn).values(name=_COUNTER, value=count)
    put = put.on_conflict_do_update(index_elements=["name"], set_={"value": revisions.c.value + count})
    return int((await conn.execute(put.returning(revisions.c.value))).scalar_one())


async def _frozen_at(conn: AsyncConnection, tenant: str) -> int:
    """Revision at which the tenant's learning was frozen, by itself or for everybody; 0: it learns."""
    query = sa.select(switches.c.tenant, switches.c.value).where(
        switches.c.name == FROZEN, switches.c.tenant.in_([tenant, SHARED]), switches.c.value.is_not(None)
    )
    told = {row["tenant"]: int(row["value"]) for row in await _rows(conn, query)}
    return told.get(tenant, told.get(SHARED, 0))


async def _put_domain(conn: AsyncConnection, tenant: str, name: str, domain: Domain | None) -> None:
    kept = {"revision": await _tick(conn), "body": msgspec.json.encode(domain).decode() if domain is not None else None}
    put = upsert(domains, conn).values(tenant=tenant, name=name, **kept)
    await conn.execute(put.on_conflict_do_update(index_elements=["tenant", "name"], set_=kept))


async def _known(conn: AsyncConnection, keys: Collection[tuple[str, str]]) -> dict[tuple[str, str], sa.RowMapping]:
    """What is there of executions already, by tenant and id."""
    ids = observations.c.execution_id.in_([execution_id for _, execution_id in keys])
    return {(row["tenant"], row["execution_id"]): row for row in await _rows(conn, sa.select(observations).where(ids))}


def _weightier(seen: Seen, row: sa.RowMapping | None) -> Verdict | None:
    """The verdict that counts: the execution's own, or the one that came before it."""
    if row is None or (seen.verdict is not None and outweighs(seen.verdict.source, row["source"])):
        return seen.verdict
    id_ = seen.observation.execution_id
    return Verdict(execution_id=id_, score=row["score"], source=row["source"], task=row["task"])


def _kept(tenant: str, whole: Observation, verdict: Verdict | None, *, revision: int, born: int) -> dict[str, Any]:
    return {
        "tenant": tenant,
        "execution_id": whole.execution_id,
        "revision": revision,
        "born": born,
        "judged_at": revision if verdict is not None else 0,
        "body": msgspec.json.encode(whole).decode(),
        "score": whole.score,
        "source": verdict.source if verdict is not None else "",
        "task": verdict.task if verdict is not None else "",
    }


async def _put(conn: AsyncConnection, rows: Sequence[dict[str, Any]]) -> None:
    await conn.execute(_putting(conn.dialect.name), rows)


@cache
def _putting(dialect: str) -> "sqlite.Insert | postgresql.Insert":
    put = upsert_for(observations, dialect)
    moved = {column.name: put.excluded[column.name] for column in observations.columns if not column.primary_key}
    return put.on_conflict_do_update(index_elements=["tenant", "execution_id"], set_=moved)


async def _rows(conn: AsyncConnection, query: sa.Select[Any]) -> Sequence[sa.RowMapping]:
    found: Sequence[sa.RowMapping] = (await conn.execute(query)).mappings().all()
    return found


async def _row(conn: AsyncConnection, tenant: str, execution_id: str) -> sa.RowMapping | None:
    query = sa.select(observations).where(observations.c.tenant == tenant, observations.c.execution_id == execution_id)
    return (await conn.execute(query)).mappings().first()


async def _experiment(conn: AsyncConnection, tenant: str, id: str) -> Experiment | None:
    query = sa.select(experiments.c.body).where(experiments.c.tenant == tenant, experiments.c.id == id)
    body = await conn.scalar(query)
    return None if body is None else msgspec.json.decode(body, type=Experiment)


def _trial(experiment: Experiment, revision: int) -> dict[str, Any]:
    return {
        "tenant": experiment.tenant,
        "domain": experiment.domain,
        "state": experiment.state,
        "revision": revision,
        "body": msgspec.json.encode(experiment).decode(),
    }


def _noted(row: sa.RowMapping) -> Noted:
    return Noted(
        tenant=row["tenant"],
        born=row["born"],
        judged_at=row["judged_at"],
        observation=msgspec.json.decode(row["body"], type=Observation),
    )
