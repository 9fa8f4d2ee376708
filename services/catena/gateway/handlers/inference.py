"""The Open Inference Protocol (KServe v2, HTTP/REST) as a thin facade: each row of a request's tensors is one input.

Chat models, pipelines, classifiers and models of feature vectors answer in the tensor `output`, embedding models in
`embedding`. Binary tensors are read (Triton's extension), answers are JSON, which its clients read as well.
"""

from dataclasses import dataclass
from typing import Any

import msgspec
from google.protobuf import json_format
from starlette.requests import Request
from starlette.responses import Response

from catena.api.adapters.v1 import adapters_pb2, adapters_pb2_grpc
from catena.api.executor.v1 import executor_pb2
from catena.gateway.core.choice import PIPELINE
from catena.gateway.core.keys import Key
from catena.gateway.core.tensors import Tensor, bad, column, from_bytes, rows_of, tensor
from catena.gateway.handlers.asking import Asking
from catena.gateway.handlers.context import read_context
from catena.gateway.handlers.exchange import Reader, check_plain, decode, json_response
from catena.gateway.handlers.keys import admin
from catena.kit.errors import Invalid, Missing
from catena.kit.jsonvalue import from_json, struct_from_json

VERSION = "1"
LENGTH = "inference-header-content-length"
LOCAL = "local"


class InputTensor(msgspec.Struct, frozen=True, kw_only=True):
    """A tensor of a request; with `parameters.binary_data_size` its data follow the JSON."""

    name: str
    shape: list[int]
    datatype: str
    data: Any = None
    parameters: dict[str, Any] = {}


class OutputWanted(msgspec.Struct, frozen=True, kw_only=True):
    """A tensor that is wanted; there is one."""

    name: str
    parameters: dict[str, Any] = {}


class InferBody(msgspec.Struct, frozen=True, kw_only=True):
    """The body of /v2/models/{name}/infer; `parameters` are the model's or pipeline's."""

    inputs: list[InputTensor]
    id: str = ""
    parameters: dict[str, Any] = {}
    outputs: list[OutputWanted] = []


class IndexBody(msgspec.Struct, frozen=True, kw_only=True):
    """The body of /v2/repository/index: `ready` leaves out what cannot be called."""

    ready: bool = False


class RepositoryBody(msgspec.Struct, frozen=True, kw_only=True):
    """The body of load and unload; Triton's parameters have no meaning here."""

    parameters: dict[str, Any] = {}


