"""The catalogue in SQL, held in memory: seeded from the configuration, changed while running, adapters listed live."""

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import replace

import msgspec
import sqlalchemy as sa
import structlog

from catena.executor.core.catalogue import LOCAL, Model
from catena.executor.drivers import tables
from catena.kit.clock import Clock
from catena.kit.errors import CatenaError
from catena.kit.store import Store, upsert

REFRESH_S = 5.0
log = structlog.get_logger()

ListAdapters = Callable[[], Awaitable[Sequence[tuple[str, str]]]]
"""Name and base of every adapter that may be used now."""


class SqlCatalogue:
    """Models by name. Reading is a dictionary; other replicas' changes are seen within `REFRESH_S`."""

    def __init__(self, store: Store, adapters: ListAdapters, clock: Clock) -> None:
        """`adapters` asks the adapters room."""
        self._store = store
        self._adapters = adapters
        self._clock = clock
        self._models: Mapping[str, Model] = {}
        self._listed: tuple[float, Sequence[tuple[str, str]]] = (-1e9, ())

    @property
    def models(self) -> Mapping[str, Model]:
        """By name, adapters left out."""
        return self._models

    async def seed(self, models: Sequence[Model]) -> None:
        """Take in configured entries; one whose configuration did not change keeps what PutModel made of it."""
        table = tables.models
        async with self._store.begin() as conn:
            before = dict((await conn.execute(sa.select(table.c.name, table.c.seed))).all())
            for model in models:
                entry = msgspec.json.encode(model)
                if before.get(model.name) == entry:
                    continue
                insert = upsert(table, conn).values(name=model.name, entry=entry, seed=entry)
                await conn.execute(
                    insert.on_conflict_do_update(index_elements=["name"], set_={"entry": entry, "seed": entry})
                )
        await self.refresh()

    async def put(self, model: Model) -> Model:
        """Store an entry under its name; it counts at once."""
        entry = msgspec.json.encode(replace(model, calls=0, parent=""))
        async with self._store.begin() as conn:
            insert = upsert(tables.models, conn).values(name=model.name, entry=entry)
            await conn.execute(insert.on_conflict_do_update(index_elements=["name"], set_={"entry": entry}))
        await self.refresh()
        return self._models[model.name]

    async def listed(self) -> Sequence[Model]:
        """All entries by name, with calls so far, and the adapters served now."""
        async with self._store.connect() as conn:
            rows = await conn.execute(sa.select(tables.model_calls.c.name, tables.model_calls.c.calls))
            calls = dict(rows.all())
        found = {model.name: model for model in self._models.values()}
        for name, base in await self._adapters_now():
            parent = self._models.get(base)
            if parent is not None and parent.provider == LOCAL:
                found[name] = replace(parent, name=name, parent=base, upstream_name="", draft_for=())
        return [replace(found[name], calls=calls.get(name, 0)) for name in sorted(found)]

    async def refresh(self) -> None:
        """Read the entries anew."""
        async with self._store.connect() as conn:
            rows = (await conn.execute(sa.select(tables.models.c.entry))).scalars().all()
        models = (msgspec.json.decode(row, type=Model) for row in rows)
        self._models = {model.name: model for model in models}

    async def run(self) -> None:
        """Keep up with other replicas until cancelled."""
        while True:
            await asyncio.sleep(REFRESH_S)
            try:
                await self.refresh()
            except CatenaError as error:
                log.warning("catalogue not refreshed", error=error.message)

    def forget_adapters(self) -> None:
        """The adapters have changed: ask for them again when next listed."""
        self._listed = (-1e9, ())

    async def _adapters_now(self) -> Sequence[tuple[str, str]]:
        """The adapters, asked for at most every few seconds; those known last while the room is away."""
        asked_s, known = self._listed
        if self._clock.monotonic() - asked_s < REFRESH_S:
            return known
        try:
            known = await self._adapters()
        except CatenaError as error:
            log.warning("adapters not listed", error=error.message)
        self._listed = (self._clock.monotonic(), known)
        return known
