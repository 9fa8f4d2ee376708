"""Memory's tables. Chunks and vectors are kept beside the documents, so that an index is rebuilt without embedding."""

import sqlalchemy as sa

from catena.kit.outbox import outbox_table
from catena.kit.store import Json, Migration

metadata = sa.MetaData()

collections = sa.Table(
    "collections",
    metadata,
    sa.Column("tenant", sa.Text, primary_key=True),
    sa.Column("name", sa.Text, primary_key=True),
    sa.Column("chunks", sa.BigInteger, nullable=False, default=0),
    sa.Column("code_chunks", sa.BigInteger, nullable=False, default=0),
    sa.Column("terms", sa.BigInteger, nullable=False, default=0),
    sa.Column("average_terms", sa.Double, nullable=False, default=0.0, comment="the mean that BM25 weights use"),
)

documents = sa.Table(
    "documents",
    metadata,
    sa.Column("tenant", sa.Text, primary_key=True),
    sa.Column("collection", sa.Text, primary_key=True),
    sa.Column("id", sa.Text, primary_key=True),
    sa.Column("text", sa.Text, nullable=False),
    sa.Column("title", sa.Text, nullable=False),
    sa.Column("path", sa.Text, nullable=False),
    sa.Column("type", sa.Text, nullable=False),
    sa.Column("metadata", Json, nullable=False),
    sa.Column("hash", sa.Text, nullable=False, comment="SHA-256 over all of the above but the keys"),
    sa.Column("updated_s", sa.Double, nullable=False),
)

chunks = sa.Table(
    "chunks",
    metadata,
    sa.Column("id", sa.Text, primary_key=True),
    sa.Column("tenant", sa.Text, nullable=False),
    sa.Column("collection", sa.Text, nullable=False),
    sa.Column("document_id", sa.Text, nullable=False),
    sa.Column("type", sa.Text, nullable=False),
    sa.Column("name", sa.Text, nullable=False),
    sa.Column("docstring", sa.Text, nullable=False),
    sa.Column("text", sa.Text, nullable=False),
    sa.Column("first_line", sa.Integer, nullable=False),
    sa.Column("last_line", sa.Integer, nullable=False),
    sa.Column("content_hash", sa.Text, nullable=False),
    sa.Column("embedding_text", sa.Text, nullable=False),
    sa.Column("terms", sa.Integer, nullable=False),
    sa.Column("vector", sa.LargeBinary, nullable=False),
    sa.Column("model", sa.Text, nullable=False, comment="digest of the embedding model"),
    sa.Index("chunks_of_document", "tenant", "collection", "document_id"),
    sa.Index("chunks_by_content", "tenant", "collection", "content_hash"),
)

sops = sa.Table(
    "sops",
    metadata,
    sa.Column("tenant", sa.Text, primary_key=True),
    sa.Column("name", sa.Text, primary_key=True),
    sa.Column("body", Json, nullable=False),
)

outbox_table(metadata)

MIGRATIONS: tuple[Migration, ...] = ()
