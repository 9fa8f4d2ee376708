"""The SQL shelf, over SQLite or PostgreSQL: values appended, the row of a time sought by index."""

import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from typing import Any

import msgspec
import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from catena.api.events.v1.events_pb2 import ValueSet
from catena.features.core.types import Definition, Draft, Group, Key, Latest, Row
from catena.features.drivers import tables as t
from catena.kit.clock import World
from catena.kit.errors import Conflict
from catena.kit.outbox import Outbox
from catena.kit.store import Store, upsert

PAGE = 400
REMEMBER_S = 86_400.0
EVENT = "features.value.set"
END_OF_TIME_S = 1e300


class SqlShelf:
    """`Shelf` over one database; tells `features.value.set`, once an entity, in the transaction of the write."""

    def __init__(self, store: Store, outbox: Outbox, world: World) -> None:
        """`world` dates the rows."""
        self._store = store
        self._outbox = outbox
        self._world = world

    async def append(self, tenant: str, drafts: Sequence[Draft], *, request_id: str) -> list[Row]:
        """Append values, all or none. A request id is remembered for a day."""
        digest = hashlib.sha256(msgspec.json.encode([_asked(draft) for draft in drafts])).hexdigest()
        async with self._store.begin() as conn:
            await _take_turns(conn, sorted({(tenant, d.entity_type, d.entity_id) for d in drafts}), request_id)
            if request_id and (before := await self._answered(conn, tenant, request_id, digest)) is not None:
                return before
            rows = await self._insert(conn, tenant, drafts)
            await self._tell(conn, tenant, drafts)
            if request_id:
                await self._remember(conn, tenant, request_id, digest, rows)
        return rows

    async def latest(
        self, tenant: str, entity_type: str, keys: Sequence[Key], *, as_of_s: float, known_at_s: float
    ) -> Mapping[Key, Latest]:
        """For each key the row that held at `as_of_s`, of those created by `known_at_s`."""
        found: dict[Key, Latest] = {key: Latest(row=None, next_event_s=math.inf) for key in keys}
        known_at_s = min(known_at_s, END_OF_TIME_S)
        async with self._store.connect() as conn:
            for start in range(0, len(keys), PAGE):
                query = _latest_query(tenant, entity_type, keys[start : start + PAGE], as_of_s, known_at_s)
                for row in await conn.execute(query):
                    found[row.key_entity, row.key_feature] = Latest(
                        row=_row(row) if row.version is not None else None,
                        next_event_s=math.inf if row.next_event_s is None else row.next_event_s,
                    )
        return found

    async def definitions(self, tenant: str) -> Mapping[tuple[str, str], Definition]:
        """The newest definitions by entity type and name."""
        found = await self._bodies(t.definitions, tenant, Definition)
        return {(definition.entity_type, definition.name): definition for definition in found}

    async def groups(self, tenant: str) -> Mapping[str, Group]:
        """The newest groups by name."""
        return {group.name: group for group in await self._bodies(t.groups, tenant, Group)}

    async def put_definition(self, tenant: str, definition: Definition) -> Definition:
        """Store a definition as a new version, unless nothing changed."""
        keys = {"tenant": tenant, "entity_type": definition.entity_type, "name": definition.name}
        version = await self._put_version(t.definitions, keys, _plain(replace(definition, version=0)))
        return replace(definition, version=version)

    async def put_group(self, tenant: str, group: Group) -> Group:
        """Store a group as a new version, unless nothing changed."""
        keys = {"tenant": tenant, "name": group.name}
        return replace(group, version=await self._put_version(t.groups, keys, _plain(replace(group, version=0))))

    async def _insert(self, conn: AsyncConnection, tenant: str, drafts: Sequence[Draft]) -> list[Row]:
        now_s = self._world.clock.now()
        c = t.values.c
        versions: dict[tuple[str, str, str], int] = {}
        rows, records = [], []
        for draft in drafts:
            key = (draft.entity_type, draft.entity_id, draft.feature)
            if key not in versions:
                same = (c.tenant == tenant, c.entity_type == key[0], c.entity_id == key[1], c.feature == key[2])
                versions[key] = await conn.scalar(sa.select(sa.func.max(c.version)).where(*same)) or 0
            versions[key] += 1
            row = Row(
                entity_id=draft.entity_id,
                feature=draft.feature,
                value=draft.value,
                event_s=draft.event_s or now_s,
                created_s=now_s,
                definition_version=draft.definition_version,
                version=versions[key],
            )
            rows.append(row)
            records.append({"tenant": tenant, "entity_type": draft.entity_type, **asdict(row)})
        await conn.execute(t.values.insert(), records)
        return rows

    async def _tell(self, conn: AsyncConnection, tenant: str, drafts: Sequence[Draft]) -> None:
        entities: dict[tuple[str, str], list[str]] = {}
        for draft in drafts:
            entities.setdefault((draft.entity_type, draft.entity_id), []).append(draft.feature)
        for (entity_type, entity_id), features in entities.items():
            message = ValueSet(entity_type=entity_type, entity_id=entity_id, features=list(dict.fromkeys(features)))
            await self._outbox.put(conn, type=EVENT, tenant=tenant, message=message, subject=entity_id)

    async def _answered(self, conn: AsyncConnection, tenant: str, request_id: str, digest: str) -> list[Row] | None:
        c = t.requests.c
        mine = (c.tenant == tenant, c.id == request_id)
        before = (await conn.execute(sa.select(c.digest, c.rows).where(*mine))).first()
        if before is None:
            return None
        if before.digest != digest:
            raise Conflict(f"request {request_id!r} came before with other values; use a new id", code="request_reused")
        return [Row(**row) for row in before.rows]

    async def _remember(
        self, conn: AsyncConnection, tenant: str, request_id: str, digest: str, rows: Sequence[Row]
    ) -> None:
        now_s = self._world.clock.now()
        await conn.execute(t.requests.delete().where(t.requests.c.created_s < now_s - REMEMBER_S))
        answer = [asdict(row) for row in rows]
        note = {"tenant": tenant, "id": request_id, "digest": digest, "rows": answer, "created_s": now_s}
        await conn.execute(upsert(t.requests, conn).values(**note))

    async def _put_version(self, table: sa.Table, keys: Mapping[str, str], body: dict[str, Any]) -> int:
        """Append `body` under the next version of `keys`, unless the newest is the same; the version."""
        c = table.c
        async with self._store.begin() as conn:
            await _take_turns(conn, [tuple(keys.values())], "")
            newest = sa.select(c.version, c.body).where(*(c[name] == value for name, value in keys.items()))
            before = (await conn.execute(newest.order_by(c.version.desc()).limit(1))).first()
            if before is not None and before.body == body:
                return int(before.version)
            version = int(before.version) + 1 if before is not None else 1
            await conn.execute(table.insert().values(**keys, version=version, body=body))
        return version

    async def _bodies(self, table: sa.Table, tenant: str, kind: type[Any]) -> list[Any]:
        """The newest version of each thing in `table`."""
        async with self._store.connect() as conn:
            rows = await conn.execute(sa.select(table).where(table.c.tenant == tenant).order_by(table.c.version))
            newest = {tuple(row)[1:-2]: row for row in rows}
        return [msgspec.convert(row.body | {"version": row.version}, kind) for row in newest.values()]


