"""The digests of bases as they were first seen, in SQL: what tells later that somebody altered one."""

import sqlalchemy as sa

from catena.adapters.drivers.tables import KNOWN_BASES
from catena.kit.clock import Clock
from catena.kit.store import Store, upsert

K = KNOWN_BASES.c


class SqlKnownBases:
    """Implements the port `KnownBases`."""

    def __init__(self, store: Store, clock: Clock) -> None:
        """Keep them in `store`."""
        self._store = store
        self._clock = clock

    async def settle(self, name: str, digest: str) -> str:
        """The digest that counts: of two that are seen first at once, one."""
        async with self._store.begin() as conn:
            row = {"name": name, "digest": digest, "at_s": self._clock.now()}
            await conn.execute(upsert(KNOWN_BASES, conn).values(row).on_conflict_do_nothing())
            return str(await conn.scalar(sa.select(K.digest).where(K.name == name)))

    async def accept(self, name: str, digest: str) -> None:
        """Let this one count from now on."""
        async with self._store.begin() as conn:
            put = upsert(KNOWN_BASES, conn).values(name=name, digest=digest, at_s=self._clock.now())
            kept = {"digest": put.excluded.digest, "at_s": put.excluded.at_s}
            await conn.execute(put.on_conflict_do_update(index_elements=["name"], set_=kept))
