"""Features' tables. `feature_values` is only ever appended to."""

import sqlalchemy as sa

from catena.kit.outbox import outbox_table
from catena.kit.store import Json, Migration

metadata = sa.MetaData()

values = sa.Table(
    "feature_values",
    metadata,
    sa.Column("tenant", sa.Text, primary_key=True),
    sa.Column("entity_type", sa.Text, primary_key=True),
    sa.Column("entity_id", sa.Text, primary_key=True),
    sa.Column("feature", sa.Text, primary_key=True),
    sa.Column("version", sa.BigInteger, primary_key=True, autoincrement=False),
    sa.Column("value", Json, comment="NULL is JSON's null"),
    sa.Column("event_s", sa.Double, nullable=False),
    sa.Column("created_s", sa.Double, nullable=False),
    sa.Column("definition_version", sa.Integer, nullable=False),
    sa.Index(
        "feature_values_by_time", "tenant", "entity_type", "entity_id", "feature", "event_s", "created_s", "version"
    ),
)

requests = sa.Table(
    "requests",
    metadata,
    sa.Column("tenant", sa.Text, primary_key=True),
    sa.Column("id", sa.Text, primary_key=True),
    sa.Column("digest", sa.Text, nullable=False, comment="SHA-256 of what was asked"),
    sa.Column("rows", Json, nullable=False, comment="what was answered"),
    sa.Column("created_s", sa.Double, nullable=False),
    sa.Index("requests_by_time", "created_s"),
)

definitions = sa.Table(
    "definitions",
    metadata,
    sa.Column("tenant", sa.Text, primary_key=True),
    sa.Column("entity_type", sa.Text, primary_key=True),
    sa.Column("name", sa.Text, primary_key=True),
    sa.Column("version", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("body", Json, nullable=False),
)

groups = sa.Table(
    "feature_groups",
    metadata,
    sa.Column("tenant", sa.Text, primary_key=True),
    sa.Column("name", sa.Text, primary_key=True),
    sa.Column("version", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("body", Json, nullable=False),
)

outbox_table(metadata)

MIGRATIONS: tuple[Migration, ...] = ()
