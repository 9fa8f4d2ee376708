"""What an encoder is asked and what it answers: plain data, the same in the room and in the engine's process."""

import math
from typing import Literal

import msgspec

from catena.kit.config import ModelType
from catena.kit.errors import Invalid

Aggregation = Literal["none", "simple", "first", "average", "max"]
AGGREGATIONS: tuple[Aggregation, ...] = ("none", "simple", "first", "average", "max")
MOST_INPUTS = 2048
"""As many as OpenAI takes; more than one forward pass reads in any case."""
NOUNS: dict[ModelType, str] = {
    "chat": "generates text: Generate, /v1/chat/completions",
    "embedding": "makes vectors: Encode, /v1/embeddings",
    "classification": "labels texts: Classify, /v1/predict",
    "token-classification": "finds spans: Classify, /v1/predict",
    "prediction": "reads feature vectors: Predict, /v1/predict",
}
"""What each kind does, and where it is asked for."""


class Encoding(msgspec.Struct, frozen=True, kw_only=True):
    """`texts`, or `rows` of features by place or by name, for the base to encode, label or predict.

    `pairs`: what each text is seen together with, empty: nothing. `truncate`: cut texts that are too long.
    """

    base: str
    texts: tuple[str, ...] = ()
    pairs: tuple[str, ...] = ()
    rows: tuple[tuple[float, ...] | dict[str, float], ...] = ()
    truncate: bool = False
    aggregation: Aggregation = "simple"


class Label(msgspec.Struct, frozen=True, array_like=True):
    """A label's name and score."""

    name: str
    score: float


class Span(msgspec.Struct, frozen=True, array_like=True):
    """What stands in a text from character `start` to before `end`."""

    name: str
    score: float
    start: int
    end: int


class Found(msgspec.Struct, frozen=True, array_like=True):
    """What came of one text or row: a vector as little-endian 32-bit floats, labels, the likeliest first, or spans."""

    vector: bytes = b""
    labels: tuple[Label, ...] = ()
    spans: tuple[Span, ...] = ()


class Encoded(msgspec.Struct, frozen=True, kw_only=True):
    """One of `found` a text or row, in their order; tokens read, and how many texts were cut."""

    found: tuple[Found, ...]
    tokens: int = 0
    truncated: int = 0


class WrongKind(Invalid):
    """The base is of a kind that cannot do what was asked."""

    default_code = "wrong_model_type"


def check_kind(name: str, kind: ModelType, *wanted: ModelType) -> None:
    """Raise WrongKind unless the base is of a wanted kind."""
    if kind not in wanted:
        what = " or ".join(wanted)
        raise WrongKind(f"{name} is of type {kind}, which {NOUNS[kind]}; name a base of type {what} for this")


def check_encoding(asked: Encoding) -> None:
    """Raise Invalid for too much, nothing, or an input that means nothing."""
    many = len(asked.texts) + len(asked.rows)
    if not 1 <= many <= MOST_INPUTS:
        raise Invalid(f"{many} inputs; give 1 to {MOST_INPUTS} a call", code="empty_input" if not many else "too_many")
    if not all(asked.texts) or not all(asked.rows):
        raise Invalid("an input is empty; give each at least one word or number", code="empty_input")
    if asked.pairs and len(asked.pairs) != len(asked.texts):
        raise Invalid(f"{len(asked.pairs)} pairs for {len(asked.texts)} texts; give one each or none", code="bad_pairs")
    for row in asked.rows:
        for value in row.values() if isinstance(row, dict) else row:
            if not math.isfinite(value):
                raise Invalid(f"a feature is {value}; give finite numbers", code="bad_features")
