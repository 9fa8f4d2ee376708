"""Memory's own nouns. Chunks are derived from documents; what an index holds is derived from chunks."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum

Json = None | bool | int | float | str | list["Json"] | dict[str, "Json"]
Metadata = Mapping[str, Json]


class ChunkType(StrEnum):
    """What a chunk is; values are those of the wire."""

    FUNCTION = "FUNCTION"
    CLASS = "CLASS"
    METHOD = "METHOD"
    IMPORT = "IMPORT"
    DOCSTRING = "DOCSTRING"
    TEXT = "TEXT"

    @property
    def is_code(self) -> bool:
        """Whether it was cut from a program."""
        return self is not ChunkType.TEXT


class Engine(StrEnum):
    """Which legs a search uses."""

    VECTOR = "vector"
    BM25 = "bm25"
    HYBRID = "hybrid"


@dataclass(frozen=True, slots=True, kw_only=True)
class Scope:
    """One tenant's collection; nothing is ever counted or found across scopes."""

    tenant: str
    collection: str

    @property
    def key(self) -> str:
        """One string for both, unambiguous because the length of the first leads."""
        return f"{len(self.tenant)}:{self.tenant}/{self.collection}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Document:
    """A text to remember; `type` is `text`, `markdown` or `python`, `title` and `path` may be empty."""

    id: str
    text: str
    title: str = ""
    path: str = ""
    type: str = "text"
    metadata: Metadata = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Piece:
    """A stretch of a document: lines count from 1, both ends included."""

    type: ChunkType
    text: str
    first_line: int
    last_line: int
    name: str = ""
    docstring: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Chunk:
    """A piece with its place and identity. `content_hash` is of `embedding_text`; by it an encoding is used again."""

    id: str
    document_id: str
    piece: Piece
    content_hash: str
    embedding_text: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """A chunk as a search returns it, with what it takes from its document."""

    id: str
    document_id: str
    piece: Piece
    title: str
    path: str
    metadata: Metadata


@dataclass(frozen=True, slots=True, kw_only=True)
class Hit:
    """A chunk that was found; scores compare within one answer only."""

    found: Found
    score: float


@dataclass(frozen=True, slots=True, kw_only=True)
class SopStep:
    """One step: what to do, and when (empty: always)."""

    action: str
    condition: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Sop:
    """A standard operating procedure, called for by any of its triggers."""

    name: str
    description: str
    triggers: tuple[str, ...]
    steps: tuple[SopStep, ...]
    category: str = ""
    priority: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class SopMatch:
    """A procedure that a text calls for, with the triggers that did."""

    sop: Sop
    score: float
    triggers: tuple[str, ...]
