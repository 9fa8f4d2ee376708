"""The SQL library: documents, their chunks and vectors, procedures. The source of truth; indexes follow it."""

import hashlib
from collections.abc import AsyncIterator, Iterable, Sequence
from dataclasses import asdict
from typing import Any

import msgspec
import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from catena.api.events.v1.events_pb2 import DocumentIndexed
from catena.kit.caller import SHARED
from catena.kit.clock import World
from catena.kit.outbox import Outbox
from catena.kit.store import Store, upsert
from catena.memory.core.ports import Encoding, Entry, IndexPoint, Profile
from catena.memory.core.ranking import average_in_use, labels
from catena.memory.core.types import Chunk, ChunkType, Document, Found, Piece, Scope, Sop
from catena.memory.drivers import tables as t

PAGE = 250
EVENT = "memory.document.indexed"


class SqlLibrary:
    """`Library`, and the index's points as they ought to be, over one database."""

    def __init__(self, store: Store, outbox: Outbox, world: World, *, model: str) -> None:
        """`model` is the digest of the embedding model: vectors of another one are not reused."""
        self._store = store
        self._outbox = outbox
        self._world = world
        self._model = model

    async def put(self, scope: Scope, entries: Sequence[Entry]) -> set[str]:
        """Replace the documents of the same ids, tell of it, and return the chunks that the index has to follow."""
        async with self._store.begin() as conn:
            touched = set[str]()
            await self._open_scope(conn, scope)
            for entry in entries:
                await self._write_document(conn, scope, entry.document)
                touched |= await self._replace_chunks(conn, scope, entry.document.id, entry.chunks)
                await self._tell(conn, scope, entry.document.id, len(entry.chunks))
            return touched | await self._settle_average(conn, scope)

    async def renew(self, scope: Scope, entries: Sequence[Entry]) -> set[str]:
        """Replace the chunks of those documents that are still as given."""
        async with self._store.begin() as conn:
            touched = set[str]()
            await self._open_scope(conn, scope)
            for entry in entries:
                key = _document_key(scope, entry.document.id)
                stored = await conn.scalar(sa.select(t.documents.c.hash).where(*key))
                if stored == document_hash(entry.document):
                    touched |= await self._replace_chunks(conn, scope, entry.document.id, entry.chunks)
            return touched | await self._settle_average(conn, scope)

    async def delete(self, scope: Scope, document_ids: Sequence[str]) -> tuple[int, set[str]]:
        """Remove documents; how many there were, and the chunks that the index has to follow."""
        deleted, touched = 0, set[str]()
        async with self._store.begin() as conn:
            await conn.execute(sa.select(t.collections.c.name).where(*_collection_key(scope)).with_for_update())
            for document_id in dict.fromkeys(document_ids):
                gone = await conn.execute(t.documents.delete().where(*_document_key(scope, document_id)))
                if gone.rowcount:
                    deleted += 1
                    touched |= await self._replace_chunks(conn, scope, document_id, ())
                    await self._tell(conn, scope, document_id, 0)
            return deleted, touched | await self._settle_average(conn, scope)

    async def known(self, scope: Scope, content_hashes: Sequence[str]) -> dict[str, Encoding]:
        """Encodings by the model in use that the scope holds already."""
        c = t.chunks.c
        found: dict[str, Encoding] = {}
        async with self._store.connect() as conn:
            for page in pages(content_hashes):
                wanted = sa.select(c.content_hash, c.vector, c.terms).where(
                    *_in_scope(t.chunks, scope), c.content_hash.in_(page), c.model == self._model
                )
                for row in await conn.execute(wanted):
                    found[row.content_hash] = Encoding(vector=row.vector, terms=row.terms)
        return found

    async def found(self, scope: Scope, chunk_ids: Sequence[str]) -> dict[str, Found]:
        """Chunks of this scope by id, with what they take from their documents."""
        document = t.documents.c
        found: dict[str, Found] = {}
        async with self._store.connect() as conn:
            for page in pages(chunk_ids):
                wanted = sa.select(t.chunks, document.title, document.path, document.metadata).select_from(_joined())
                for row in await conn.execute(wanted.where(*_in_scope(t.chunks, scope), t.chunks.c.id.in_(page))):
                    found[row.id] = Found(
                        id=row.id,
                        document_id=row.document_id,
                        piece=_piece(row),
                        title=row.title,
                        path=row.path,
                        metadata=row.metadata,
                    )
        return found

    async def profile(self, scope: Scope) -> Profile | None:
        """Figures of the collection; None when it never held anything."""
        c = t.collections.c
        async with self._store.connect() as conn:
            row = (await conn.execute(sa.select(c.chunks, c.code_chunks).where(*_collection_key(scope)))).first()
        return Profile(chunks=row.chunks, code_chunks=row.code_chunks) if row else None

    async def collections(self, tenant: str) -> list[str]:
        """Names of the tenant's collections."""
        c = t.collections.c
        async with self._store.connect() as conn:
            return list((await conn.scalars(sa.select(c.name).where(c.tenant == tenant).order_by(c.name))).all())

    async def documents(self, scope: Scope) -> AsyncIterator[list[Document]]:
        """All documents of a collection, by id, a few at a time."""
        c = t.documents.c
        last = ""
        while True:
            page = sa.select(t.documents).where(*_in_scope(t.documents, scope), c.id > last).order_by(c.id).limit(50)
            async with self._store.connect() as conn:
                rows = (await conn.execute(page)).all()
            if not rows:
                return
            last = rows[-1].id
            yield [
                Document(id=row.id, text=row.text, title=row.title, path=row.path, type=row.type, metadata=row.metadata)
                for row in rows
            ]

    async def put_sop(self, tenant: str, sop: Sop) -> None:
        """Replace the procedure of the same name."""
        async with self._store.begin() as conn:
            row = upsert(t.sops, conn).values(tenant=tenant, name=sop.name, body=asdict(sop))
            body = row.excluded.body
            await conn.execute(row.on_conflict_do_update(index_elements=["tenant", "name"], set_={"body": body}))

    async def sops(self, tenant: str) -> list[Sop]:
        """The tenant's procedures and the shared ones that it does not replace, by name."""
        c = t.sops.c
        async with self._store.connect() as conn:
            rows = (await conn.execute(sa.select(t.sops).where(c.tenant.in_([tenant, SHARED])))).all()
        rows = sorted(rows, key=lambda row: (row.name, row.tenant == tenant))
        return list({row.name: msgspec.convert(row.body, Sop) for row in rows}.values())

    async def points(self, chunk_ids: Sequence[str]) -> dict[str, IndexPoint]:
        """What the index should hold of these chunks, at most 250; those that are gone are left out."""
        async with self._store.connect() as conn:
            rows = await conn.execute(_points_query(t.chunks).where(t.chunks.c.id.in_(chunk_ids)))
            return {row.id: _point(row) for row in rows}

    async def stamps(self) -> dict[str, str]:
        """The stamp that each chunk's index entry should carry, of every tenant."""
        c = t.chunks.c
        async with self._store.connect() as conn:
            rows = await conn.execute(_points_query(c.id, c.content_hash, c.model))
            return {row.id: _stamp(row) for row in rows}

    async def outdated(self) -> list[Scope]:
        """Collections that hold vectors of another embedding model."""
        c = t.chunks.c
        stale = sa.select(c.tenant, c.collection).where(c.model != self._model).distinct()
        async with self._store.connect() as conn:
            return [Scope(tenant=row.tenant, collection=row.collection) for row in await conn.execute(stale)]

    async def _open_scope(self, conn: AsyncConnection, scope: Scope) -> None:
        """Make the collection if it is new, and let writers of it take turns."""
        row = upsert(t.collections, conn).values(tenant=scope.tenant, name=scope.collection)
        row = row.values(chunks=0, code_chunks=0, terms=0, average_terms=0.0)
        await conn.execute(row.on_conflict_do_nothing())
        await conn.execute(sa.select(t.collections.c.name).where(*_collection_key(scope)).with_for_update())

    async def _write_document(self, conn: AsyncConnection, scope: Scope, document: Document) -> None:
        values = {
            "text": document.text,
            "title": document.title,
            "path": document.path,
            "type": document.type,
            "metadata": dict(document.metadata),
            "hash": document_hash(document),
            "updated_s": self._world.clock.now(),
        }
        row = upsert(t.documents, conn).values(
            tenant=scope.tenant, collection=scope.collection, id=document.id, **values
        )
        await conn.execute(row.on_conflict_do_update(index_elements=["tenant", "collection", "id"], set_=values))

    async def _replace_chunks(
        self, conn: AsyncConnection, scope: Scope, document_id: str, parts: Sequence[tuple[Chunk, Encoding]]
    ) -> set[str]:
        """Swap a document's chunks and move the collection's figures along; ids before and after."""
        c = t.chunks.c
        mine = (*_in_scope(t.chunks, scope), c.document_id == document_id)
        before = (await conn.execute(sa.select(c.id, c.type, c.terms).where(*mine))).all()
        await conn.execute(t.chunks.delete().where(*mine))
        if parts:
            await conn.execute(t.chunks.insert(), [self._row(scope, part, encoding) for part, encoding in parts])
        code = sum(part.piece.type.is_code for part, _ in parts) - sum(ChunkType(row.type).is_code for row in before)
        terms = sum(encoding.terms for _, encoding in parts) - sum(row.terms for row in before)
        figures = t.collections.c
        moved = (
            t.collections.update()
            .where(*_collection_key(scope))
            .values(
                chunks=figures.chunks + len(parts) - len(before),
                code_chunks=figures.code_chunks + code,
                terms=figures.terms + terms,
            )
        )
        await conn.execute(moved)
        return {row.id for row in before} | {part.id for part, _ in parts}

    async def _settle_average(self, conn: AsyncConnection, scope: Scope) -> set[str]:
        """Move the mean that BM25 uses when it is off by too much; then every chunk of the scope has to follow."""
        c = t.collections.c
        row = (await conn.execute(sa.select(t.collections).where(*_collection_key(scope)))).first()
        if row is None or row.chunks == 0:
            return set()
        average = average_in_use(row.average_terms, row.terms / row.chunks)
        if average == row.average_terms:
            return set()
        await conn.execute(t.collections.update().where(*_collection_key(scope)).values({c.average_terms: average}))
        return set((await conn.scalars(sa.select(t.chunks.c.id).where(*_in_scope(t.chunks, scope)))).all())

    def _row(self, scope: Scope, part: Chunk, encoding: Encoding) -> dict[str, Any]:
        piece = part.piece
        return {
            "id": part.id,
            "tenant": scope.tenant,
            "collection": scope.collection,
            "document_id": part.document_id,
            "type": piece.type.value,
            "name": piece.name,
            "docstring": piece.docstring,
            "text": piece.text,
            "first_line": piece.first_line,
            "last_line": piece.last_line,
            "content_hash": part.content_hash,
            "embedding_text": part.embedding_text,
            "terms": encoding.terms,
            "vector": encoding.vector,
            "model": self._model,
        }

    async def _tell(self, conn: AsyncConnection, scope: Scope, document_id: str, chunks: int) -> None:
        message = DocumentIndexed(collection=scope.collection, document_id=document_id, chunks=chunks)
        await self._outbox.put(conn, type=EVENT, tenant=scope.tenant, message=message, subject=document_id)


