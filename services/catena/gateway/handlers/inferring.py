"""What the Open Inference Protocol asks, whatever carries it: models, pipelines, and a result a row of tensors."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec
from google.protobuf import json_format

from catena.api.executor.v1 import executor_pb2
from catena.api.types.v1 import types_pb2
from catena.gateway.core.choice import PIPELINE
from catena.gateway.core.keys import Key
from catena.gateway.core.tensors import Tensor, column
from catena.gateway.handlers.asking import Asking
from catena.kit.errors import Invalid, Missing
from catena.kit.jsonvalue import from_json, struct_from_json

SERVER, VERSION = "catena", "1"
LOCAL = "local"


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """An inference: `rows` as `core.tensors.rows_of` gives them, and the `outputs` asked for, none: all."""

    model: str
    rows: Sequence[Any]
    parameters: Mapping[str, Any]
    outputs: Sequence[str]
    context: types_pb2.RequestContext


@dataclass(frozen=True, slots=True, kw_only=True)
class Described:
    """A tensor that a model takes or gives; -1: of any size."""

    name: str
    datatype: str
    shape: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Inferring:
    """Asks the executor."""

    asking: Asking

    async def models(self) -> list[executor_pb2.Model]:
        """Every model and pipeline."""
        listed = await self.asking.executor.ListModels(executor_pb2.ListModelsRequest())
        stored = await self.asking.executor.ListPipelines(executor_pb2.ListPipelinesRequest(page_size=1000))
        pipelines = [executor_pb2.Model(name=PIPELINE + one.name, type="pipeline") for one in stored.pipelines]
        return [*listed.models, *pipelines]

    async def model(self, name: str) -> executor_pb2.Model:
        """One of them. Raises Missing."""
        for model in await self.models():
            if model.name == name:
                return model
        # An adapter may be named by version or alias, which no list spells out.
        if "@" in name:
            return executor_pb2.Model(name=name, provider=LOCAL, type="chat")
        raise Missing(f"no model {name!r}; list them with POST /v2/repository/index", code="unknown_model")

    async def infer(self, key: Key, wanted: Wanted) -> Tensor:
        """A result a row. Raises Invalid, Missing."""
        model = await self.model(wanted.model)
        embeds = model.type == "embedding"
        output = await (self._embedded(key, wanted) if embeds else self._predicted(key, wanted))
        if any(name != output.name for name in wanted.outputs):
            names = ", ".join(map(repr, wanted.outputs))
            raise Invalid(f"outputs {names} are asked for; {wanted.model} gives {output.name!r}", code="unknown_output")
        return output

    async def _embedded(self, key: Key, wanted: Wanted) -> Tensor:
        texts = [row for row in wanted.rows if isinstance(row, str)]
        if len(texts) < len(wanted.rows):
            raise Invalid(f"{wanted.model} embeds texts; send one BYTES tensor", code="bad_tensor")
        made = await self.asking.embed(key, executor_pb2.EmbedRequest(model=wanted.model, texts=texts))
        width = len(made.vectors[0].values) if made.vectors else 0
        flat = [value for vector in made.vectors for value in vector.values]
        return Tensor(name="embedding", datatype="FP32", shape=(len(made.vectors), width), data=flat)

    async def _predicted(self, key: Key, wanted: Wanted) -> Tensor:
        asked = executor_pb2.BatchPredictRequest(
            model_id=await self.asking.names.meaning(key.tenant, wanted.model),
            data=[from_json(row) for row in wanted.rows],
            parameters=struct_from_json(dict(wanted.parameters)),
            context=wanted.context,
        )
        done = await self.asking.predict_many(key, asked)
        results = [json_format.MessageToDict(one.result) for one in done.results]
        return column("output", results, lambda value: msgspec.json.encode(value).decode())


def takes(model: executor_pb2.Model) -> Described:
    """The tensor that a model takes."""
    return Described(name="input", datatype="FP32" if model.type == "prediction" else "BYTES", shape=(-1,))


def gives(model: executor_pb2.Model) -> Described:
    """The tensor that a model gives."""
    if model.type == "embedding":
        return Described(name="embedding", datatype="FP32", shape=(-1, -1))
    return Described(name="output", datatype="BYTES", shape=(-1,))


def platform(model: executor_pb2.Model) -> str:
    """What kind of model it is."""
    return f"catena-{model.type or 'chat'}"


def callable_now(model: executor_pb2.Model) -> bool:
    """Whether it can be called."""
    return not model.problem and model.status != "disabled"
