"""The plain names of adapters in SQL, each change with its event, and the folder that loads may come from."""

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from catena.adapters.core.ports import Registry
from catena.adapters.core.records import AdapterRecord
from catena.adapters.core.serving import NameTaken, PlainName, UnknownName
from catena.adapters.drivers.tables import NAMES, VERSIONS
from catena.api.events.v1 import events_pb2
from catena.kit.caller import SHARED
from catena.kit.clock import Clock
from catena.kit.errors import Denied, Invalid, Missing
from catena.kit.outbox import Outbox
from catena.kit.store import Store, upsert

CACHED_S = 2.0
N, V = NAMES.c, VERSIONS.c
JOINED = NAMES.join(
    VERSIONS, sa.and_(V.tenant == N.owner, V.base == N.base, V.name == N.adapter, V.version == N.version)
)


class SqlNames:
    """Implements the port `PlainNames`."""

    def __init__(self, store: Store, outbox: Outbox, registry: Registry, clock: Clock) -> None:
        """`registry` knows the versions that names mean."""
        self._store = store
        self._outbox = outbox
        self._registry = registry
        self._clock = clock
        self._known: tuple[float, Mapping[tuple[str, str], Sequence[str]]] = (0.0, {})

    async def find(self, tenant: str, name: str) -> PlainName:
        """The tenant's own name."""
        async with self._store.connect() as conn:
            row = await _row(conn, tenant, name)
        if row is None:
            raise UnknownName(f"{name[:200]!r} cannot be found; list the names with GET /v1/models")
        return await self._served(row)

    async def put(self, served: PlainName, *, replace: bool) -> None:
        """Keep a name."""
        record = served.record
        key = {"tenant": served.tenant, "name": served.name}
        rest = {"path": served.path, "created_s": served.created_s, "owner": record.tenant, "base": record.base}
        rest |= {"adapter": record.name, "version": record.version}
        async with self._store.begin() as conn:
            put = upsert(NAMES, conn).values(key | rest)
            if replace:
                await conn.execute(put.on_conflict_do_update(index_elements=["tenant", "name"], set_=rest))
            elif (await conn.execute(put.on_conflict_do_nothing().returning(N.name))).first() is None:
                raise NameTaken(f"{served.name!r} has already been loaded; unload it or load it in place")
            told = events_pb2.AdapterServed(name=served.name, model=record.model, digest=record.digest)
            await self._tell(conn, served, told)
        self._known = (0.0, {})

    async def drop(self, served: PlainName) -> None:
        """Forget a name."""
        async with self._store.begin() as conn:
            gone = await conn.execute(NAMES.delete().where(N.tenant == served.tenant, N.name == served.name))
            if gone.rowcount:
                await self._tell(conn, served, events_pb2.AdapterServed(name=served.name))
        self._known = (0.0, {})

    async def seen_by(self, tenant: str) -> Sequence[PlainName]:
        """What a tenant may ask for; withdrawn versions are left out."""
        query = sa.select(NAMES).select_from(JOINED).where(V.status == "active", N.tenant.in_({tenant, SHARED}))
        async with self._store.connect() as conn:
            rows = (await conn.execute(query.order_by(N.name))).mappings().all()
        found: dict[str, sa.RowMapping] = {}
        for row in rows:
            if row["tenant"] == tenant or row["name"] not in found:
                found[row["name"]] = row
        return [await self._served(row) for row in found.values()]

    async def serves(self, record: AdapterRecord) -> bool:
        """Whether any name serves these weights."""
        query = sa.select(N.name).select_from(JOINED).where(V.digest == record.digest, V.base == record.base)
        async with self._store.connect() as conn:
            return (await conn.execute(query.limit(1))).first() is not None

    async def of_models(self) -> Mapping[tuple[str, str], Sequence[str]]:
        """The names by adapter, as they were a moment ago at most."""
        until_s, known = self._known
        if self._clock.monotonic() < until_s:
            return known
        found: dict[tuple[str, str], list[str]] = {}
        async with self._store.connect() as conn:
            for row in (await conn.execute(sa.select(NAMES).order_by(N.name))).mappings():
                model = f"{row['base']}@{row['adapter']}:{row['version']}"
                found.setdefault((row["owner"], model), []).append(row["name"])
        self._known = (self._clock.monotonic() + CACHED_S, found)
        return found

    async def _served(self, row: sa.RowMapping) -> PlainName:
        record = await self._registry.find(row["owner"], row["base"], row["adapter"], row["version"])
        return PlainName(
            tenant=row["tenant"], name=row["name"], path=row["path"], record=record, created_s=row["created_s"]
        )

    async def _tell(self, conn: AsyncConnection, served: PlainName, message: Any) -> None:
        await self._outbox.put(
            conn, type="adapters.adapter.served", tenant=served.tenant, message=message, subject=served.name
        )


async def _row(conn: AsyncConnection, tenant: str, name: str) -> sa.RowMapping | None:
    query = sa.select(NAMES).where(N.tenant == tenant, N.name == name)
    return (await conn.execute(query)).mappings().first()


def rooted(root: str, max_bytes: int) -> Callable[[str], Awaitable[Path | bytes]]:
    """Reads paths below `root` (the setting `adapters.lora_root`) only, whatever links or dots they hold."""

    def read(path: str) -> Path | bytes:
        if not root:
            raise Denied(
                f"no path may be loaded here, {path[:200]!r} neither; name a folder as adapters.lora_root",
                code="no_lora_root",
            )
        top = Path(root).resolve()
        found = (top / path).resolve()
        if not found.is_relative_to(top):
            raise Denied(f"{path[:200]!r} is not below adapters.lora_root; move it there", code="path_outside_root")
        if found.is_dir():
            return found
        if not found.is_file():
            raise Missing(f"no adapter found for {path[:200]!r} below adapters.lora_root", code="no_such_path")
        if found.suffix != ".tar" or found.stat().st_size > max_bytes:
            raise Invalid(
                f"{path[:200]!r} should be a folder, or an uncompressed .tar of at most {max_bytes} bytes",
                code="bad_archive",
            )
        return found.read_bytes()

    async def source(path: str) -> Path | bytes:
        try:
            return await asyncio.to_thread(read, path)
        except (OSError, ValueError) as error:
            raise Missing(f"{path[:200]!r} cannot be read: {error}", code="no_such_path") from error

    return source
