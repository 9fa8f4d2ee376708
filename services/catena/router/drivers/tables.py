"""The router's tables. `revision` counts every change of the room's state, so that a replica can ask what is new."""

import sqlalchemy as sa
from alembic.operations import Operations

from catena.kit.outbox import inbox_table, outbox_table
from catena.kit.store import Migration

metadata = sa.MetaData()

revisions = sa.Table(
    "revisions",
    metadata,
    sa.Column("name", sa.Text, primary_key=True),
    sa.Column("value", sa.BigInteger, nullable=False),
)

observations = sa.Table(
    "observations",
    metadata,
    sa.Column("tenant", sa.Text, primary_key=True),
    sa.Column("execution_id", sa.Text, primary_key=True),
    sa.Column("revision", sa.BigInteger, nullable=False),
    sa.Column("born", sa.BigInteger, nullable=False, comment="revision at which the execution arrived; 0: not yet"),
    sa.Column("judged_at", sa.BigInteger, nullable=False, comment="revision at which it was scored; 0: never"),
    sa.Column("body", sa.Text, comment="the observation as JSON; NULL while only its score has arrived"),
    sa.Column("score", sa.Double),
    sa.Column("source", sa.Text, nullable=False),
    sa.Column("task", sa.Text, nullable=False, comment="domain named with the score; empty: none"),
    sa.Index("observations_by_revision", "revision"),
    sa.Index("observations_by_birth", "tenant", "born"),
)

totals = sa.Table(
    "totals",
    metadata,
    sa.Column("tenant", sa.Text, primary_key=True),
    sa.Column("configuration_id", sa.Text, primary_key=True),
    sa.Column("domain", sa.Text, primary_key=True),
    sa.Column("plan", sa.Text, nullable=False, comment="in words"),
    sa.Column("body", sa.Text, nullable=False, comment="the plan as JSON, for outcomes told by configuration alone"),
    sa.Column("executions", sa.BigInteger, nullable=False),
    sa.Column("judged", sa.BigInteger, nullable=False),
    sa.Column("successes", sa.BigInteger, nullable=False),
    sa.Column("quality", sa.Double, nullable=False),
    sa.Column("cost_usd", sa.Double, nullable=False),
    sa.Column("latency_ms", sa.Double, nullable=False),
)

domains = sa.Table(
    "domains",
    metadata,
    sa.Column("tenant", sa.Text, primary_key=True),
    sa.Column("name", sa.Text, primary_key=True),
    sa.Column("revision", sa.BigInteger, nullable=False),
    sa.Column("body", sa.Text, comment="as JSON; NULL: deleted"),
)

experiments = sa.Table(
    "experiments",
    metadata,
    sa.Column("id", sa.Text, primary_key=True),
    sa.Column("tenant", sa.Text, nullable=False),
    sa.Column("domain", sa.Text, nullable=False),
    sa.Column("state", sa.Text, nullable=False),
    sa.Column("request_id", sa.Text, comment="NULL: none was given"),
    sa.Column("revision", sa.BigInteger, nullable=False),
    sa.Column("body", sa.Text, nullable=False),
    sa.UniqueConstraint("tenant", "request_id"),
)

outcomes = sa.Table(
    "experiment_outcomes",
    metadata,
    sa.Column("experiment_id", sa.Text, primary_key=True),
    sa.Column("execution_id", sa.Text, primary_key=True),
)

switches = sa.Table(
    "switches",
    metadata,
    sa.Column("tenant", sa.Text, primary_key=True),
    sa.Column("name", sa.Text, primary_key=True),
    sa.Column("revision", sa.BigInteger, nullable=False),
    sa.Column("value", sa.Double, comment="NULL: not set (any more)"),
)

steps = sa.Table(
    "tuning_steps",
    metadata,
    sa.Column("tenant", sa.Text, primary_key=True),
    sa.Column("number", sa.BigInteger, primary_key=True, autoincrement=False, comment="counts a tenant's from 1"),
    sa.Column("revision", sa.BigInteger, nullable=False),
    sa.Column("body", sa.Text, nullable=False, comment="as JSON"),
)

outbox_table(metadata)
inbox_table(metadata)


def _add_steps(operations: Operations) -> None:
    """Settings are in force by the steps that moved them; one tuned before there were any is tuned anew."""
    steps.create(operations.get_bind())
    operations.execute(switches.delete().where(switches.c.name == "cascade.threshold"))


MIGRATIONS: tuple[Migration, ...] = (_add_steps,)
