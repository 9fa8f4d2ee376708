"""Local models that do not generate, over gRPC: encoders and models of feature vectors of the adapters room."""

from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any

import msgspec

from catena.api.adapters.v1 import adapters_pb2 as pb
from catena.executor.core.catalogue import Model
from catena.executor.core.chat import Usage
from catena.executor.core.ports import Embedding, Prediction, Vectors
from catena.kit.errors import Invalid

if TYPE_CHECKING:
    from catena.api.adapters.v1.adapters_pb2_grpc import AdaptersServiceAsyncStub

MOST_INPUTS = 2048
"""What the room takes a call."""


class Wanted(msgspec.Struct, frozen=True, kw_only=True):
    """What `parameters` may say; others are passed over, as elsewhere."""

    truncate: bool = False
    top: Annotated[int, msgspec.Meta(ge=0, lt=1 << 31)] = 0
    aggregation: str = ""


class LocalEncoders:
    """Asks the adapters room; embeddings of any model that is none of its bases are the house's own."""

    def __init__(self, stub: "AdaptersServiceAsyncStub", *, bases: Collection[str], house: Embedding) -> None:
        """`bases` are the names of the configured local models."""
        self._stub = stub
        self._bases = frozenset(bases)
        self._house = house

    async def embed(self, model: Model, texts: Sequence[str], timeout_s: float, *, truncate: bool = False) -> Vectors:
        """A vector for each text, in order."""
        if model.upstream not in self._bases:
            return await self._house.embed(model, texts, timeout_s, truncate=truncate)
        rows: list[Sequence[float]] = []
        tokens = 0
        for some in _parts(texts):
            asked = pb.EncodeRequest(model=model.upstream, texts=some, truncate=truncate)
            told = await self._stub.Encode(asked, timeout=timeout_s)
            rows += [list(vector.values) for vector in told.vectors]
            tokens += told.usage.input_tokens
        return Vectors(vectors=rows, usage=Usage(input_tokens=tokens))

    async def predict(
        self, model: Model, inputs: Sequence[Any], parameters: Mapping[str, Any], timeout_s: float
    ) -> Prediction:
        """`{label, scores}` of each text or row; a list of `{label, score, start, end, text}` where spans are found.

        Raises Invalid (`bad_parameters`), and what the room refuses.
        """
        try:
            wanted = msgspec.convert(dict(parameters), Wanted)
        except msgspec.ValidationError as error:
            raise Invalid(f"parameters: {error}", code="bad_parameters") from error
        values: list[Any] = []
        tokens = 0
        for some in _parts(inputs):
            if model.type == "prediction":
                rows = [_row(row) for row in some]
                asked = pb.PredictRequest(model=model.upstream, rows=rows, top=wanted.top)
                results = (await self._stub.Predict(asked, timeout=timeout_s)).results
            else:
                told = await self._stub.Classify(_classify(model, some, wanted), timeout=timeout_s)
                results, tokens = told.results, tokens + told.usage.input_tokens
            values += [_spans(one) if model.type == "token-classification" else _labels(one) for one in results]
        return Prediction(values=values, usage=Usage(input_tokens=tokens))


def _parts(inputs: Sequence[Any]) -> Iterator[Sequence[Any]]:
    for start in range(0, len(inputs), MOST_INPUTS):
        yield inputs[start : start + MOST_INPUTS]


def _classify(model: Model, inputs: Sequence[Any], wanted: Wanted) -> pb.ClassifyRequest:
    texts = [text["text"] if isinstance(text, Mapping) else text for text in inputs]
    pairs = [text.get("text_pair", "") if isinstance(text, Mapping) else "" for text in inputs]
    return pb.ClassifyRequest(
        model=model.upstream,
        texts=texts,
        pairs=pairs if any(pairs) else [],
        truncate=wanted.truncate,
        top=wanted.top,
        aggregation=wanted.aggregation,
    )


def _row(row: Any) -> pb.FeatureVector:
    return pb.FeatureVector(named=row) if isinstance(row, Mapping) else pb.FeatureVector(values=row)


def _labels(found: pb.Classified) -> dict[str, Any]:
    return {"label": found.labels[0].label, "scores": {one.label: one.score for one in found.labels}}


def _spans(found: pb.Classified) -> list[dict[str, Any]]:
    return [
        {"label": one.label, "score": one.score, "start": one.start, "end": one.end, "text": one.text}
        for one in found.spans
    ]
