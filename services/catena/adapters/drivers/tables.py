"""The adapters' own tables."""

import sqlalchemy as sa
from alembic.operations import Operations

from catena.kit.outbox import outbox_table
from catena.kit.store import Json, Migration

METADATA = sa.MetaData()
outbox_table(METADATA)

VERSIONS = sa.Table(
    "adapter_versions",
    METADATA,
    sa.Column("tenant", sa.Text, primary_key=True),
    sa.Column("base", sa.Text, primary_key=True),
    sa.Column("name", sa.Text, primary_key=True),
    sa.Column("version", sa.Text, primary_key=True),
    sa.Column("digest", sa.Text, nullable=False),
    sa.Column("base_digest", sa.Text, nullable=False),
    sa.Column("bytes", sa.BigInteger, nullable=False),
    sa.Column("rank", sa.Integer, nullable=False),
    sa.Column("tasks", Json, nullable=False),
    sa.Column("metrics", Json, nullable=False),
    sa.Column("training_rows", sa.BigInteger, nullable=False),
    sa.Column("created_s", sa.Double, nullable=False),
    sa.Column("last_used_s", sa.Double, nullable=False, default=0.0),
    sa.Column("uses", sa.BigInteger, nullable=False, default=0),
    sa.Column("status", sa.Text, nullable=False, default="active"),
    sa.Column("reason", sa.Text, nullable=False, default=""),
    sa.Column("signer", sa.Text, nullable=False),
    sa.Column("pinned", sa.Boolean, nullable=False, default=False),
)

ALIASES = sa.Table(
    "adapter_aliases",
    METADATA,
    sa.Column("tenant", sa.Text, primary_key=True),
    sa.Column("base", sa.Text, primary_key=True),
    sa.Column("name", sa.Text, primary_key=True),
    sa.Column("alias", sa.Text, primary_key=True),
    sa.Column("version", sa.Text, nullable=False),
    sa.Column("digest", sa.Text, nullable=False),
)

GENERATION = sa.Table(
    "registry_generation",
    METADATA,
    sa.Column("id", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("generation", sa.BigInteger, nullable=False),
)


FALLBACKS = sa.Table(
    "adapter_fallbacks",
    METADATA,
    sa.Column("tenant", sa.Text, primary_key=True),
    sa.Column("base", sa.Text, primary_key=True),
    sa.Column("name", sa.Text, primary_key=True),
    sa.Column("models", Json, nullable=False),
)


def _add_fallbacks(operations: Operations) -> None:
    operations.create_table(
        "adapter_fallbacks",
        sa.Column("tenant", sa.Text, primary_key=True),
        sa.Column("base", sa.Text, primary_key=True),
        sa.Column("name", sa.Text, primary_key=True),
        sa.Column("models", Json, nullable=False),
    )


NAMES = sa.Table(
    "served_names",
    METADATA,
    sa.Column("tenant", sa.Text, primary_key=True),
    sa.Column("name", sa.Text, primary_key=True),
    sa.Column("path", sa.Text, nullable=False),
    sa.Column("created_s", sa.Double, nullable=False),
    sa.Column("owner", sa.Text, nullable=False),
    sa.Column("base", sa.Text, nullable=False),
    sa.Column("adapter", sa.Text, nullable=False),
    sa.Column("version", sa.Text, nullable=False),
)


def _add_served_names(operations: Operations) -> None:
    texts = [sa.Column(name, sa.Text, nullable=False) for name in ("path", "owner", "base", "adapter", "version")]
    operations.create_table(
        "served_names",
        sa.Column("tenant", sa.Text, primary_key=True),
        sa.Column("name", sa.Text, primary_key=True),
        sa.Column("created_s", sa.Double, nullable=False),
        *texts,
    )


FINDINGS = sa.Table(
    "adapter_findings",
    METADATA,
    sa.Column("registry", sa.Text, primary_key=True),
    sa.Column("tenant", sa.Text, primary_key=True),
    sa.Column("base", sa.Text, primary_key=True),
    sa.Column("name", sa.Text, primary_key=True),
    sa.Column("current", sa.Text, nullable=False),
    sa.Column("version", sa.Text, nullable=False),
    sa.Column("digest", sa.Text, nullable=False),
    sa.Column("gain", sa.Double, nullable=False),
    sa.Column("state", sa.Text, nullable=False),
    sa.Column("reason", sa.Text, nullable=False),
    sa.Column("at_s", sa.Double, nullable=False),
)

KNOWN_BASES = sa.Table(
    "known_bases",
    METADATA,
    sa.Column("name", sa.Text, primary_key=True),
    sa.Column("digest", sa.Text, nullable=False),
    sa.Column("at_s", sa.Double, nullable=False),
)


def _add_findings_and_known_bases(operations: Operations) -> None:
    keys = [sa.Column(name, sa.Text, primary_key=True) for name in ("registry", "tenant", "base", "name")]
    told = [sa.Column(name, sa.Text, nullable=False) for name in ("current", "version", "digest", "state", "reason")]
    figures = [sa.Column(name, sa.Double, nullable=False) for name in ("gain", "at_s")]
    operations.create_table("adapter_findings", *keys, *told, *figures)
    operations.create_table(
        "known_bases",
        sa.Column("name", sa.Text, primary_key=True),
        sa.Column("digest", sa.Text, nullable=False),
        sa.Column("at_s", sa.Double, nullable=False),
    )


MIGRATIONS: tuple[Migration, ...] = (_add_fallbacks, _add_served_names, _add_findings_and_known_bases)
