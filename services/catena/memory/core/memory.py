"""Memory itself: puts documents where they are safe, then where they can be found; matches procedures."""

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from catena.kit.errors import Invalid, Missing
from catena.memory.core.chunking import chunk
from catena.memory.core.ports import Embed, Encoding, Entry, Follow, Index, IndexQuery, Library
from catena.memory.core.ranking import (
    LEAST_RECALL,
    RECALL_FACTOR,
    choose_engine,
    choose_fusion,
    choose_results,
    label_filter,
    named_first,
)
from catena.memory.core.sops import check_sop, match
from catena.memory.core.types import Chunk, Document, Engine, Hit, Json, Scope, Sop, SopMatch

DEFAULT_COLLECTION = "default"


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """The knobs of `MemoryConfig` that decisions need."""

    candidates: int
    text_fusion: str
    code_fusion: str
    chunk_characters: int
    max_document_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Stored:
    """What a put did: document ids in the order given, and chunks embedded or found unchanged."""

    ids: list[str]
    embedded: int
    unchanged: int


class Memory:
    """What handlers call. Whatever a method returns is committed, and searchable too."""

    def __init__(self, *, library: Library, index: Index, follow: Follow, embed: Embed, settings: Settings) -> None:
        """Work on these parts."""
        self._library = library
        self._index = index
        self._follow = follow
        self._embed = embed
        self._settings = settings

    async def put_documents(self, scope: Scope, documents: Sequence[Document]) -> Stored:
        """Chunk, embed what is new, commit, index. Each replaces the document of its id; the last of equal ids wins.

        Raises Invalid for a document without text or above the size limit, Unavailable when the index stays away: then
        the documents are committed and will be found once it is back.
        """
        for document in documents:
            self._check(document)
        latest = {document.id: document for document in documents}
        entries, embedded, chunks = await self._encode(scope, list(latest.values()))
        await self._follow(await self._library.put(scope, entries))
        return Stored(ids=[document.id for document in documents], embedded=embedded, unchanged=chunks - embedded)

    async def delete_documents(self, scope: Scope, document_ids: Sequence[str]) -> int:
        """Remove documents; how many there were. Unknown ids are no error."""
        deleted, touched = await self._library.delete(scope, document_ids)
        await self._follow(touched)
        return deleted

    async def search(
        self, scope: Scope, query: str, *, n_results: int, engine: str, fusion: str, wanted: Mapping[str, Json]
    ) -> list[Hit]:
        """The chunks nearest to `query`, best first; those whose documents carry all of `wanted`.

        Raises Invalid for an empty query, an unknown engine or fusion, Missing for a collection that never was.
        """
        if not query.strip():
            raise Invalid("the query is empty; say what to look for", code="empty_query")
        limit, legs = choose_results(n_results), choose_engine(engine)
        profile = await self._library.profile(scope)
        if profile is None and scope.collection != DEFAULT_COLLECTION:
            known = ", ".join(await self._library.collections(scope.tenant)) or "none"
            raise Missing(f"no collection {scope.collection!r}; there are: {known}", code="unknown_collection")
        code_share = profile.code_share if profile else 0.0
        settings = self._settings
        fused = choose_fusion(fusion, code_share, text=settings.text_fusion, code=settings.code_fusion)
        if profile is None or profile.chunks == 0:
            return []
        vector = b"" if legs is Engine.BM25 else (await self._embed([query]))[0].tobytes()
        asked = IndexQuery(
            scope=scope.key,
            engine=legs,
            text=query,
            vector=vector,
            fusion=fused,
            labels=label_filter(wanted),
            candidates=max(RECALL_FACTOR * limit, settings.candidates),
            limit=max(RECALL_FACTOR * limit, LEAST_RECALL),
        )
        scores = await self._index.search(asked)
        found = await self._library.found(scope, [chunk_id for chunk_id, _ in scores])
        hits = [Hit(found=found[chunk_id], score=score) for chunk_id, score in scores if chunk_id in found]
        return named_first(query, hits)[:limit]

    async def rebuild(self, scope: Scope) -> int:
        """Chunk every document of the collection anew and index it; how many chunks."""
        total = 0
        async for documents in self._library.documents(scope):
            entries, _, chunks = await self._encode(scope, documents)
            await self._follow(await self._library.renew(scope, entries))
            total += chunks
        return total

    async def rebuild_all(self, tenant: str) -> int:
        """Rebuild every collection of a tenant; how many chunks."""
        names = await self._library.collections(tenant)
        return sum([await self.rebuild(Scope(tenant=tenant, collection=name)) for name in names])

    async def put_sop(self, tenant: str, sop: Sop) -> Sop:
        """Keep a procedure, in place of the one of the same name. Raises Invalid when it could never match."""
        await self._library.put_sop(tenant, check_sop(sop))
        return sop

    async def list_sops(self, tenant: str, category: str) -> list[Sop]:
        """The tenant's procedures and the shared ones, by priority, then name; empty `category`: of all."""
        sops = [sop for sop in await self._library.sops(tenant) if not category or sop.category == category]
        return sorted(sops, key=lambda sop: (-sop.priority, sop.name))

    async def match_sops(self, tenant: str, text: str, n_results: int) -> list[SopMatch]:
        """The procedures that `text` calls for, best first, with the triggers that did."""
        return match(text, await self._library.sops(tenant), choose_results(n_results))

    def _check(self, document: Document) -> None:
        size, limit = len(document.text.encode()), self._settings.max_document_bytes
        if not document.text.strip():
            raise Invalid(f"document {document.id!r} has no text", code="empty_document")
        if size > limit:
            raise Invalid(
                f"document {document.id!r} has {size} bytes > {limit}; split it or raise memory.max_document_bytes",
                code="document_too_large",
            )
        if "\0" in document.text + document.title + document.path + document.id:
            raise Invalid(f"document {document.id!r} holds a NUL character; send text, not binary", code="not_text")

    async def _encode(self, scope: Scope, documents: Sequence[Document]) -> tuple[list[Entry], int, int]:
        """Entries for the documents, how many chunks had to be embedded, and how many there are."""
        limit = self._settings.chunk_characters
        cut = await asyncio.to_thread(lambda: [chunk(scope, document, limit) for document in documents])
        wanted = {part.content_hash: part for chunks in cut for part in chunks}
        known = await self._library.known(scope, list(wanted))
        fresh = await self._encode_texts({key: part for key, part in wanted.items() if key not in known})
        encodings = known | fresh
        entries = [
            Entry(document=document, chunks=[(part, encodings[part.content_hash]) for part in chunks])
            for document, chunks in zip(documents, cut, strict=True)
        ]
        return entries, len(fresh), sum(map(len, cut))

    async def _encode_texts(self, parts: Mapping[str, Chunk]) -> dict[str, Encoding]:
        if not parts:
            return {}
        texts = [part.embedding_text for part in parts.values()]
        terms = await self._index.measure(texts)
        vectors = await self._embed(texts)
        return {
            key: Encoding(vector=vector.tobytes(), terms=count)
            for key, vector, count in zip(parts, vectors, terms, strict=True)
        }
