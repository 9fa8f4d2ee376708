"""The registry in SQL: versions, aliases moved by compare-and-set, and the events of each change in its transaction."""

import base64
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, TypeVar, cast

import msgspec
import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from catena.adapters.core.errors import AdapterWithdrawn, AliasMoved, UnknownAdapter, VersionTaken
from catena.adapters.core.records import AdapterRecord, Admitted, Use
from catena.adapters.core.refs import STABLE, check_alias, full_name, is_version
from catena.adapters.drivers.tables import ALIASES, FALLBACKS, GENERATION, VERSIONS
from catena.api.events.v1 import events_pb2
from catena.kit.caller import SHARED
from catena.kit.clock import World
from catena.kit.errors import Invalid
from catena.kit.outbox import Outbox
from catena.kit.store import Store, upsert

CACHED_S = 2.0
"""How long a name's meaning may be reused; changes made here are seen at once, those of other replicas within this."""
CACHED_NAMES = 4096
UNKNOWN_S = 5.0
V, A, F = VERSIONS.c, ALIASES.c, FALLBACKS.c
Found = TypeVar("Found")


class SqlRegistry:
    """Implements the port `Registry`."""

    def __init__(
        self, store: Store, outbox: Outbox, world: World, *, replica: str, unknown_s: float = UNKNOWN_S
    ) -> None:
        """`replica` names this process in residency events; `unknown_s` is how long a missing name stays missing."""
        self._store = store
        self._outbox = outbox
        self._world = world
        self._replica = replica
        self._unknown_s = unknown_s
        self._changes = 0
        self._cache: dict[tuple[str, str, str, str], tuple[float, AdapterRecord | str]] = {}
        self._lists: dict[tuple[str, ...], tuple[float, Any]] = {}

    async def find(self, tenant: str, base: str, name: str, tag: str) -> AdapterRecord:
        """The version that a tag means; the tenant's own come before those of `shared`."""
        key = (tenant, base, name, tag)
        until_s, known = self._cache.get(key, (0.0, ""))
        now_s, changes = self._world.clock.monotonic(), self._changes
        if now_s >= until_s:
            known = await self._look_up(key)
        if now_s >= until_s and changes == self._changes:
            if len(self._cache) >= CACHED_NAMES:
                self._cache.clear()
            self._cache[key] = (now_s + (self._unknown_s if isinstance(known, str) else CACHED_S), known)
        if isinstance(known, str):
            raise UnknownAdapter(known)
        return known

    async def add(self, tenant: str, admitted: Admitted) -> AdapterRecord:
        """Register a version."""
        fields = msgspec.to_builtins(admitted)
        key = {"tenant": tenant, "base": admitted.base, "name": admitted.name, "version": admitted.version}
        async with self._store.begin() as conn:
            row = fields | key | {"created_s": self._world.clock.now(), "last_used_s": 0.0, "uses": 0}
            row |= {"status": "active", "reason": "", "pinned": False}
            put = upsert(VERSIONS, conn).values(row).on_conflict_do_nothing().returning(V.digest)
            made = (await conn.execute(put)).first() is not None
            record = await _version(conn, tenant, admitted.base, admitted.name, admitted.version)
            assert record is not None
            if record.digest != admitted.digest:
                raise VersionTaken(
                    f"{record.model} is registered with digest {record.digest}, this one has {admitted.digest}; "
                    f"give it another version"
                )
            if record.status == "withdrawn":
                raise AdapterWithdrawn(f"{record.model} was withdrawn; register it as another version")
            if made:
                told = events_pb2.AdapterRegistered(
                    model=record.model, digest=record.digest, tasks=record.tasks, metrics=dict(record.metrics)
                )
                await self._tell(conn, "adapters.adapter.registered", tenant, record.model, told)
                await _next_generation(conn)
        self._forget()
        return record

    async def page(
        self, tenant: str, *, base: str, task: str, after: str, size: int
    ) -> tuple[Sequence[AdapterRecord], str]:
        """A page of what the tenant sees."""
        order = (V.base, V.name, V.version, V.tenant)
        query = sa.select(VERSIONS).where(V.tenant.in_({tenant, SHARED})).order_by(*order)
        if base:
            query = query.where(V.base == base)
        found: list[AdapterRecord] = []
        async with self._store.connect() as conn:
            place = _read_token(after)
            while True:
                # Tasks are JSON, searched here, for the two databases have no such search in common.
                part = query.where(sa.tuple_(*order) > sa.tuple_(*place)) if place else query
                rows = (await conn.execute(part.limit(size + 1))).mappings().all()
                found += [record for record in map(_record, rows) if not task or task in record.tasks]
                if len(rows) <= size or len(found) > size:
                    break
                place = tuple(rows[-1][column.name] for column in order)
            shown = found[:size]
            aliases = await _aliases(conn, {tenant, SHARED})
        shown = [_with_aliases(record, aliases) for record in shown]
        last = shown[-1] if len(found) > size else None
        return shown, _write_token((last.base, last.name, last.version, last.tenant)) if last else ""

    async def withdraw(self, tenant: str, base: str, name: str, version: str, reason: str) -> AdapterRecord:
        """Mark withdrawn; a second time changes nothing."""
        async with self._store.begin() as conn:
            record = await _version(conn, tenant, base, name, version)
            if record is None:
                raise UnknownAdapter(f"{full_name(base, name, version)} is not an adapter of tenant {tenant}")
            this = _is(tenant, base, name, version)
            marked = VERSIONS.update().where(this, V.status == "active")
            if (await conn.execute(marked.values(status="withdrawn", reason=reason, pinned=False))).rowcount == 1:
                told = events_pb2.AdapterWithdrawn(model=record.model, digest=record.digest, reason=reason)
                await self._tell(conn, "adapters.adapter.withdrawn", tenant, record.model, told)
                for alias in record.aliases:
                    await conn.execute(ALIASES.delete().where(_is_alias(tenant, base, name, alias)))
                    await self._tell_alias(conn, tenant, (base, name, alias), "", "")
                await _next_generation(conn)
            found = await _version(conn, tenant, base, name, version)
            assert found is not None
        self._forget()
        return found

    async def set_alias(
        self, tenant: str, base: str, name: str, alias: str, *, version: str, expected: str
    ) -> AdapterRecord | None:
        """Move an alias; asking again for what is already so changes nothing."""
        check_alias(alias)
        where = _is_alias(tenant, base, name, alias)
        async with self._store.begin() as conn:
            target = await _version(conn, tenant, base, name, version) if version else None
            if version and target is None:
                raise UnknownAdapter(f"{full_name(base, name, version)} is not an adapter of tenant {tenant}")
            if target is not None and target.status == "withdrawn":
                raise AdapterWithdrawn(f"{target.model} was withdrawn; no alias may point at it")
            digest = target.digest if target is not None else ""
            # Locks the row, so that of two writers on PostgreSQL the second sees what the first did.
            now = (await conn.execute(sa.select(A.version, A.digest).where(where).with_for_update())).first()
            if (now.version if now else "") == version and (now.digest if now else "") == digest:
                return target
            if (now.digest if now else "") != expected:
                raise AliasMoved(
                    f"{full_name(base, name, alias)} points at {now.digest if now else 'nothing'}, "
                    f"not at {expected or 'nothing'}; look again and decide anew"
                )
            await _move(conn, (tenant, base, name, alias), version, digest, expected)
            await self._tell_alias(conn, tenant, (base, name, alias), version, digest)
            found = await _version(conn, tenant, base, name, version) if version else None
        self._forget()
        return found

    async def versions(self, tenant: str, base: str, name: str) -> Sequence[AdapterRecord]:
        """Every version of an adapter."""
        query = sa.select(VERSIONS).where(V.tenant.in_({tenant, SHARED}), V.base == base, V.name == name)
        async with self._store.connect() as conn:
            found = [_record(row) for row in (await conn.execute(query)).mappings()]
            aliases = await _aliases(conn, {tenant, SHARED}, base, name)
        own_first = sorted(found, key=lambda record: record.tenant != tenant)
        return [_with_aliases(record, aliases) for record in own_first]

    async def stable(self, tenant: str, base: str) -> Sequence[AdapterRecord]:
        """The stable version of every adapter of a base."""

        async def read() -> list[AdapterRecord]:
            same = sa.and_(A.tenant == V.tenant, A.base == V.base, A.name == V.name, A.version == V.version)
            query = sa.select(VERSIONS).join(ALIASES, same).order_by(V.name)
            query = query.where(V.tenant.in_({tenant, SHARED}), V.base == base, A.alias == STABLE, V.status == "active")
            async with self._store.connect() as conn:
                found = [_record(row) for row in (await conn.execute(query)).mappings()]
            own = {record.name for record in found if record.tenant == tenant}
            return [record for record in found if record.tenant == tenant or record.name not in own]

        return await self._cached(("stable", tenant, base), read)

    async def set_fallbacks(self, tenant: str, base: str, name: str, models: Sequence[str]) -> None:
        """Declare fallbacks."""
        async with self._store.begin() as conn:
            if not models:
                here = (F.tenant == tenant, F.base == base, F.name == name)
                await conn.execute(FALLBACKS.delete().where(*here))
            else:
                row = {"tenant": tenant, "base": base, "name": name, "models": list(models)}
                put = upsert(FALLBACKS, conn).values(row)
                put = put.on_conflict_do_update(
                    index_elements=["tenant", "base", "name"], set_={"models": put.excluded.models}
                )
                await conn.execute(put)
        self._forget()

    async def fallbacks(self, tenant: str, base: str, name: str) -> Sequence[str]:
        """What was declared."""

        async def read() -> list[str]:
            query = sa.select(F.tenant, F.models).where(F.tenant.in_({tenant, SHARED}), F.base == base, F.name == name)
            async with self._store.connect() as conn:
                found = {row.tenant: list(row.models) for row in await conn.execute(query)}
            return found.get(tenant, found.get(SHARED, []))

        return await self._cached(("fallbacks", tenant, base, name), read)

    async def set_pinned(self, record: AdapterRecord, pinned: bool) -> None:
        """Remember a pin."""
        this = _is(record.tenant, record.base, record.name, record.version)
        async with self._store.begin() as conn:
            await conn.execute(VERSIONS.update().where(this).values(pinned=pinned))
        self._forget()

    async def pinned(self) -> Sequence[AdapterRecord]:
        """Every pinned, active version."""
        async with self._store.connect() as conn:
            rows = await conn.execute(sa.select(VERSIONS).where(V.pinned, V.status == "active"))
            return [_record(row) for row in rows.mappings()]

    async def count_uses(self, uses: Mapping[Use, int]) -> None:
        """Add to the counts; the time of last use is now."""
        now_s = self._world.clock.now()
        async with self._store.begin() as conn:
            for use, count in uses.items():
                this = _is(use.tenant, use.base, use.name, use.version)
                await conn.execute(VERSIONS.update().where(this).values(uses=V.uses + count, last_used_s=now_s))

    async def tell_residency(self, tenant: str, model: str, tier: str, bytes: int) -> None:
        """Announce what came or went."""
        told = events_pb2.ResidencyChanged(replica=self._replica, model=model, tier=tier, bytes=bytes)
        async with self._store.begin() as conn:
            await self._tell(conn, "adapters.residency.changed", tenant, model, told)

    async def _look_up(self, key: tuple[str, str, str, str]) -> AdapterRecord | str:
        """The version that is meant, or why there is none."""
        tenant, base, name, tag = key
        async with self._store.connect() as conn:
            for owner in dict.fromkeys((tenant, SHARED)):
                record = await _find(conn, owner, base, name, tag)
                if record is not None:
                    return record
            return await _unknown(conn, tenant, base, name, tag)

    async def _cached(self, key: tuple[str, ...], read: Callable[[], Awaitable[Found]]) -> Found:
        until_s, found = self._lists.get(key, (0.0, None))
        now_s, changes = self._world.clock.monotonic(), self._changes
        if now_s >= until_s:
            found = await read()
        if now_s >= until_s and changes == self._changes:
            if len(self._lists) >= CACHED_NAMES:
                self._lists.clear()
            self._lists[key] = (now_s + CACHED_S, found)
        return cast(Found, found)

    def _forget(self) -> None:
        """What this replica changed, it sees at once; what was being read meanwhile is not kept."""
        self._changes += 1
        self._cache.clear()
        self._lists.clear()

    async def _tell_alias(
        self, conn: AsyncConnection, tenant: str, where: tuple[str, str, str], version: str, digest: str
    ) -> None:
        base, name, alias = where
        told = events_pb2.AdapterAliased(
            base=base,
            name=name,
            alias=alias,
            version=version,
            digest=digest,
            generation=await _next_generation(conn),
        )
        await self._tell(conn, "adapters.adapter.aliased", tenant, full_name(base, name, alias), told)

    async def _tell(self, conn: AsyncConnection, type_: str, tenant: str, subject: str, message: Any) -> None:
        await self._outbox.put(conn, type=type_, tenant=tenant, message=message, subject=subject)


