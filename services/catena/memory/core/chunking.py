"""Documents to chunks: the dispatcher, each chunk's identity, and the text that stands for it in the index."""

import hashlib
import uuid
from pathlib import PurePosixPath

from catena.kit.errors import Invalid
from catena.memory.core.python_chunks import chunk_python
from catena.memory.core.text_chunks import chunk_markdown, chunk_text
from catena.memory.core.types import Chunk, ChunkType, Document, Piece, Scope

TYPES = ("text", "markdown", "python")
ENDINGS = {".py": "python", ".pyi": "python", ".md": "markdown", ".markdown": "markdown"}
DESCRIPTION_CHARACTERS = 200
NAMESPACE = uuid.UUID("5d0a2c0e-64f5-5d1c-9d3f-6a3c1d0c7a11")


def choose_type(asked: str, path: str) -> str:
    """The document type that was named, else the one of the path's ending, else text. Raises Invalid for an unknown."""
    if asked and asked not in TYPES:
        raise Invalid(f"unknown document type {asked!r}; use one of {', '.join(TYPES)}", code="unknown_type")
    return asked or ENDINGS.get(PurePosixPath(path).suffix.lower(), "text")


def chunk(scope: Scope, document: Document, limit: int) -> list[Chunk]:
    """The document's chunks in order. The same document gives the same chunks; one unchanged by an edit keeps its id.

    `limit` is the most characters a chunk's own text may have.
    """
    chunks, seen = [], dict[str, int]()
    for piece in _pieces(document, limit):
        text = embedding_text(document, piece)
        content_hash = hashlib.sha256(text.encode(errors="surrogatepass")).hexdigest()
        occurrence = seen[content_hash] = seen.get(content_hash, 0) + 1
        chunk_id = chunk_identity(scope, document.id, content_hash, occurrence)
        chunks.append(
            Chunk(id=chunk_id, document_id=document.id, piece=piece, content_hash=content_hash, embedding_text=text)
        )
    return chunks


def chunk_identity(scope: Scope, document_id: str, content_hash: str, occurrence: int) -> str:
    """A UUID version 5 (RFC 9562) of where the chunk stands and what it says: written twice, it is there once."""
    return str(uuid.uuid5(NAMESPACE, "\x1f".join((scope.key, document_id, content_hash, str(occurrence)))))


def document_identity(text: str) -> str:
    """The id of a document that was given none: its text's digest."""
    return hashlib.sha256(text.encode(errors="surrogatepass")).hexdigest()[:32]


def embedding_text(document: Document, piece: Piece) -> str:
    """What is embedded and indexed for a piece.

    Code: type and qualified name, the docstring's first 200 characters, the file, the source. Text: title and
    headings, then the text.
    """
    if not piece.type.is_code:
        head = [document.title, piece.name if document.type != "text" else ""]
        return "\n".join([*(part for part in head if part), piece.text])
    description = " ".join(piece.docstring.split())[:DESCRIPTION_CHARACTERS]
    head = [f"{piece.type} {piece.name}".strip(), description, document.path]
    if piece.type is ChunkType.DOCSTRING:
        head[1] = ""
    return "\n".join([*(part for part in head if part), piece.text])


def _pieces(document: Document, limit: int) -> list[Piece]:
    text = document.text.replace("\r\n", "\n").replace("\r", "\n")
    if document.type == "python":
        return chunk_python(text, document.path, limit)
    return chunk_markdown(text, limit) if document.type == "markdown" else chunk_text(text, limit)
