"""One Qdrant Edge shard: dense vectors, BM25 as sparse vectors, joined in one query. Synchronous, and holds the GIL.

Used by the index process only. Documents of every tenant share the shard; each search, its frequencies included, is
confined to one scope by filter.

Writes survive the death of the process at once, and that of the machine after `flush`, which takes 6 to 130 ms and is
therefore not waited for. A mark tells that there are unflushed writes; found after another boot, the shard cannot be
trusted, and is made anew: the library fills it again.
"""

import os
import shutil
import time
from functools import lru_cache
from pathlib import Path
from typing import Any, Protocol

import msgspec
import numpy as np
import qdrant_edge as qdrant

from catena.memory.core.ports import IndexPoint, IndexQuery
from catena.memory.core.ranking import Fusion
from catena.memory.core.types import Engine

DENSE, BM25 = "dense", "bm25"
UNCLIPPED = 1e7
FORMAT = 1


class Bm25Model(Protocol):
    """Texts to sparse vectors."""

    def embed_document(self, text: str) -> Any:
        """Term weights with saturation and length norm."""
        ...

    def embed_query(self, text: str) -> Any:
        """One per distinct term."""
        ...


class Shape(msgspec.Struct, frozen=True):
    """What a shard was made for; another shape needs another shard."""

    dimension: int
    language: str
    format: int = FORMAT


class Edge:
    """The shard in `folder`, made when absent, broken or of another shape: what it held can be had from the library."""

    def __init__(self, folder: Path, shape: Shape) -> None:
        """Open it; the folder's lock is this process's until `close`."""
        self._mark = folder / "unflushed"
        self._shard = _open(folder, shape, trusted=not self._mark.exists() or self._mark.read_text() == boot())
        self.dirty = self._mark.exists()
        self._bm25 = lru_cache(64)(lambda average: bm25_model(shape.language, average=average))
        self._counter = bm25_model(shape.language, k=UNCLIPPED, b=0.0)

    def put(self, points: list[IndexPoint]) -> None:
        """Insert or replace."""
        self._soil()
        made = [
            qdrant.Point(
                point.id,
                {
                    DENSE: np.frombuffer(point.vector, np.float32).tolist(),
                    BM25: self._bm25(point.average_terms).embed_document(point.text),
                },
                {"scope": point.scope, "labels": list(point.labels), "stamp": point.stamp},
            )
            for point in points
        ]
        self._shard.update(qdrant.UpdateOperation.upsert_points(made))

    def delete(self, ids: list[str]) -> None:
        """Remove."""
        self._soil()
        self._shard.update(qdrant.UpdateOperation.delete_points([*ids]))

    def flush(self) -> None:
        """Write all changes to disk."""
        self._shard.flush()
        self._mark.unlink(missing_ok=True)
        self.dirty = False

    def search(self, query: IndexQuery) -> list[tuple[str, float]]:
        """Ids and scores, best first, ties by id."""
        scope = [_match("scope", query.scope)]
        allowed = qdrant.Filter(must=[*scope, *(_match_any("labels", options) for options in query.labels)])
        idf = qdrant.SearchParams(idf=qdrant.IdfParams(corpus=qdrant.Filter(must=scope)))
        legs: list[tuple[Any, Any]] = []
        if query.engine is not Engine.BM25:
            vector = np.frombuffer(query.vector, np.float32).tolist()
            legs.append((qdrant.Query.Nearest(vector, using=DENSE), None))
        if query.engine is not Engine.VECTOR:
            terms = self._bm25(1.0).embed_query(query.text)
            legs.append((qdrant.Query.Nearest(terms, using=BM25), idf))
        if len(legs) == 1:
            leg, params = legs[0]
            request = qdrant.QueryRequest(limit=query.limit, query=leg, filter=allowed, params=params)
        else:
            request = qdrant.QueryRequest(
                limit=query.limit,
                query=_fusion(query.fusion),
                prefetches=[
                    qdrant.Prefetch(limit=query.candidates, query=leg, filter=allowed, params=params)
                    for leg, params in legs
                ],
            )
        hits = [(str(point.id), float(point.score)) for point in self._shard.query(request)]
        return sorted(hits, key=lambda hit: (-hit[1], hit[0]))

    def inventory(self, after: str, limit: int) -> tuple[dict[str, str], str]:
        """Stamps of at most `limit` points from id `after` on, and where the next page begins (empty: nowhere)."""
        request = qdrant.ScrollRequest(offset=after or None, limit=limit, with_payload=["stamp"], with_vector=False)
        records, following = self._shard.scroll(request)
        stamps = {str(record.id): str((record.payload or {}).get("stamp", "")) for record in records}
        return stamps, str(following) if following is not None else ""

    def measure(self, texts: list[str]) -> list[int]:
        """Terms of each text that count. With k boundless and no length norm a weight is the term's frequency."""
        return [round(sum(self._counter.embed_document(text).values)) for text in texts]

    def close(self) -> None:
        """Write all changes to disk and give up the folder."""
        self.flush()
        self._shard.close()

    def _soil(self) -> None:
        if not self.dirty:
            with self._mark.open("w") as file:
                file.write(boot())
                file.flush()
                os.fsync(file.fileno())
            self.dirty = True


def boot() -> str:
    """Names the time since the machine started; unique each time it is asked where the system does not tell."""
    path = Path("/proc/sys/kernel/random/boot_id")
    return path.read_text() if path.exists() else f"{os.getpid()} {time.monotonic_ns()}"


def bm25_model(language: str, *, average: float = 1.0, k: float = 1.2, b: float = 0.75) -> Bm25Model:
    """BM25 for a language, or for none: then words are taken as they stand."""
    if language == "none":
        stemmer, stopwords = qdrant.DisabledStemmer(), qdrant.StopwordsSet(custom=set())
        config = qdrant.Bm25Config(k=k, b=b, avg_len=max(average, 1.0), stemmer=stemmer, stopwords=stopwords)
    else:
        config = qdrant.Bm25Config(k=k, b=b, avg_len=max(average, 1.0), language=language)
    return qdrant.Bm25(config)


def _open(folder: Path, shape: Shape, *, trusted: bool) -> Any:
    label = folder / "shape.json"
    if trusted and label.exists() and label.read_bytes() == msgspec.json.encode(shape):
        try:
            return qdrant.EdgeShard.load(str(folder / "shard"))
        except Exception as error:
            if "WouldBlock" in str(error):
                raise
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    shard = qdrant.EdgeShard.create(
        str(folder / "shard"),
        qdrant.EdgeConfig(
            vectors={DENSE: qdrant.EdgeVectorParams(size=shape.dimension, distance=qdrant.Distance.Dot)},
            sparse_vectors={BM25: qdrant.EdgeSparseVectorParams(modifier=qdrant.Modifier.Idf)},
        ),
    )
    for key, is_tenant in (("scope", True), ("labels", False)):
        params = qdrant.KeywordIndexParams(is_tenant=is_tenant)
        shard.update(qdrant.UpdateOperation.create_field_index(key, params))
    shard.flush()
    label.write_bytes(msgspec.json.encode(shape))
    return shard


def _fusion(fusion: Fusion) -> Any:
    if fusion.method == "dbsf":
        return qdrant.Fusion.Dbsf()
    return qdrant.Fusion.Rrf(k=fusion.k, weights=list(fusion.weights))


def _match(key: str, value: str) -> Any:
    return qdrant.FieldCondition(key=key, match=qdrant.MatchValue(value))


def _match_any(key: str, values: Any) -> Any:
    return qdrant.FieldCondition(key=key, match=qdrant.MatchAny(list(values)))
