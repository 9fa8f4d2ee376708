"""The Open Inference Protocol over gRPC: its service beside GatewayService, with the same keys, names and budgets.

Keys come as over HTTP, in the call's metadata: `authorization: Bearer KEY`; so does what the context says.
"""

from dataclasses import dataclass
from typing import Any

from catena.api.inference.v2 import inference_pb2 as pb
from catena.api.inference.v2 import inference_pb2_grpc
from catena.gateway.core.tensors import Tensor, bad, from_bytes, rows_of, tensor, to_bytes
from catena.gateway.handlers.context import read_context
from catena.gateway.handlers.exchange import check_plain
from catena.gateway.handlers.grpc import secret_of
from catena.gateway.handlers.inferring import (
    SERVER,
    VERSION,
    Described,
    Inferring,
    Wanted,
    callable_now,
    gives,
    platform,
    takes,
)
from catena.kit.errors import Invalid

FIELDS = {
    "BOOL": "bool_contents", "INT8": "int_contents", "INT16": "int_contents", "INT32": "int_contents",
    "INT64": "int64_contents", "UINT8": "uint_contents", "UINT16": "uint_contents", "UINT32": "uint_contents",
    "UINT64": "uint64_contents", "FP32": "fp32_contents", "FP64": "fp64_contents", "BYTES": "bytes_contents",
}  # fmt: skip
"""Where elements of each type are; halves (FP16) come raw alone."""
TensorMetadata = pb.ModelMetadataResponse.TensorMetadata


@dataclass(frozen=True, slots=True)
class InferenceHandlers(inference_pb2_grpc.GRPCInferenceServiceServicer):
    """Proto in, the same inferring as over HTTP, proto out."""

    inferring: Inferring

    async def ServerLive(self, request: pb.ServerLiveRequest, context: Any) -> pb.ServerLiveResponse:
        """Whether the gateway is up."""
        return pb.ServerLiveResponse(live=True)

    async def ServerReady(self, request: pb.ServerReadyRequest, context: Any) -> pb.ServerReadyResponse:
        """Whether it serves."""
        return pb.ServerReadyResponse(ready=True)

    async def ModelReady(self, request: pb.ModelReadyRequest, context: Any) -> pb.ModelReadyResponse:
        """Whether a model can be called. Raises Missing."""
        return pb.ModelReadyResponse(ready=callable_now(await self.inferring.model(request.name)))

    async def ServerMetadata(self, request: pb.ServerMetadataRequest, context: Any) -> pb.ServerMetadataResponse:
        """Who serves."""
        return pb.ServerMetadataResponse(name=SERVER, version=VERSION)

    async def ModelMetadata(self, request: pb.ModelMetadataRequest, context: Any) -> pb.ModelMetadataResponse:
        """What a model takes and gives. Raises Missing."""
        model = await self.inferring.model(request.name)
        return pb.ModelMetadataResponse(
            name=model.name,
            versions=[VERSION],
            platform=platform(model),
            inputs=[_metadata(takes(model))],
            outputs=[_metadata(gives(model))],
        )

    async def ModelInfer(self, request: pb.ModelInferRequest, context: Any) -> pb.ModelInferResponse:
        """A result a row. Raises Invalid, Missing."""
        headers = dict(context.invocation_metadata() or ())
        wanted = Wanted(
            model=request.model_name,
            rows=rows_of(tensors_of(request)),
            parameters={name: _plain(value) for name, value in request.parameters.items()},
            outputs=[one.name for one in request.outputs],
            context=read_context(headers, {}),
        )
        key = self.inferring.asking.gateway.identify(secret_of(headers))
        output = await self.inferring.infer(key, wanted)
        response = pb.ModelInferResponse(model_name=request.model_name, model_version=VERSION, id=request.id)
        told = response.outputs.add(name=output.name, datatype=output.datatype, shape=output.shape)
        if request.raw_input_contents:
            response.raw_output_contents.append(to_bytes(output))
        else:
            _fill(told.contents, output)
        return response


def tensors_of(request: pb.ModelInferRequest) -> list[Tensor]:
    """The inputs, raw or not. Raises Invalid (`bad_tensor`, `bad_request`)."""
    raw, inputs = request.raw_input_contents, request.inputs
    if raw and (len(raw) != len(inputs) or any(one.HasField("contents") for one in inputs)):
        told = f"{len(raw)} raw contents for {len(inputs)} inputs; send all of them raw, or none"
        raise Invalid(told, code="bad_request")
    if raw:
        pairs = zip(inputs, raw, strict=True)
        found = [from_bytes(one.name, one.datatype, one.shape, data, {}) for one, data in pairs]
    else:
        found = [tensor(one.name, one.datatype, one.shape, _elements(one), {}) for one in inputs]
    for one in found:
        check_plain(list(one.data))
    return found


def _elements(one: pb.ModelInferRequest.InferInputTensor) -> list[Any]:
    field = FIELDS.get(one.datatype, "")
    data = list(getattr(one.contents, field)) if field else []
    if one.datatype != "BYTES":
        return data
    try:
        return [text.decode() for text in data]
    except UnicodeDecodeError:
        raise bad(one.name, "a text is not UTF-8") from None


def _fill(contents: pb.InferTensorContents, output: Tensor) -> None:
    texts = output.datatype == "BYTES"
    getattr(contents, FIELDS[output.datatype]).extend(one.encode() if texts else one for one in output.data)


def _metadata(told: Described) -> TensorMetadata:
    return TensorMetadata(name=told.name, datatype=told.datatype, shape=told.shape)


def _plain(value: pb.InferParameter) -> Any:
    kind = value.WhichOneof("parameter_choice")
    return getattr(value, kind) if kind else None
