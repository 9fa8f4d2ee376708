"""The Open Inference Protocol (KServe v2, HTTP/REST) as a thin facade: each row of a request's tensors is one input.

Chat models, pipelines, classifiers and models of feature vectors answer in the tensor `output`, embedding models in
`embedding`. Binary tensors are read (Triton's extension), answers are JSON, which its clients read as well.
"""

from dataclasses import asdict, dataclass
from typing import Any

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from catena.api.adapters.v1 import adapters_pb2, adapters_pb2_grpc
from catena.api.executor.v1 import executor_pb2
from catena.gateway.core.keys import Key
from catena.gateway.core.tensors import Tensor, bad, from_bytes, rows_of, tensor
from catena.gateway.handlers.context import read_context
from catena.gateway.handlers.exchange import Reader, check_plain, decode, json_response
from catena.gateway.handlers.inferring import (
    LOCAL,
    SERVER,
    VERSION,
    Inferring,
    Wanted,
    callable_now,
    gives,
    platform,
    takes,
)
from catena.gateway.handlers.keys import admin
from catena.kit.errors import Invalid

LENGTH = "inference-header-content-length"


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
    """Asks what infers and, to load and unload, the adapters."""

    inferring: Inferring
    adapters: "adapters_pb2_grpc.AdaptersServiceAsyncStub"
    reader: Reader

    async def server(self, _: Request, __: Key) -> Response:
        """Who serves."""
        return json_response({"name": SERVER, "version": VERSION, "extensions": ["binary_tensor_data"]})

    async def live(self, _: Request) -> Response:
        """Whether the gateway is up."""
        return json_response({"live": True})

    async def ready(self, _: Request) -> Response:
        """Whether it serves."""
        return json_response({"ready": True})

    async def model(self, request: Request, _: Key) -> Response:
        """What a model takes and gives. Raises Missing."""
        model = await self.inferring.model(request.path_params["name"])
        told = {"name": model.name, "versions": [VERSION], "platform": platform(model)}
        inputs, outputs = [asdict(takes(model))], [asdict(gives(model))]
        return json_response({**told, "inputs": inputs, "outputs": outputs})

    async def model_ready(self, request: Request, _: Key) -> Response:
        """200 where the model can be called. Raises Missing, Invalid (`model_not_ready`)."""
        model = await self.inferring.model(request.path_params["name"])
        if not callable_now(model):
            raise Invalid(f"{model.name}: {model.problem or 'it is disabled'}", code="model_not_ready")
        return json_response({"name": model.name, "ready": True})

    async def infer(self, request: Request, key: Key) -> Response:
        """A result a row. Raises Invalid, Missing."""
        name = request.path_params["name"]
        body, inputs = await self._read(request)
        wanted = Wanted(
            model=name,
            rows=rows_of(inputs),
            parameters=body.parameters,
            outputs=[one.name for one in body.outputs],
            context=read_context(request.headers, {}),
        )
        output = await self.inferring.infer(key, wanted)
        told = {"name": output.name, "datatype": output.datatype, "shape": output.shape, "data": output.data}
        return json_response({"model_name": name, "model_version": VERSION, "id": body.id, "outputs": [told]})

    async def index(self, request: Request, _: Key) -> Response:
        """Every model and pipeline with its state."""
        raw = await self.reader.raw(request)
        wanted = decode(raw, IndexBody) if raw else IndexBody()
        told = [_state(model) for model in await self.inferring.models()]
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
        model = await self.inferring.model(request.path_params["name"])
        if model.provider != LOCAL:
            raise Invalid(f"{model.name} is served elsewhere; there is nothing to load", code="not_local")
        return str(model.name)

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


def _state(model: executor_pb2.Model) -> dict[str, str]:
    state = "READY" if callable_now(model) else "UNAVAILABLE"
    return {"name": model.name, "version": VERSION, "state": state, "reason": model.problem}