def document_hash(document: Document) -> str:
    """SHA-256 over all that a document says, as hex."""
    parts = [document.text, document.title, document.path, document.type, labels(document.metadata)]
    return hashlib.sha256(msgspec.json.encode(parts)).hexdigest()


def pages(items: Sequence[str]) -> Iterable[list[str]]:
    """Slices small enough for one SQL statement."""
    return (list(items[start : start + PAGE]) for start in range(0, len(items), PAGE))


def _in_scope(table: sa.Table, scope: Scope) -> tuple[sa.ColumnElement[bool], sa.ColumnElement[bool]]:
    return table.c.tenant == scope.tenant, table.c.collection == scope.collection


def _document_key(scope: Scope, document_id: str) -> tuple[sa.ColumnElement[bool], ...]:
    return *_in_scope(t.documents, scope), t.documents.c.id == document_id


def _collection_key(scope: Scope) -> tuple[sa.ColumnElement[bool], sa.ColumnElement[bool]]:
    return t.collections.c.tenant == scope.tenant, t.collections.c.name == scope.collection


def _joined() -> sa.Join:
    c, d = t.chunks.c, t.documents.c
    same = sa.and_(c.tenant == d.tenant, c.collection == d.collection, c.document_id == d.id)
    return t.chunks.join(t.documents, same)


def _points_query(*columns: Any) -> sa.Select[Any]:
    c, k = t.chunks.c, t.collections.c
    same = sa.and_(c.tenant == k.tenant, c.collection == k.name)
    return sa.select(*columns, t.documents.c.metadata, k.average_terms).select_from(_joined().join(t.collections, same))


def _point(row: Any) -> IndexPoint:
    return IndexPoint(
        id=row.id,
        scope=Scope(tenant=row.tenant, collection=row.collection).key,
        text=row.embedding_text,
        vector=row.vector,
        labels=labels(row.metadata),
        average_terms=row.average_terms,
        stamp=_stamp(row),
    )


def _stamp(row: Any) -> str:
    parts = [row.content_hash, row.model, repr(row.average_terms), *labels(row.metadata)]
    return hashlib.blake2b("\x1f".join(parts).encode(), digest_size=16).hexdigest()


def _piece(row: Any) -> Piece:
    return Piece(
        type=ChunkType(row.type),
        text=row.text,
        first_line=row.first_line,
        last_line=row.last_line,
        name=row.name,
        docstring=row.docstring,
    )
