import gzip
import json
import math
import os
from collections import defaultdict
from pathlib import Path

import pytest

from catena.api.memory.v1 import memory_pb2 as pb

DATA = Path(os.environ.get("CATENA_DATA", "/nonexistent")) / "scifact"
pytestmark = [
    pytest.mark.data,
    pytest.mark.timeout(900),
    pytest.mark.skipif(not DATA.is_dir(), reason="set CATENA_DATA to the folder that holds scifact/"),
]


async def test_hybrid_search_reaches_the_published_quality_on_scifact(room):
    """Published for MiniLM + BM25, fused by DBSF: .732 nDCG@10; each leg alone: .624 and .689."""
    with gzip.open(DATA / "corpus.jsonl.gz", "rt") as lines:
        corpus = [json.loads(line) for line in lines]
    for start in range(0, len(corpus), 50):
        batch = [pb.Document(id=doc["_id"], title=doc["title"], text=doc["text"]) for doc in corpus[start : start + 50]]
        await room.ask("PutDocuments", pb.PutDocumentsRequest(documents=batch))
    scores = {engine: await ndcg(room, engine) for engine in ("vector", "bm25", "hybrid")}
    assert scores["hybrid"] >= 0.71 and scores["vector"] >= 0.60 and scores["bm25"] >= 0.66, scores


async def ndcg(room, engine):
    queries = {item["_id"]: item["text"] for item in map(json.loads, (DATA / "queries.jsonl").open())}
    relevant = defaultdict(dict)
    for line in (DATA / "qrels_test.tsv").read_text().splitlines()[1:]:
        query_id, document_id, grade = line.split("\t")
        relevant[query_id][document_id] = int(grade)
    total = 0.0
    for query_id, grades in relevant.items():
        answer = await room.ask("Search", pb.SearchRequest(query=queries[query_id], engine=engine, n_results=30))
        ranked = list(dict.fromkeys(hit.chunk.document_id for hit in answer.hits))[:10]
        gain = sum(grades.get(key, 0) / math.log2(rank + 1) for rank, key in enumerate(ranked, 1))
        best = sum(g / math.log2(rank + 1) for rank, g in enumerate(sorted(grades.values(), reverse=True)[:10], 1))
        total += gain / best
    return total / len(relevant)