async def _find(conn: AsyncConnection, tenant: str, base: str, name: str, tag: str) -> AdapterRecord | None:
    if not is_version(tag):
        tag = await conn.scalar(sa.select(A.version).where(_is_alias(tenant, base, name, tag))) or ""
    return await _version(conn, tenant, base, name, tag) if tag else None


async def _version(conn: AsyncConnection, tenant: str, base: str, name: str, version: str) -> AdapterRecord | None:
    row = (await conn.execute(sa.select(VERSIONS).where(_is(tenant, base, name, version)))).mappings().first()
    if row is None:
        return None
    return _with_aliases(_record(row), await _aliases(conn, {tenant}, base, name))


async def _aliases(
    conn: AsyncConnection, tenants: set[str], base: str = "", name: str = ""
) -> dict[tuple[str, str, str, str], list[str]]:
    query = sa.select(ALIASES).where(A.tenant.in_(tenants)).order_by(A.alias)
    if base:
        query = query.where(A.base == base, A.name == name)
    found: dict[tuple[str, str, str, str], list[str]] = {}
    for row in await conn.execute(query):
        found.setdefault((row.tenant, row.base, row.name, row.version), []).append(row.alias)
    return found


async def _move(
    conn: AsyncConnection, where: tuple[str, str, str, str], version: str, digest: str, expected: str
) -> None:
    if not version:
        await conn.execute(ALIASES.delete().where(_is_alias(*where)))
        return
    tenant, base, name, alias = where
    row = {"tenant": tenant, "base": base, "name": name, "alias": alias, "version": version, "digest": digest}
    put = upsert(ALIASES, conn).values(row)
    put = put.on_conflict_do_update(
        index_elements=["tenant", "base", "name", "alias"],
        set_={"version": version, "digest": digest},
        where=A.digest == expected,
    )
    if (await conn.execute(put.returning(A.version))).first() is None:
        raise AliasMoved(f"{full_name(base, name, alias)} was moved by somebody else; look again and decide anew")


