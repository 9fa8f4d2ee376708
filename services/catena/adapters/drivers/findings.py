"""What remote registries were found to have, in SQL; each news of it is an event of the same transaction."""

from collections.abc import Sequence
from dataclasses import asdict

import sqlalchemy as sa

from catena.adapters.core.refs import full_name
from catena.adapters.core.updates import Finding
from catena.adapters.drivers.tables import FINDINGS
from catena.api.events.v1 import events_pb2
from catena.kit.caller import SHARED
from catena.kit.outbox import Outbox
from catena.kit.store import Store, upsert

F = FINDINGS.c
KEY = ("registry", "tenant", "base", "name")


class SqlFindings:
    """Implements the port `Findings`."""

    def __init__(self, store: Store, outbox: Outbox) -> None:
        """Keep them in `store`."""
        self._store = store
        self._outbox = outbox

    async def keep(self, finding: Finding) -> None:
        """Keep what is known of an adapter."""
        row = asdict(finding)
        here = [F[name] == row[name] for name in KEY]
        async with self._store.begin() as conn:
            if finding.state == "current":
                await conn.execute(FINDINGS.delete().where(*here))
                return
            put = upsert(FINDINGS, conn).values(row)
            # Of two replicas that find the same at once, one changes the row and tells of it.
            put = put.on_conflict_do_update(
                index_elements=list(KEY),
                set_={name: value for name, value in row.items() if name not in KEY},
                where=sa.or_(F.digest != finding.digest, F.state != finding.state),
            )
            if (await conn.execute(put.returning(F.name))).first() is None:
                return
            told = events_pb2.UpdateFound(
                registry=finding.registry,
                model=full_name(finding.base, finding.name, finding.current),
                version=finding.version,
                digest=finding.digest,
                gain=finding.gain,
                state=finding.state,
                reason=finding.reason,
            )
            await self._outbox.put(
                conn, type="adapters.update.found", tenant=finding.tenant, message=told, subject=told.model
            )

    async def seen(self, tenant: str) -> Sequence[Finding]:
        """What is kept for a tenant."""
        query = sa.select(FINDINGS).where(F.tenant.in_({tenant, SHARED})).order_by(*(F[name] for name in KEY))
        async with self._store.connect() as conn:
            return [Finding(**row) for row in (await conn.execute(query)).mappings()]