@dataclass(frozen=True, slots=True, kw_only=True)
class Inference:
    """Asks the executor and, to load and unload, the adapters."""

    asking: Asking
    adapters: "adapters_pb2_grpc.AdaptersServiceAsyncStub"
    reader: Reader

    async def server(self, _: Request, __: Key) -> Response:
        """Who serves."""
        return json_response({"name": "catena", "version": VERSION, "extensions": ["binary_tensor_data"]})

    async def live(self, _: Request) -> Response:
        """Whether the gateway is up."""
        return json_response({"live": True})

    async def ready(self, _: Request) -> Response:
        """Whether it serves."""
        return json_response({"ready": True})

    async def model(self, request: Request, _: Key) -> Response:
        """What a model takes and gives. Raises Missing."""
        model = await self._model(request.path_params["name"])
        embeds = model.type == "embedding"
        kind = "FP32" if model.type == "prediction" else "BYTES"
        gives = {"name": "embedding", "datatype": "FP32", "shape": [-1, -1]} if embeds else _OUTPUT
        told = {"name": model.name, "versions": [VERSION], "platform": f"catena-{model.type or 'chat'}"}
        return json_response(
            {**told, "inputs": [{"name": "input", "datatype": kind, "shape": [-1]}], "outputs": [gives]}
        )

    async def model_ready(self, request: Request, _: Key) -> Response:
        """200 where the model can be called. Raises Missing, Invalid (`model_not_ready`)."""
        model = await self._model(request.path_params["name"])
        if model.problem or model.status == "disabled":
            raise Invalid(f"{model.name}: {model.problem or 'it is disabled'}", code="model_not_ready")
        return json_response({"name": model.name, "ready": True})

    async def infer(self, request: Request, key: Key) -> Response:
        """A result a row. Raises Invalid, Missing."""
        name = request.path_params["name"]
        body, inputs = await self._read(request)
        rows = rows_of(inputs)
        model = await self._model(name)
        if model.type == "embedding":
            output = await self._embedded(key, name, rows)
        else:
            output = await self._predicted(request, key, name, rows, body.parameters)
        if any(wanted.name != output.name for wanted in body.outputs):
            names = ", ".join(repr(wanted.name) for wanted in body.outputs)
            raise Invalid(f"outputs {names} are asked for; {name} gives {output.name!r}", code="unknown_output")
        told = {"name": output.name, "datatype": output.datatype, "shape": output.shape, "data": output.data}
        return json_response({"model_name": name, "model_version": VERSION, "id": body.id, "outputs": [told]})

    async def index(self, request: Request, _: Key) -> Response:
        """Every model and pipeline with its state."""
        raw = await self.reader.raw(request)
        wanted = decode(raw, IndexBody) if raw else IndexBody()
        told = [_state(model) for model in await self._models()]
        return json_response([one for one in told if one["state"] == "READY" or not wanted.ready])

    async def load(self, request: Request, key: Key) -> Response:
        """Make a local base or adapter resident; for administrators."""
        model = await self._local(request, key)
        await self.adapters.Load(adapters_pb2.LoadRequest(model=model))
        return json_response({})

    async def unload(self, request: Request, key: Key) -> Response:
        """Drain and free it; it is loaded again when it is asked for. For administrators."""
        model = await self._local(request, key)
        await self.adapters.Unload(adapters_pb2.UnloadRequest(model=model))
        return json_response({})

    async def _local(self, request: Request, key: Key) -> str:
        admin(key)
        raw = await self.reader.raw(request)
        if raw:
            decode(raw, RepositoryBody)
        model = await self._model(request.path_params["name"])
        if model.provider != LOCAL:
            raise Invalid(f"{model.name} is served elsewhere; there is nothing to load", code="not_local")
        return str(model.name)

    async def _models(self) -> list[executor_pb2.Model]:
        listed = await self.asking.executor.ListModels(executor_pb2.ListModelsRequest())
        stored = await self.asking.executor.ListPipelines(executor_pb2.ListPipelinesRequest(page_size=1000))
        pipelines = [executor_pb2.Model(name=PIPELINE + one.name, type="pipeline") for one in stored.pipelines]
        return [*listed.models, *pipelines]

    async def _model(self, name: str) -> executor_pb2.Model:
        for model in await self._models():
            if model.name == name:
                return model
        # An adapter may be named by version or alias, which no list spells out.
        if "@" in name:
            return executor_pb2.Model(name=name, provider=LOCAL, type="chat")
        raise Missing(f"no model {name!r}; list them with POST /v2/repository/index", code="unknown_model")

    async def _embedded(self, key: Key, name: str, rows: list[Any]) -> Tensor:
        texts = [row for row in rows if isinstance(row, str)]
        if len(texts) < len(rows):
            raise Invalid(f"{name} embeds texts; send one BYTES tensor", code="bad_tensor")
        made = await self.asking.embed(key, executor_pb2.EmbedRequest(model=name, texts=texts))
        width = len(made.vectors[0].values) if made.vectors else 0
        flat = [value for vector in made.vectors for value in vector.values]
        return Tensor(name="embedding", datatype="FP32", shape=(len(made.vectors), width), data=flat)

    async def _predicted(
        self, request: Request, key: Key, name: str, rows: list[Any], parameters: dict[str, Any]
    ) -> Tensor:
        wanted = executor_pb2.BatchPredictRequest(
            model_id=await self.asking.names.meaning(key.tenant, name),
            data=[from_json(row) for row in rows],
            parameters=struct_from_json(parameters),
            context=read_context(request.headers, {}),
        )
        done = await self.asking.predict_many(key, wanted)
        results = [json_format.MessageToDict(one.result) for one in done.results]
        return column("output", results, lambda value: msgspec.json.encode(value).decode())

    async def _read(self, request: Request) -> tuple[InferBody, list[Tensor]]:
        raw = await self.reader.raw(request)
        length = request.headers.get(LENGTH, "")
        if length and (not length.isascii() or not length.isdigit() or int(length) > len(raw)):
            raise Invalid(f"{LENGTH} {length[:20]!r} is not within the body", code="bad_request")
        end = int(length) if length else len(raw)
        body, binary = decode(raw[:end], InferBody), memoryview(raw)[end:]
        tensors, at = [], 0
        for one in body.inputs:
            size = one.parameters.get("binary_data_size")
            if size is None:
                tensors.append(tensor(one.name, one.datatype, one.shape, one.data, one.parameters))
                continue
            if type(size) is not int or size < 0 or at + size > len(binary):
                raise bad(one.name, f"binary_data_size {size!r} is not within the body")
            piece = bytes(binary[at : at + size])
            tensors.append(from_bytes(one.name, one.datatype, one.shape, piece, one.parameters))
            check_plain(list(tensors[-1].data))
            at += size
        if at < len(binary):
            raise Invalid(f"{len(binary) - at} bytes belong to no tensor", code="bad_request")
        return body, tensors


_OUTPUT = {"name": "output", "datatype": "BYTES", "shape": [-1]}


def _state(model: executor_pb2.Model) -> dict[str, str]:
    ready = not model.problem and model.status != "disabled"
    state = "READY" if ready else "UNAVAILABLE"
    return {"name": model.name, "version": VERSION, "state": state, "reason": model.problem}
