"""The catalogue in SQL, held in memory: seeded from the configuration, changed while running, adapters listed live."""

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import msgspec
import sqlalchemy as sa
import structlog

from catena.executor.core.catalogue import LOCAL, Model, adapter_of
from catena.executor.drivers import tables
from catena.kit.caller import caller
from catena.kit.clock import Clock
from catena.kit.errors import CatenaError
from catena.kit.store import Store, upsert

REFRESH_S = 5.0
log = structlog.get_logger()

RETRY_S = 0.5


@dataclass(frozen=True, slots=True, kw_only=True)
class Served:
    """What the adapters room has for the caller: name and base of each adapter, and each base with its problem.

    `contexts`: the tokens that each base takes, as far as known.
    """

    adapters: Sequence[tuple[str, str]] = ()
    bases: Mapping[str, str] = field(default_factory=dict)
    contexts: Mapping[str, int] = field(default_factory=dict)


ListServed = Callable[[], Awaitable[Served]]
Problem = Callable[[Model, Mapping[str, str]], str]
"""Why a model cannot be called, given the bases' problems."""


class SqlCatalogue:
    """Models by name. Reading is a dictionary; other replicas' changes are seen within `REFRESH_S`."""

    def __init__(self, store: Store, served: ListServed, problem: Problem, clock: Clock) -> None:
        """`served` asks the adapters room for the running call's tenant."""
        self._store = store
        self._ask = served
        self._problem = problem
        self._clock = clock
        self._models: Mapping[str, Model] = {}
        self._served: dict[str, tuple[float, Served]] = {}
        self._problems: Mapping[str, str] = {}

    @property
    def models(self) -> Mapping[str, Model]:
        """By name, adapters left out."""
        return self._models

    async def seed(self, models: Sequence[Model]) -> None:
        """Take in configured entries; one whose configuration did not change keeps what PutModel made of it.

        Those that the configuration has no more go.
        """
        table = tables.models
        async with self._store.begin() as conn:
            before = dict((await conn.execute(sa.select(table.c.name, table.c.seed))).all())
            gone = {name for name, seed in before.items() if seed is not None} - {model.name for model in models}
            if gone:
                await conn.execute(sa.delete(table).where(table.c.name.in_(gone)))
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
        """All entries by name, with calls so far and what stands against them, and the adapters served now."""
        async with self._store.connect() as conn:
            rows = await conn.execute(sa.select(tables.model_calls.c.name, tables.model_calls.c.calls))
            calls = dict(rows.all())
        served = await self._served_now()
        found = {name: self._found(model, served) for name, model in self._models.items()}
        self._tell({name: model.problem for name, model in found.items() if model.problem})
        for name, base in served.adapters:
            parent = found.get(base)
            if parent is not None and parent.provider == LOCAL:
                found[name] = adapter_of(parent, name)
        return [replace(found[name], calls=calls.get(name, 0)) for name in sorted(found)]

    def _found(self, model: Model, served: Served) -> Model:
        """An entry with what stands against it, and the context of a base that the configuration leaves open."""
        context = model.context_tokens
        if model.provider == LOCAL:
            context = context or served.contexts.get(model.name, 0)
        return replace(model, problem=self._problem(model, served.bases), context_tokens=context)

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
        self._served.clear()

    async def _served_now(self) -> Served:
        """What is served, asked for at most every few seconds; what was known last while the room is away."""
        tenant = caller().tenant
        due_s, known = self._served.get(tenant, (-1e9, Served()))
        if self._clock.monotonic() < due_s:
            return known
        wait_s = REFRESH_S
        try:
            known = await self._ask()
        except CatenaError as error:
            wait_s = RETRY_S
            log.warning("adapters not listed", error=error.message)
        self._served[tenant] = (self._clock.monotonic() + wait_s, known)
        return known

    def _tell(self, problems: Mapping[str, str]) -> None:
        """Log what stands against models, once each."""
        for name, problem in problems.items():
            if self._problems.get(name) != problem:
                log.warning("model cannot be called", model=name, problem=problem)
        self._problems = problems
