"""Users' pipelines in SQL, the newest of each held in memory for a moment."""

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace

import msgspec
import sqlalchemy as sa

from catena.executor.core.steps import Pipeline
from catena.executor.drivers import tables
from catena.kit.caller import SHARED
from catena.kit.clock import Clock
from catena.kit.errors import Conflict
from catena.kit.store import Store

FRESH_S = 1.0
"""For how long another replica's change may be missed."""
_TABLE = tables.pipelines


class SqlPipelines:
    """Pipelines by tenant, name and version; every put makes a version."""

    def __init__(self, store: Store, clock: Clock) -> None:
        """Keep them in `store`."""
        self._store = store
        self._clock = clock
        self._held: dict[tuple[str, str, int], tuple[float, Pipeline | None]] = {}

    async def put(self, tenant: str, pipeline: Pipeline) -> Pipeline:
        """Store as the next version."""
        async with self._store.begin() as conn:
            newest = sa.select(sa.func.max(_TABLE.c.version)).where(
                _TABLE.c.tenant == tenant, _TABLE.c.name == pipeline.name
            )
            version = ((await conn.execute(newest)).scalar() or 0) + 1
            stored = replace(pipeline, version=version, created_s=self._clock.now())
            body = msgspec.json.encode(stored)
            await conn.execute(_TABLE.insert().values(tenant=tenant, name=pipeline.name, version=version, body=body))
        self._held.clear()
        return stored

    async def get(self, tenant: str, name: str, version: int = 0) -> Pipeline | None:
        """The tenant's own, else the shared one; version 0 is the newest."""
        key = (tenant, name, version)
        read_s, held = self._held.get(key, (-1e9, None))
        if self._clock.monotonic() - read_s < FRESH_S:
            return held
        found = await self._read(tenant, name, version)
        if found is None and tenant != SHARED:
            found = await self._read(SHARED, name, version)
        if len(self._held) > 10_000:
            self._held.clear()
        self._held[key] = (self._clock.monotonic(), found)
        return found

    async def listed(self, tenant: str, size: int, after: str) -> Sequence[Pipeline]:
        """The newest version of each by name; the tenant's own before a shared one of the same name."""
        mine = _TABLE.c.tenant.in_([tenant, SHARED])
        newest = (
            sa.select(_TABLE.c.tenant, _TABLE.c.name, sa.func.max(_TABLE.c.version).label("version"))
            .where(mine, _TABLE.c.name > after)
            .group_by(_TABLE.c.tenant, _TABLE.c.name)
            .order_by(_TABLE.c.name)
            .limit(2 * size)
            .subquery()
        )
        same = sa.and_(*(_TABLE.c[key] == newest.c[key] for key in ("tenant", "name", "version")))
        query = sa.select(_TABLE.c.tenant, _TABLE.c.name, _TABLE.c.body).join(newest, same)
        async with self._store.connect() as conn:
            rows = (await conn.execute(query)).all()
        found: dict[str, Pipeline] = {}
        for row in sorted(rows, key=lambda row: row.tenant == tenant):
            found[row.name] = msgspec.json.decode(row.body, type=Pipeline)
        return [found[name] for name in sorted(found)][:size]

    async def delete(self, tenant: str, name: str) -> bool:
        """Remove all versions; False when there was none."""
        async with self._store.begin() as conn:
            gone = await conn.execute(_TABLE.delete().where(_TABLE.c.tenant == tenant, _TABLE.c.name == name))
        self._held.clear()
        return gone.rowcount > 0

    async def seed(self, examples: Sequence[Pipeline]) -> None:
        """Put those of the examples that tenant `shared` does not have, nor ever changed."""
        for pipeline in examples:
            if await self._read(SHARED, pipeline.name, 0) is None:
                with suppress(Conflict):  # another replica was quicker
                    await self.put(SHARED, pipeline)

    async def _read(self, tenant: str, name: str, version: int) -> Pipeline | None:
        query = sa.select(_TABLE.c.body).where(_TABLE.c.tenant == tenant, _TABLE.c.name == name)
        query = query.where(_TABLE.c.version == version) if version else query.order_by(_TABLE.c.version.desc())
        async with self._store.connect() as conn:
            body = (await conn.execute(query.limit(1))).scalar()
        return None if body is None else msgspec.json.decode(body, type=Pipeline)
