"""The Open Inference Protocol over gRPC, at a real gateway and executor: by its stubs, and by Triton's own client."""

import asyncio
import json
import os
import struct
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import pytest

from catena.api.inference.v2 import inference_pb2 as pb
from catena.api.inference.v2 import inference_pb2_grpc
from catena.kit.dial import dial
from catena.kit.errors import Denied, Invalid, Missing
from tests.contract.gateway.whole import Whole, whole_gateway

pytestmark = pytest.mark.contract
TRITON = "CATENA_TRITON_GRPC_PYTHON"


@pytest.fixture
async def whole(tmp_path: Path) -> AsyncIterator[Whole]:
    async with whole_gateway(tmp_path) as running:
        yield running


@pytest.fixture
async def stub(whole: Whole) -> AsyncIterator[Any]:
    async with dial(whole.grpc, token=whole.key) as channel:
        yield inference_pb2_grpc.GRPCInferenceServiceStub(channel)


def asked(model: str, *texts: str, **more: Any) -> pb.ModelInferRequest:
    contents = pb.InferTensorContents(bytes_contents=[text.encode() for text in texts])
    tensor = pb.ModelInferRequest.InferInputTensor(
        name="input", datatype="BYTES", shape=[len(texts)], contents=contents
    )
    return pb.ModelInferRequest(model_name=model, inputs=[tensor], **more)


def raw(*texts: str) -> bytes:
    return b"".join(struct.pack("<I", len(text)) + text.encode() for text in texts)


async def test_it_says_that_it_lives_without_a_key(whole: Whole) -> None:
    async with grpc.aio.insecure_channel(whole.grpc) as channel:
        keyless: Any = inference_pb2_grpc.GRPCInferenceServiceStub(channel)
        assert (await keyless.ServerLive(pb.ServerLiveRequest())).live
        assert (await keyless.ServerReady(pb.ServerReadyRequest())).ready
    async with dial(whole.grpc, token="wrong") as channel:
        wrong: Any = inference_pb2_grpc.GRPCInferenceServiceStub(channel)
        with pytest.raises(Denied):
            await wrong.ModelInfer(asked("large", "hello"))
        with pytest.raises(Denied):
            await wrong.ServerMetadata(pb.ServerMetadataRequest())


async def test_a_row_of_texts_is_a_question_each_answered_as_it_was_asked(stub: Any) -> None:
    typed = await stub.ModelInfer(asked("large", "hello there", "good day", id="q7"))
    assert (typed.id, typed.model_name) == ("q7", "large")
    (output,) = typed.outputs
    assert (output.name, output.datatype, list(output.shape)) == ("output", "BYTES", [2])
    assert list(output.contents.bytes_contents) == [b"HELLO THERE", b"GOOD DAY"]

    request = asked("large", "hello there", "good day", raw_input_contents=[raw("hello there", "good day")])
    request.inputs[0].ClearField("contents")
    told = await stub.ModelInfer(request)
    assert list(told.raw_output_contents) == [raw("HELLO THERE", "GOOD DAY")]
    assert not told.outputs[0].HasField("contents")


async def test_an_embedding_model_gives_a_matrix(stub: Any) -> None:
    (output,) = (await stub.ModelInfer(asked("far-embed", "hello there", "good day"))).outputs
    assert (output.name, list(output.shape)) == ("embedding", [2, 2])
    assert list(output.contents.fp32_contents) == [11.0, 1.0, 8.0, 1.0]


async def test_what_asks_and_the_parameters_reach_the_model(whole: Whole, stub: Any) -> None:
    request = asked("far", "hello")
    request.parameters["max_tokens"].int64_param = 7
    capped = (("x-catena-max-cost", "0.0000001"),)
    await stub.ModelInfer(request)
    assert whole.model.bodies[-1]["max_tokens"] == 7
    with pytest.raises(Invalid) as caught:
        await stub.ModelInfer(request, metadata=capped)
    assert caught.value.code == "cost_cap"


async def test_models_are_described_and_unknown_ones_are_not(stub: Any) -> None:
    told = await stub.ModelMetadata(pb.ModelMetadataRequest(name="far-embed"))
    assert (told.platform, told.inputs[0].datatype, told.outputs[0].name) == ("catena-embedding", "BYTES", "embedding")
    assert (await stub.ModelReady(pb.ModelReadyRequest(name="far"))).ready
    assert (await stub.ServerMetadata(pb.ServerMetadataRequest())).name == "catena"
    for call in (stub.ModelReady(pb.ModelReadyRequest(name="nowhere")), stub.ModelInfer(asked("nowhere", "x"))):
        with pytest.raises(Missing, match="nowhere"):
            await call


