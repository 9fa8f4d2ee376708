"""Webhooks that are promised, in the gateway's own SQL; replicas share them by leases."""

from collections.abc import Sequence
from dataclasses import asdict

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from catena.gateway.core.webhooks import Webhook
from catena.gateway.drivers.tables import WEBHOOKS
from catena.kit.clock import Clock
from catena.kit.store import Store, upsert

AT_ONCE = 16
KEPT_S = 7 * 86400.0
"""How long a webhook that was delivered or given up is remembered; its secret is forgotten at once."""


class WebhookStore:
    """Keeps webhooks from promise to delivery."""

    def __init__(self, store: Store, clock: Clock) -> None:
        """Use the room's database."""
        self._store = store
        self._clock = clock

    async def promise(self, webhook: Webhook) -> Webhook:
        """Commit a run's webhook, and return it as kept: the first one, where the run has one already."""
        async with self._store.begin() as conn:
            await conn.execute(upsert(WEBHOOKS, conn).values(**asdict(webhook)).on_conflict_do_nothing())
            found = await conn.execute(sa.select(WEBHOOKS).where(WEBHOOKS.c.run_id == webhook.run_id))
            return Webhook(**found.mappings().one())

    async def ended(self, run_id: str, *, outcome: str, execution_id: str) -> bool:
        """Make the run's webhook due, once; False where it waits for nothing."""
        now_s = self._clock.now()
        waiting = (WEBHOOKS.c.run_id == run_id) & (WEBHOOKS.c.state == "waiting")
        values = {"outcome": outcome, "execution_id": execution_id, "finished_s": now_s, "due_s": now_s}
        async with self._store.begin() as conn:
            return bool((await conn.execute(sa.update(WEBHOOKS).where(waiting).values(state="due", **values))).rowcount)

    async def take(self, lease_s: float) -> Sequence[Webhook]:
        """Some that are due, each counted as tried once more and nobody else's for `lease_s`."""
        now_s = self._clock.now()
        due = (WEBHOOKS.c.state == "due") & (WEBHOOKS.c.due_s <= now_s)
        async with self._store.connect() as conn:
            found = (await conn.execute(sa.select(WEBHOOKS).where(due).limit(AT_ONCE))).mappings().all()
        if not found:
            return []
        async with self._store.begin() as conn:
            mine = [row for row in found if await _lease(conn, row, now_s + lease_s)]
        return [Webhook(**{**row, "attempts": row["attempts"] + 1}) for row in mine]

    async def again(self, run_id: str, due_s: float) -> None:
        """Try it again then."""
        await self._put(run_id, due_s=due_s)

    async def close(self, run_id: str, state: str) -> None:
        """It was delivered or given up; forget its secret, and those closed long ago."""
        await self._put(run_id, state=state, secret="")
        old = (WEBHOOKS.c.secret == "") & (WEBHOOKS.c.finished_s < self._clock.now() - KEPT_S)
        async with self._store.begin() as conn:
            await conn.execute(sa.delete(WEBHOOKS).where(old))

    async def _put(self, run_id: str, **values: object) -> None:
        async with self._store.begin() as conn:
            await conn.execute(sa.update(WEBHOOKS).where(WEBHOOKS.c.run_id == run_id).values(**values))


async def _lease(conn: AsyncConnection, row: sa.RowMapping, until_s: float) -> bool:
    same = (WEBHOOKS.c.run_id == row["run_id"]) & (WEBHOOKS.c.attempts == row["attempts"])
    values = {"due_s": until_s, "attempts": row["attempts"] + 1}
    return bool((await conn.execute(sa.update(WEBHOOKS).where(same).values(**values))).rowcount)
