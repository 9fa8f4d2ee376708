"""The gateway's own SQL: keys, spending, promised webhooks, and what events did already."""

import sqlalchemy as sa
from alembic.operations import Operations

from catena.kit.outbox import inbox_table, outbox_table
from catena.kit.store import Migration

METADATA = sa.MetaData()
outbox_table(METADATA)
INBOX = inbox_table(METADATA)
RUNS = "gateway-runs"
"""Who hears of background runs that ended, to charge for them."""
KEYS = sa.Table(
    "api_keys",
    METADATA,
    sa.Column("id", sa.String, primary_key=True),
    sa.Column("digest", sa.String, nullable=False, unique=True),
    sa.Column("tenant", sa.String, nullable=False),
    sa.Column("role", sa.String, nullable=False),
    sa.Column("name", sa.String, nullable=False),
    sa.Column("budget_usd", sa.Float, nullable=False),
    sa.Column("requests_per_minute", sa.Integer, nullable=False),
    sa.Column("tokens_per_minute", sa.Integer, nullable=False),
    sa.Column("active", sa.Boolean, nullable=False),
    sa.Column("created_s", sa.Float, nullable=False),
)
SPENDING = sa.Table(
    "spending",
    METADATA,
    sa.Column("key_id", sa.String, primary_key=True),
    sa.Column("spent_usd", sa.Float, nullable=False),
)


WEBHOOKS = sa.Table(
    "webhooks",
    METADATA,
    sa.Column("run_id", sa.String, primary_key=True),
    sa.Column("tenant", sa.String, nullable=False),
    sa.Column("url", sa.String, nullable=False),
    sa.Column("secret", sa.String, nullable=False),
    sa.Column("state", sa.String, nullable=False),
    sa.Column("outcome", sa.String, nullable=False),
    sa.Column("execution_id", sa.String, nullable=False),
    sa.Column("finished_s", sa.Float, nullable=False),
    sa.Column("attempts", sa.Integer, nullable=False),
    sa.Column("due_s", sa.Float, nullable=False),
    sa.Index("webhooks_due", "state", "due_s"),
)


def _add_inbox(operations: Operations) -> None:
    INBOX.create(operations.get_bind())


def _add_webhooks(operations: Operations) -> None:
    WEBHOOKS.create(operations.get_bind())


MIGRATIONS: tuple[Migration, ...] = (_add_inbox, _add_webhooks)