def wrong(**change: Any) -> pb.ModelInferRequest:
    request = asked("large", "a", "b")
    for name, value in change.items():
        setattr(request.inputs[0], name, value)
    return request


def other(data: pb.InferTensorContents | None, *raw_contents: bytes) -> pb.ModelInferRequest:
    request = asked("large", "a", "b", raw_input_contents=raw_contents)
    request.inputs[0].ClearField("contents")
    if data is not None:
        request.inputs[0].contents.CopyFrom(data)
    return request


@pytest.mark.parametrize(
    ("request_", "told"),
    [
        (wrong(datatype="FP99"), "FP99"),
        (wrong(datatype="FP32"), "holds 2 elements, data 0"),
        (other(pb.InferTensorContents(bytes_contents=[b"a"])), "holds 2 elements, data 1"),
        (other(pb.InferTensorContents(bytes_contents=[b"a", b"\xff"])), "not UTF-8"),
        (other(pb.InferTensorContents(), raw("a", "b")), "all of them raw, or none"),
        (other(None, raw("a", "b"), raw("c")), "2 raw contents for 1 inputs"),
        (other(None, b"\x09"), "ends? within a length"),
        (asked("large", "a", outputs=[pb.ModelInferRequest.InferRequestedOutputTensor(name="logits")]), "'output'"),
    ],
)
async def test_what_cannot_be_read_is_refused(stub: Any, request_: pb.ModelInferRequest, told: str) -> None:
    with pytest.raises(Invalid, match=told):
        await stub.ModelInfer(request_)


SCRIPT = """
import json, sys
import numpy as np
import tritonclient.grpc as triton
url, key = sys.argv[1:]
client = triton.InferenceServerClient(url)
head = {"authorization": f"Bearer {key}"}

texts = triton.InferInput("input", [2], "BYTES")
texts.set_data_from_numpy(np.array(["hello there", "gr\\u00fc\\u00df"], dtype=object))
numbers = triton.InferInput("input", [2, 2], "FP32")
numbers.set_data_from_numpy(np.array([[1.0, 2.0], [3.0, 4.0]], dtype=np.float32))

def refusal(call, *args, **more):
    try:
        call(*args, **more)
    except triton.InferenceServerException as error:
        return [error.status(), error.message()]

wanted = triton.InferRequestedOutput("embedding")
told = {
    "live": client.is_server_live(),
    "ready": client.is_server_ready(),
    "server": client.get_server_metadata(headers=head).name,
    "model": client.is_model_ready("large", headers=head),
    "gone": refusal(client.is_model_ready, "nowhere", headers=head),
    "outputs": client.get_model_metadata("large", headers=head, as_json=True)["outputs"],
    "answers": [one.decode() for one in client.infer("large", [texts], headers=head).as_numpy("output")],
    "matrix": client.infer("far-embed", [texts], outputs=[wanted], headers=head).as_numpy("embedding").tolist(),
    "keyless": refusal(client.infer, "large", [texts]),
    "numbers": refusal(client.infer, "far-embed", [numbers], headers=head),
}
print(json.dumps(told))
"""


@pytest.mark.peer
@pytest.mark.skipif(TRITON not in os.environ, reason=f"{TRITON} names no python with tritonclient[grpc]")
async def test_tritons_client_infers_and_is_told_what_is_wrong(whole: Whole) -> None:
    child = await asyncio.create_subprocess_exec(
        os.environ[TRITON], "-c", SCRIPT, whole.grpc, whole.key, stdout=asyncio.subprocess.PIPE
    )
    out, _ = await asyncio.wait_for(child.communicate(), 60)
    told = json.loads(out)
    assert (told["live"], told["ready"], told["server"], told["model"]) == (True, True, "catena", True)
    assert told["answers"] == ["HELLO THERE", "GRÜSS"]
    assert told["matrix"] == [[11.0, 1.0], [4.0, 1.0]]
    assert told["outputs"] == [{"name": "output", "datatype": "BYTES", "shape": ["-1"]}]
    assert told["gone"][0].endswith("NOT_FOUND")
    assert told["keyless"][0].endswith("PERMISSION_DENIED")
    assert "embeds texts" in told["numbers"][1]
