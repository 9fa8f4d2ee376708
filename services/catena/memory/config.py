"""Settings of the memory room; every one has a default that works on a laptop."""

from catena.kit.config import FilePath, Section


class MemoryConfig(Section, frozen=True):
    """Section `memory`.

    `sops`: folder of procedures as JSON files, offered to every tenant; empty: none.
    `language`: of the stop words and word stems that BM25 uses; `none`: neither.
    `candidates`: how many each leg of a hybrid search contributes at least; more is better and slower (0.5 ms at 100).
    `text_fusion`, `code_fusion`: how the legs are joined for collections that are mostly text or mostly code; the
    defaults won on SciFact and Cranfield, and on CoSQA.
    `chunk_characters`: where text is cut, near what the default model reads (256 tokens).
    `max_document_bytes`: refused above it; 4 MiB.
    """

    sops: FilePath = ""
    language: str = "english"
    candidates: int = 100
    text_fusion: str = "dbsf"
    code_fusion: str = "rrf"
    chunk_characters: int = 1600
    max_document_bytes: int = 4 * 1024 * 1024