def _latest_query(
    tenant: str, entity_type: str, keys: Sequence[Key], as_of_s: float, known_at_s: float
) -> sa.Select[Any]:
    """One row a key; each is found by two seeks in the index by time, however long its history."""
    columns = (sa.column("key_entity", sa.Text), sa.column("key_feature", sa.Text))
    wanted = sa.values(*columns, name="wanted").data(list(keys)).cte()
    seen, later, v = t.values.alias("seen"), t.values.alias("later"), t.values

    def same(table: Any) -> sa.ColumnElement[bool]:
        return sa.and_(
            table.c.tenant == tenant,
            table.c.entity_type == entity_type,
            table.c.entity_id == wanted.c.key_entity,
            table.c.feature == wanted.c.key_feature,
        )

    version = (
        sa.select(seen.c.version)
        .where(same(seen), seen.c.event_s <= as_of_s, seen.c.created_s <= known_at_s)
        .order_by(seen.c.event_s.desc(), seen.c.created_s.desc(), seen.c.version.desc())
        .limit(1)
        .scalar_subquery()
    )
    following = sa.select(sa.func.min(later.c.event_s)).where(same(later), later.c.event_s > as_of_s).scalar_subquery()
    joined = wanted.outerjoin(v, sa.and_(same(v), v.c.version == version))
    return sa.select(wanted, v, following.label("next_event_s")).select_from(joined)


def _plain(thing: Definition | Group) -> dict[str, Any]:
    """As it will come back from a JSON column."""
    found: dict[str, Any] = msgspec.json.decode(msgspec.json.encode(thing))
    return found


def _row(row: Any) -> Row:
    return Row(
        entity_id=row.entity_id,
        feature=row.feature,
        value=row.value,
        event_s=row.event_s,
        created_s=row.created_s,
        definition_version=row.definition_version,
        version=row.version,
    )


def _asked(draft: Draft) -> dict[str, Any]:
    """What the caller asked; the definition may have moved on between two tries."""
    return {name: value for name, value in asdict(draft).items() if name != "definition_version"}


async def _take_turns(conn: AsyncConnection, names: Sequence[tuple[str, ...]], request_id: str) -> None:
    """On PostgreSQL, writers of one thing wait for each other; on SQLite they do anyway."""
    if conn.dialect.name != "postgresql":
        return
    for name in sorted([*map("\x1f".join, names), *([f"request\x1f{request_id}"] if request_id else [])]):
        number = int.from_bytes(hashlib.blake2b(name.encode(), digest_size=8).digest(), signed=True)
        await conn.execute(sa.select(sa.func.pg_advisory_xact_lock(number)))
