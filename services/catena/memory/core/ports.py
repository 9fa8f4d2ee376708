"""What memory needs from outside itself. An index is derived from the library and may be lost at any time."""

from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from catena.memory.core.ranking import Fusion
from catena.memory.core.types import Chunk, Document, Engine, Found, Scope, Sop

Vectors = NDArray[np.float32]


class Embed(Protocol):
    """Texts to vectors."""

    async def __call__(self, texts: Sequence[str]) -> Vectors:
        """(n,) texts to (n, dimension) unit rows."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Encoding:
    """What is computed from a chunk's embedding text: `vector` as float32 bytes, `terms` as BM25 counts them."""

    vector: bytes
    terms: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """A document ready to be kept: its chunks, each with its encoding."""

    document: Document
    chunks: Sequence[tuple[Chunk, Encoding]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Profile:
    """Figures of a collection: chunks, and how many of them are code."""

    chunks: int
    code_chunks: int

    @property
    def code_share(self) -> float:
        """Code chunks as a share of all; 0 when there are none."""
        return self.code_chunks / self.chunks if self.chunks else 0.0


class Library(Protocol):
    """Where documents and procedures are kept for good; what a call returns is committed."""

    async def put(self, scope: Scope, entries: Sequence[Entry]) -> set[str]:
        """Replace the documents of the same ids. Returns the ids of chunks whose index entry has to follow."""
        ...

    async def renew(self, scope: Scope, entries: Sequence[Entry]) -> set[str]:
        """Replace the chunks, not the documents; skips those that changed or went since they were read."""
        ...

    async def delete(self, scope: Scope, document_ids: Sequence[str]) -> tuple[int, set[str]]:
        """Remove documents. Returns how many there were, and the chunks whose index entry has to follow."""
        ...

    async def known(self, scope: Scope, content_hashes: Sequence[str]) -> dict[str, Encoding]:
        """Encodings, by the model in use, that the scope holds already, by content hash."""
        ...

    async def found(self, scope: Scope, chunk_ids: Sequence[str]) -> dict[str, Found]:
        """Chunks of this scope by id; ids of others are left out."""
        ...

    async def profile(self, scope: Scope) -> Profile | None:
        """Figures of the collection; None when it never held anything."""
        ...

    async def collections(self, tenant: str) -> list[str]:
        """Names of the tenant's collections, sorted."""
        ...

    def documents(self, scope: Scope) -> AsyncIterator[list[Document]]:
        """All documents of a collection, some at a time, by id."""
        ...

    async def put_sop(self, tenant: str, sop: Sop) -> None:
        """Replace the procedure of the same name."""
        ...

    async def sops(self, tenant: str) -> list[Sop]:
        """The tenant's procedures and the shared ones that it does not replace."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class IndexPoint:
    """One chunk as an index holds it. `average_terms` is its scope's mean length; `stamp` changes with the rest."""

    id: str
    scope: str
    text: str
    vector: bytes
    labels: Sequence[str]
    average_terms: float
    stamp: str


@dataclass(frozen=True, slots=True, kw_only=True)
class IndexQuery:
    """A search of one scope. Of each of `labels` a point must carry one; each leg gives `candidates`."""

    scope: str
    engine: Engine
    text: str
    vector: bytes
    fusion: Fusion
    labels: Sequence[Sequence[str]]
    candidates: int
    limit: int


class Index(Protocol):
    """Finds chunks. Raises Unavailable while it cannot be reached."""

    async def put(self, points: Sequence[IndexPoint]) -> None:
        """Insert or replace; searchable when this returns, and still there when the index is killed."""
        ...

    async def delete(self, ids: Sequence[str]) -> None:
        """Remove, for good when this returns. Unknown ids are no error."""
        ...

    async def search(self, query: IndexQuery) -> list[tuple[str, float]]:
        """Ids and scores, best first, ties by id. Inverse document frequencies are those of the scope alone."""
        ...

    async def inventory(self) -> dict[str, str]:
        """The stamp of every point, by id."""
        ...

    async def measure(self, texts: Sequence[str]) -> list[int]:
        """How many terms of each text count for BM25: stems without stop words, repeats included."""
        ...


class Follow(Protocol):
    """Makes the index agree with the library."""

    async def __call__(self, chunk_ids: set[str]) -> None:
        """Return once the index holds what the library says of these chunks."""
        ...
