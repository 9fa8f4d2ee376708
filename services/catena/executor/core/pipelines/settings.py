"""What each type of step can be told."""

from collections.abc import Mapping
from typing import Any, Literal

import msgspec

from catena.kit.config import ModelType


class Told(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A step's settings; an unknown key is refused. Texts are templates."""


class Clean(Told, frozen=True, kw_only=True):
    """preprocess, postprocess: operations one after the other."""

    operations: list[str | dict[str, Any]]
    input: Any = "{input}"


class Transform(Told, frozen=True, kw_only=True):
    """transform: a new value out of those there are."""

    value: Any


class Template(Told, frozen=True, kw_only=True):
    """template: a text by a Jinja template over `data`, `parameters`, `input` and the steps before, in a sandbox."""

    template: str


class Feature(Told, frozen=True, kw_only=True):
    """feature: what is true of an entity now; give `group` or `features`."""

    entity_type: str
    entity_id: str
    group: str = ""
    features: list[str] = msgspec.field(default_factory=list)


class Recall(Told, frozen=True, kw_only=True):
    """memory: what is known; the output has `hits` and their `text` as one."""

    collection: str = ""
    query: str = "{input}"
    n_results: int = 3
    format: str = "{text}"


class ModelCall(Told, frozen=True, kw_only=True):
    """model: `prompt` or `messages` for chat and completion, `input` texts or feature vectors for the other kinds.

    `shape` runs a configured strategy with `model` (empty: its own) as the main one. `labels` are examples by label, by
    which an embedding model classifies; without them `model` is itself of the step's kind. `truncate` cuts texts that
    are too long for it, `top` keeps the likeliest labels, `aggregation` is how tokens become spans.
    `expected` makes the answer be judged by exact comparison.
    """

    kind: Literal["chat", "completion", "embedding", "classification", "token-classification", "prediction"] = "chat"
    model: str = ""
    shape: str = ""
    system: str = ""
    prompt: str = "{input}"
    messages: list[dict[str, str]] = msgspec.field(default_factory=list)
    input: Any = "{input}"
    temperature: float | None = None
    max_tokens: int = 0
    seed: int | None = None
    stop: list[str] = msgspec.field(default_factory=list)
    json_schema: dict[str, Any] | None = None
    labels: dict[str, list[str]] = msgspec.field(default_factory=dict)
    truncate: bool = False
    top: int = 0
    aggregation: str = ""
    expected: str = ""

    @property
    def model_type(self) -> ModelType:
        """What the step's model has to be."""
        if self.kind == "completion":
            return "chat"
        return "embedding" if self.labels else self.kind


class Nested(Told, frozen=True, kw_only=True):
    """pipeline: another pipeline as a step; `version` 0: the newest."""

    name: str
    version: int = 0
    data: Any = "{input}"


class Inner(Told, frozen=True, kw_only=True):
    """The step that a batch repeats; it sees `{item}` and `{index}`."""

    type: str
    config: dict[str, Any] = msgspec.field(default_factory=dict)


class Batch(Told, frozen=True, kw_only=True):
    """batch: one step over every item. `size` above 1: `{item}` is a list of that many, and so is the output."""

    step: Inner
    items: Any = "{input}"
    size: int = 1
    concurrency: int = 10


KINDS: Mapping[str, type[Told]] = {
    "preprocess": Clean,
    "postprocess": Clean,
    "transform": Transform,
    "template": Template,
    "feature": Feature,
    "memory": Recall,
    "model": ModelCall,
    "pipeline": Nested,
    "batch": Batch,
}
