"""An index that is slow and obvious: every formula written out over plain lists."""

import math
import re

import numpy as np

from catena.memory.core.types import Engine

STOP_WORDS = {"the", "a", "on", "and", "of", "in"}
K, B = 1.2, 0.75


def words(text):
    return [word for word in re.findall(r"\w+", text.lower()) if word not in STOP_WORDS]


class ListIndex:
    """`Index` over a dictionary of points."""

    def __init__(self):
        self.points = {}

    async def put(self, points):
        self.points |= {point.id: point for point in points}

    async def delete(self, ids):
        for key in ids:
            self.points.pop(key, None)

    async def inventory(self):
        return {key: point.stamp for key, point in self.points.items()}

    async def measure(self, texts):
        return [len(words(text)) for text in texts]

    async def search(self, query):
        scope = [point for point in self.points.values() if point.scope == query.scope]
        allowed = [point for point in scope if all(set(options) & set(point.labels) for options in query.labels)]
        dense = self._dense(query, allowed)
        sparse = self._bm25(query, scope, allowed)
        if query.engine is Engine.VECTOR:
            return dense[: query.limit]
        if query.engine is Engine.BM25:
            return sparse[: query.limit]
        legs = [dense[: query.candidates], sparse[: query.candidates]]
        fused = self._dbsf(legs) if query.fusion.method == "dbsf" else self._rrf(legs, query.fusion)
        return ranked(fused)[: query.limit]

    def _dense(self, query, points):
        if not query.vector:
            return []
        target = np.frombuffer(query.vector, np.float32)
        return ranked({point.id: float(np.frombuffer(point.vector, np.float32) @ target) for point in points})

    def _bm25(self, query, scope, points):
        scores = {}
        for point in points:
            terms = words(point.text)
            for word in set(words(query.text)):
                holders = sum(word in words(other.text) for other in scope)
                frequency = terms.count(word)
                if frequency:
                    idf = math.log(1 + (len(scope) - holders + 0.5) / (holders + 0.5))
                    norm = K * (1 - B + B * len(terms) / max(point.average_terms, 1.0))
                    gain = idf * frequency * (K + 1) / (frequency + norm)
                    scores[point.id] = scores.get(point.id, 0.0) + gain
        return ranked(scores)

    def _rrf(self, legs, fusion):
        scores = {}
        for leg, weight in zip(legs, fusion.weights, strict=True):
            for rank, (key, _) in enumerate(leg, 1):
                scores[key] = scores.get(key, 0.0) + 1 / (fusion.k - 1 + rank / weight)
        return scores

    def _dbsf(self, legs):
        fused = {}
        for leg in legs:
            values = [score for _, score in leg]
            mean = sum(values) / len(values) if values else 0.0
            spread = math.sqrt(sum((value - mean) ** 2 for value in values) / max(len(values) - 1, 1))
            for key, score in leg:
                share = (score - (mean - 3 * spread)) / (6 * spread) if spread else 0.5
                fused[key] = fused.get(key, 0.0) + share
        return fused


def ranked(scores):
    return sorted(scores.items(), key=lambda item: (-item[1], item[0]))
