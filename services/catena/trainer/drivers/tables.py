"""The trainer's tables. A job's rows lie apart from it, since lists and updates never need them."""

import sqlalchemy as sa

from catena.kit.outbox import outbox_table
from catena.kit.store import Json, Migration

metadata = sa.MetaData()

jobs = sa.Table(
    "jobs",
    metadata,
    sa.Column("id", sa.Text, primary_key=True),
    sa.Column("tenant", sa.Text, nullable=False),
    sa.Column("request_id", sa.Text, nullable=True, comment="NULL: the caller gave none"),
    sa.Column("base", sa.Text, nullable=False),
    sa.Column("spec", Json, nullable=False),
    sa.Column("state", sa.Text, nullable=False),
    sa.Column("progress", Json, nullable=True),
    sa.Column("metrics", Json, nullable=False),
    sa.Column("version", sa.Text, nullable=False),
    sa.Column("model", sa.Text, nullable=False),
    sa.Column("digest", sa.Text, nullable=False),
    sa.Column("reason", sa.Text, nullable=False),
    sa.Column("data_digest", sa.Text, nullable=False),
    sa.Column("created_s", sa.Double, nullable=False),
    sa.Column("finished_s", sa.Double, nullable=False),
    sa.Column("attempts", sa.Integer, nullable=False),
    sa.Column("stalled", sa.Integer, nullable=False),
    sa.Column("checkpoint", sa.Integer, nullable=False),
    sa.Column("mark", sa.Integer, nullable=False),
    sa.Column("cancelling", sa.Boolean, nullable=False),
    sa.Column("revision", sa.Integer, nullable=False),
    sa.Column("holder", sa.Text, nullable=False, comment="empty: nobody"),
    sa.Column("held_until_s", sa.Double, nullable=False),
    sa.UniqueConstraint("tenant", "request_id"),
    sa.Index("jobs_by_state", "state", "created_s"),
    sa.Index("jobs_of_tenant", "tenant", "created_s"),
)

materials = sa.Table(
    "materials",
    metadata,
    sa.Column("job_id", sa.Text, sa.ForeignKey("jobs.id"), primary_key=True),
    sa.Column("body", sa.LargeBinary, nullable=False, comment="Material as JSON"),
)

outbox_table(metadata)

MIGRATIONS: tuple[Migration, ...] = ()