async def _next_generation(conn: AsyncConnection) -> int:
    put = upsert(GENERATION, conn).values(id=1, generation=1)
    put = put.on_conflict_do_update(index_elements=["id"], set_={"generation": GENERATION.c.generation + 1})
    await conn.execute(put)
    return int(await conn.scalar(sa.select(GENERATION.c.generation)) or 0)


async def _unknown(conn: AsyncConnection, tenant: str, base: str, name: str, tag: str) -> str:
    seen = sa.select(V.version).where(V.tenant.in_({tenant, SHARED}), V.base == base, V.name == name)
    versions = sorted((await conn.scalars(seen)).all())
    if versions:
        return f"{base}@{name} has no {tag!r}; it has versions {', '.join(versions)}"
    return f"{base} has no adapter {name!r}; register it or ask for another"


def _is(tenant: str, base: str, name: str, version: str) -> sa.ColumnElement[bool]:
    return sa.and_(V.tenant == tenant, V.base == base, V.name == name, V.version == version)


def _is_alias(tenant: str, base: str, name: str, alias: str) -> sa.ColumnElement[bool]:
    return sa.and_(A.tenant == tenant, A.base == base, A.name == name, A.alias == alias)


def _record(row: sa.RowMapping) -> AdapterRecord:
    fields = {key: value for key, value in row.items() if key != "reason"}
    return AdapterRecord(**fields | {"tasks": tuple(row["tasks"])})


def _with_aliases(record: AdapterRecord, aliases: Mapping[tuple[str, str, str, str], Sequence[str]]) -> AdapterRecord:
    names = aliases.get((record.tenant, record.base, record.name, record.version), ())
    return replace(record, aliases=tuple(names))


def _write_token(place: Sequence[str]) -> str:
    return base64.urlsafe_b64encode(msgspec.json.encode(place)).decode()


def _read_token(token: str) -> tuple[str, ...]:
    if not token:
        return ()
    try:
        place = msgspec.json.decode(base64.urlsafe_b64decode(token), type=tuple[str, str, str, str])
    except (ValueError, msgspec.MsgspecError) as error:
        raise Invalid("the page token is not one that this room gave out; start from the first page") from error
    return place
