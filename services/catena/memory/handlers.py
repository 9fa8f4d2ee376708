"""Memory's gRPC service: proto in, core call, proto out. The tenant is the caller's, whatever the request says."""

import re
from typing import Any, TypeAlias

import grpc

from catena.api.memory.v1 import memory_pb2 as pb
from catena.api.memory.v1.memory_pb2_grpc import MemoryServiceServicer
from catena.kit.caller import caller
from catena.kit.clock import Clock
from catena.kit.errors import Invalid
from catena.kit.jsonvalue import struct_from_json, struct_to_json
from catena.memory.core.chunking import choose_type, document_identity
from catena.memory.core.memory import DEFAULT_COLLECTION, Memory
from catena.memory.core.types import Document, Hit, Scope, Sop, SopMatch, SopStep

Context: TypeAlias = "grpc.aio.ServicerContext[Any, Any]"
MAX_ID_CHARACTERS = 512
_NAME = re.compile(r"[A-Za-z0-9._-]{1,64}\Z")


class MemoryHandlers(MemoryServiceServicer):
    """`MemoryService` over a `Memory`."""

    def __init__(self, memory: Memory, clock: Clock) -> None:
        """`clock` times searches."""
        self._memory = memory
        self._clock = clock

    async def PutDocuments(self, request: pb.PutDocumentsRequest, context: Context) -> pb.PutDocumentsResponse:
        """Store documents."""
        stored = await self._memory.put_documents(
            scope_of(request.collection), [document_of(item) for item in request.documents]
        )
        return pb.PutDocumentsResponse(
            ids=stored.ids, chunks_embedded=stored.embedded, chunks_unchanged=stored.unchanged
        )

    async def DeleteDocuments(self, request: pb.DeleteDocumentsRequest, context: Context) -> pb.DeleteDocumentsResponse:
        """Remove documents."""
        deleted = await self._memory.delete_documents(scope_of(request.collection), list(request.ids))
        return pb.DeleteDocumentsResponse(deleted=deleted)

    async def Search(self, request: pb.SearchRequest, context: Context) -> pb.SearchResponse:
        """Find chunks."""
        began_s = self._clock.monotonic()
        hits = await self._memory.search(
            scope_of(request.collection),
            request.query,
            n_results=request.n_results,
            engine=request.engine,
            fusion=request.fusion,
            wanted=struct_to_json(request.filter),
        )
        duration_ms = (self._clock.monotonic() - began_s) * 1000
        return pb.SearchResponse(hits=[hit_to(hit) for hit in hits], duration_ms=duration_ms)

    async def PutSop(self, request: pb.PutSopRequest, context: Context) -> pb.PutSopResponse:
        """Store a procedure."""
        return pb.PutSopResponse(sop=sop_to(await self._memory.put_sop(caller().tenant, sop_of(request.sop))))

    async def ListSops(self, request: pb.ListSopsRequest, context: Context) -> pb.ListSopsResponse:
        """List procedures."""
        return pb.ListSopsResponse(
            sops=[sop_to(sop) for sop in await self._memory.list_sops(caller().tenant, request.category)]
        )

    async def MatchSops(self, request: pb.MatchSopsRequest, context: Context) -> pb.MatchSopsResponse:
        """Find the procedures that a text calls for."""
        matches = await self._memory.match_sops(caller().tenant, request.text, request.n_results)
        return pb.MatchSopsResponse(matches=[match_to(match) for match in matches])

    async def Rebuild(self, request: pb.RebuildRequest, context: Context) -> pb.RebuildResponse:
        """Make the index anew."""
        if request.collection:
            return pb.RebuildResponse(chunks=await self._memory.rebuild(scope_of(request.collection)))
        return pb.RebuildResponse(chunks=await self._memory.rebuild_all(caller().tenant))


def scope_of(collection: str) -> Scope:
    """The caller's collection of that name. Raises Invalid for a name that could not be one."""
    name = collection or DEFAULT_COLLECTION
    if not _NAME.match(name):
        raise Invalid(f"collection {name!r} should be 1 to 64 of A-Z a-z 0-9 . _ -", code="bad_collection")
    return Scope(tenant=caller().tenant, collection=name)


def document_of(item: pb.Document) -> Document:
    """A document as asked for; without an id it gets its text's digest."""
    if len(item.id) > MAX_ID_CHARACTERS:
        raise Invalid(f"a document id has {len(item.id)} characters > {MAX_ID_CHARACTERS}", code="bad_document_id")
    return Document(
        id=item.id or document_identity(item.text),
        text=item.text,
        title=item.title,
        path=item.path,
        type=choose_type(item.type, item.path),
        metadata=struct_to_json(item.metadata),
    )


def hit_to(hit: Hit) -> pb.Hit:
    """A hit as told."""
    found, piece = hit.found, hit.found.piece
    chunk = pb.Chunk(
        id=found.id,
        document_id=found.document_id,
        text=piece.text,
        type=piece.type.value,
        name=piece.name,
        path=found.path,
        first_line=piece.first_line,
        last_line=piece.last_line,
        title=found.title,
        metadata=struct_from_json(found.metadata),
        docstring=piece.docstring,
    )
    return pb.Hit(chunk=chunk, score=hit.score)


def sop_of(item: pb.Sop) -> Sop:
    """A procedure as asked for."""
    return Sop(
        name=item.name,
        description=item.description,
        triggers=tuple(item.triggers),
        steps=tuple(SopStep(action=step.action, condition=step.condition) for step in item.steps),
        category=item.category,
        priority=item.priority,
    )


def sop_to(sop: Sop) -> pb.Sop:
    """A procedure as told."""
    return pb.Sop(
        name=sop.name,
        description=sop.description,
        triggers=sop.triggers,
        category=sop.category,
        priority=sop.priority,
        steps=[pb.SopStep(action=step.action, condition=step.condition) for step in sop.steps],
    )


def match_to(match: SopMatch) -> pb.SopMatch:
    """A match as told, with its reasons."""
    return pb.SopMatch(sop=sop_to(match.sop), score=match.score, triggers=match.triggers)
