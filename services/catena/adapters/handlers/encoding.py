"""Encoders and models of feature vectors as messages."""

import numpy as np

from catena.adapters.core.encoding import AGGREGATIONS, Aggregation, Encoded, Encoding, Found
from catena.api.adapters.v1 import adapters_pb2 as pb
from catena.api.types.v1 import types_pb2 as types
from catena.kit.errors import Invalid


def encode_of(request: pb.EncodeRequest) -> Encoding:
    """What is to become vectors."""
    return Encoding(base=request.model, texts=tuple(request.texts), truncate=request.truncate)


def classify_of(request: pb.ClassifyRequest) -> Encoding:
    """What is to be labelled."""
    return Encoding(
        base=request.model,
        texts=tuple(request.texts),
        pairs=tuple(request.pairs),
        truncate=request.truncate,
        aggregation=_aggregation(request.aggregation or "simple"),
    )


def predict_of(request: pb.PredictRequest) -> Encoding:
    """What is to be predicted. Raises Invalid for a row by place and by name at once."""
    for row in request.rows:
        if row.values and row.named:
            raise Invalid("a row has features by place and by name; give one of the two", code="bad_features")
    return Encoding(
        base=request.model, rows=tuple(dict(row.named) if row.named else tuple(row.values) for row in request.rows)
    )


def vectors_to(encoded: Encoded, model: str) -> pb.EncodeResponse:
    """Vectors as they go out."""
    return pb.EncodeResponse(
        vectors=[pb.Vector(values=np.frombuffer(one.vector, "<f4").tolist()) for one in encoded.found],
        usage=types.Usage(input_tokens=encoded.tokens),
        resolved_model=model,
        truncated=encoded.truncated,
    )


def classified_to(encoded: Encoded, model: str, asked: Encoding, top: int) -> pb.ClassifyResponse:
    """Labels and spans as they go out."""
    return pb.ClassifyResponse(
        results=[found_to(one, top, text) for one, text in zip(encoded.found, asked.texts, strict=True)],
        usage=types.Usage(input_tokens=encoded.tokens),
        resolved_model=model,
        truncated=encoded.truncated,
    )


def predicted_to(encoded: Encoded, model: str, top: int) -> pb.PredictResponse:
    """Outputs as they go out."""
    return pb.PredictResponse(results=[found_to(one, top) for one in encoded.found], resolved_model=model)


def found_to(found: Found, top: int, text: str = "") -> pb.Classified:
    """What was found of one input; at most `top` labels, 0: all."""
    return pb.Classified(
        labels=[pb.Label(label=one.name, score=one.score) for one in found.labels[: top or None]],
        spans=[
            pb.Span(label=one.name, score=one.score, start=one.start, end=one.end, text=text[one.start : one.end])
            for one in found.spans
        ],
    )


def _aggregation(name: str) -> Aggregation:
    for known in AGGREGATIONS:
        if name == known:
            return known
    raise Invalid(f"aggregation {name!r}; use one of {', '.join(AGGREGATIONS)}", code="bad_aggregation")
