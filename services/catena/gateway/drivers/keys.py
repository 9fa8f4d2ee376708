"""API keys and spending in the gateway's own SQL; read at the start, written behind the requests."""

from collections.abc import Mapping
from pathlib import Path

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from catena.api.events.v1 import events_pb2
from catena.gateway.core.keys import Key, digest_of, new_secret
from catena.gateway.drivers.tables import KEYS, RUNS, SPENDING
from catena.kit.caller import DEVELOPER
from catena.kit.chassis import make_once
from catena.kit.clock import World
from catena.kit.outbox import Outbox, once
from catena.kit.store import Store, upsert


class KeyStore:
    """Keeps keys and what they spent."""

    def __init__(self, store: Store, outbox: Outbox) -> None:
        """Use the room's database and outbox."""
        self._store = store
        self._outbox = outbox

    async def load(self) -> tuple[list[Key], dict[str, float]]:
        """Every key, and USD spent by key."""
        async with self._store.connect() as conn:
            keys = [Key(**row) for row in (await conn.execute(sa.select(KEYS))).mappings()]
            rows = (await conn.execute(sa.select(SPENDING))).all()
        return keys, {row.key_id: row.spent_usd for row in rows}

    async def save(self, key: Key) -> None:
        """Commit a key, with the event that tells other replicas."""
        values = {column.name: getattr(key, column.name) for column in KEYS.columns}
        async with self._store.begin() as conn:
            put = upsert(KEYS, conn).values(**values).on_conflict_do_update(index_elements=["id"], set_=values)
            await conn.execute(put)
            changed = events_pb2.KeyChanged(key_id=key.id, active=key.active)
            await self._outbox.put(conn, type="gateway.key.changed", tenant=key.tenant, message=changed, subject=key.id)

    async def spend(self, amounts: Mapping[str, float]) -> None:
        """Add what keys spent."""
        async with self._store.begin() as conn:
            for key_id, amount in amounts.items():
                await _add(conn, key_id, amount)

    async def spend_once(self, event_id: str, key_id: str, amount: float) -> bool:
        """Add what an event says that a key spent; False, and nothing added, where the event was met before."""
        async with self._store.begin() as conn:
            first = await once(conn, event_id, RUNS)
            if first:
                await _add(conn, key_id, amount)
        return first


async def _add(conn: AsyncConnection, key_id: str, amount: float) -> None:
    added = upsert(SPENDING, conn).values(key_id=key_id, spent_usd=amount)
    total = {"spent_usd": SPENDING.c.spent_usd + amount}
    await conn.execute(added.on_conflict_do_update(index_elements=["key_id"], set_=total))


def development_secret(folder: Path) -> str:
    """The secret of the development key, made once and kept in `folder/development.key`, its owner's alone."""
    path = folder / "development.key"
    if not path.exists():
        make_once(path, new_secret())
    return path.read_text().strip()


async def first_key(keys: KeyStore, known: list[Key], secret: str, *, name: str, world: World) -> Key | None:
    """Keep `secret` as an admin's key, unless it is known already, revoked or not; the key when it was made now.

    Its id comes from the secret, so that replicas that start together make one key.
    """
    digest = digest_of(secret)
    if any(key.digest == digest for key in known):
        return None
    made = Key(
        id=f"{name}-{digest[:12]}",
        digest=digest,
        tenant=DEVELOPER,
        role="admin",
        name=name,
        created_s=world.clock.now(),
    )
    await keys.save(made)
    return made
