"""Totals of every execution ever, by configuration and domain: what stays when the window moves on."""

from collections.abc import Sequence
from functools import cache
from typing import Any

import msgspec
import sqlalchemy as sa
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.ext.asyncio import AsyncConnection

from catena.kit.store import upsert, upsert_for
from catena.plan.model import describe
from catena.router.core.observation import Observation
from catena.router.drivers.tables import totals

_KEY = ("tenant", "configuration_id", "domain")


SUMS = ("executions", "judged", "successes", "quality", "cost_usd", "latency_ms")


async def add_executions(conn: AsyncConnection, several: Sequence[tuple[str, Observation]]) -> None:
    """Count executions of tenants and, where they have scores, those."""
    rows: dict[tuple[str, ...], dict[str, Any]] = {}
    for tenant, one in several:
        row = rows.setdefault((*_key(tenant, one).values(),), _row(tenant, one, {}))
        for name, amount in _sums(one).items():
            row[name] += amount
    # Sorted, so that two who count the same never wait for each other.
    added = [row for _, row in sorted(rows.items(), key=lambda item: item[0])]
    await conn.execute(_adding(conn.dialect.name), added)


@cache
def _adding(dialect: str) -> "sqlite.Insert | postgresql.Insert":
    put = upsert_for(totals, dialect)
    moved = {name: totals.c[name] + put.excluded[name] for name in SUMS}
    return put.on_conflict_do_update(index_elements=list(_KEY), set_=moved)


def _sums(one: Observation) -> dict[str, Any]:
    return {
        "executions": 1,
        "judged": int(one.score is not None),
        "successes": int(one.succeeded),
        "quality": one.score or 0.0,
        "cost_usd": one.cost_usd,
        "latency_ms": one.latency_ms,
    }


def _row(tenant: str, one: Observation, sums: dict[str, Any]) -> dict[str, Any]:
    body = msgspec.json.encode(one.plan).decode()
    return {**_key(tenant, one), "plan": describe(one.plan), "body": body, **dict.fromkeys(SUMS, 0), **sums}


async def change_score(conn: AsyncConnection, tenant: str, before: Observation, after: Observation) -> None:
    """Count a score that came later, or that replaces another; the execution moves if its domain became known."""
    if before.domain != after.domain:
        await add_executions(conn, [(tenant, after)])
        await _add(conn, tenant, before, {name: -amount for name, amount in _sums(before).items()})
        empty = sa.and_(*(totals.c[name] == value for name, value in _key(tenant, before).items()))
        await conn.execute(totals.delete().where(empty, totals.c.executions <= 0))
        return
    sums = {"judged": int(before.score is None), "quality": (after.score or 0.0) - (before.score or 0.0)}
    await _add(conn, tenant, after, sums)


async def _add(conn: AsyncConnection, tenant: str, one: Observation, sums: dict[str, Any]) -> None:
    put = upsert(totals, conn).values(**_row(tenant, one, sums))
    moved = {name: totals.c[name] + amount for name, amount in sums.items()}
    await conn.execute(put.on_conflict_do_update(index_elements=list(_KEY), set_=moved))


def _key(tenant: str, one: Observation) -> dict[str, str]:
    return {"tenant": tenant, "configuration_id": one.configuration_id, "domain": one.domain}
