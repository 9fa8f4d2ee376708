"""Totals of every execution ever, by configuration and domain: what stays when the window moves on."""

from typing import Any

import msgspec
import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from catena.kit.store import upsert
from catena.plan.model import describe
from catena.router.core.observation import Observation
from catena.router.drivers.tables import totals

_KEY = ("tenant", "configuration_id", "domain")


async def add_execution(conn: AsyncConnection, tenant: str, one: Observation) -> None:
    """Count an execution and, if it has a score, its score."""
    judged = one.score is not None
    sums = {
        "executions": 1,
        "judged": int(judged),
        "successes": int(one.succeeded),
        "quality": one.score or 0.0,
        "cost_usd": one.cost_usd,
        "latency_ms": one.latency_ms,
    }
    await _add(conn, tenant, one, sums)


async def change_score(conn: AsyncConnection, tenant: str, before: Observation, after: Observation) -> None:
    """Count a score that came later, or that replaces another; the execution moves if its domain became known."""
    if before.domain != after.domain:
        await add_execution(conn, tenant, after)
        judged = before.score is not None
        sums = {
            "executions": -1,
            "judged": -int(judged),
            "successes": -int(before.succeeded),
            "quality": -(before.score or 0.0),
            "cost_usd": -before.cost_usd,
            "latency_ms": -before.latency_ms,
        }
        await _add(conn, tenant, before, sums)
        empty = sa.and_(*(totals.c[name] == value for name, value in _key(tenant, before).items()))
        await conn.execute(totals.delete().where(empty, totals.c.executions <= 0))
        return
    sums = {"judged": int(before.score is None), "quality": (after.score or 0.0) - (before.score or 0.0)}
    await _add(conn, tenant, after, sums)


async def _add(conn: AsyncConnection, tenant: str, one: Observation, sums: dict[str, Any]) -> None:
    zeros = dict.fromkeys(("executions", "judged", "successes", "quality", "cost_usd", "latency_ms"), 0)
    put = upsert(totals, conn).values(
        **_key(tenant, one),
        plan=describe(one.plan),
        body=msgspec.json.encode(one.plan).decode(),
        **{**zeros, **sums},
    )
    moved = {name: totals.c[name] + amount for name, amount in sums.items()}
    await conn.execute(put.on_conflict_do_update(index_elements=list(_KEY), set_=moved))


def _key(tenant: str, one: Observation) -> dict[str, str]:
    return {"tenant": tenant, "configuration_id": one.configuration_id, "domain": one.domain}
