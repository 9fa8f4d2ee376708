"""Whatever a body holds, no route answers 500: hypothesis against a real gateway over a real executor and features."""

import copy
import json
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import aiohttp
import grpc
import msgspec
import pytest
from google.protobuf import descriptor_pool, message_factory
from google.protobuf.descriptor import Descriptor, FieldDescriptor
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from catena.api.executor.v1 import executor_pb2_grpc
from catena.api.features.v1 import features_pb2_grpc
from catena.api.memory.v1 import memory_pb2_grpc
from catena.executor.app import open_executor
from catena.executor.config import ExecutorConfig
from catena.features.app import open_features
from catena.features.config import FeaturesConfig
from catena.gateway.app import open_gateway
from catena.gateway.config import GatewayConfig
from catena.gateway.handlers import openai
from catena.gateway.handlers.http import FeedbackBody, PredictBody
from catena.gateway.handlers.inference import InferBody
from catena.gateway.handlers.keys import KeyBody
from catena.gateway.handlers.passage import Way
from catena.gateway.handlers.ways import ways
from catena.kit.chassis import service_token
from catena.kit.clock import World
from catena.kit.config import BusConfig, House, ModelConfig
from catena.kit.serve import open_server
from catena.kit.testing import nats_server

pytestmark = pytest.mark.contract

TURN = {"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "image_url", "image_url": {"url": "u"}}]}
CALLING = {"role": "assistant", "tool_calls": [{"id": "1", "function": {"name": "f", "arguments": "{}"}}]}
SCHEMA = {"type": "object", "properties": {"a": {"type": "integer", "maximum": 3}}}
CHAT: dict[str, Any] = {
    "model": "small",
    "messages": [TURN, CALLING, {"role": "tool", "tool_call_id": "1", "content": "b"}],
    "tools": [{"type": "function", "function": {"name": "f", "parameters": SCHEMA}}],
    "tool_choice": {"type": "function", "function": {"name": "f"}},
    "response_format": {"type": "json_schema", "json_schema": {"name": "n", "schema": SCHEMA}},
    "stream_options": {"include_usage": True},
    "metadata": {"task": "t", "max_cost": "0.5"},
}
STRUCTS: dict[tuple[str, str], tuple[type[msgspec.Struct], dict[str, Any]]] = {
    ("POST", "/v1/chat/completions"): (openai.ChatBody, CHAT),
    ("POST", "/v1/runs"): (openai.ChatBody, CHAT),
    ("POST", "/v1/completions"): (openai.CompletionBody, {"model": "small", "prompt": "a"}),
    ("POST", "/v1/embeddings"): (openai.EmbeddingBody, {"input": ["a"]}),
    ("POST", "/v1/feedback"): (FeedbackBody, {"execution_id": "e", "thumbs": 1}),
    ("POST", "/v1/predict"): (
        PredictBody,
        {"model_id": "pipeline:p", "data": {"a": ["b"]}, "parameters": {"a": 1}},
    ),
    ("POST", "/v2/models/small/infer"): (
        InferBody,
        {"inputs": [{"name": "a", "shape": [2], "datatype": "BYTES", "data": ["a", "b"]}], "parameters": {"c": 1}},
    ),
    ("POST", "/v1/keys"): (KeyBody, {"tenant": "default"}),
}
BODIED = ("POST", "PUT")
STEPS = [
    {"name": "c", "type": "preprocess", "config": {"operations": ["remove_html", {"truncate": 9}]}, "timeout_s": 1.5},
    {"name": "m", "type": "model", "config": {"model": "small", "prompt": "{c}"}, "on_error": "skip"},
]
FITTING: dict[tuple[str, str], dict[str, Any]] = {
    ("PUT", "/v1/pipelines"): {"pipeline": {"name": "p", "steps": STEPS}},
    ("PUT", "/v1/features/definitions"): {"definition": {"entity_type": "a", "name": "a", "type": "json", "ttl_s": 9}},
    ("PUT", "/v1/features/groups"): {"group": {"name": "a", "entity_type": "a", "features": ["a"]}},
    ("POST", "/v1/batch_predict"): {"model_id": "pipeline:p", "data": ["a", {"b": [1]}], "parameters": {"c": 1}},
}
SIMPLE: dict[int, Any] = {
    FieldDescriptor.CPPTYPE_STRING: "a",
    FieldDescriptor.CPPTYPE_BOOL: True,
    FieldDescriptor.CPPTYPE_DOUBLE: 0.5,
    FieldDescriptor.CPPTYPE_FLOAT: 0.5,
}


class Silent(grpc.GenericRpcHandler):
    """Every service there is: reads the request as its own message, and answers with an empty one."""

    def service(self, handler_call_details: grpc.HandlerCallDetails) -> Any:
        service, _, verb = handler_call_details.method.lstrip("/").partition("/")
        method = descriptor_pool.Default().FindServiceByName(service).FindMethodByName(verb)
        request = message_factory.GetMessageClass(method.input_type)

        async def answer(_: Any, __: Any) -> bytes:
            return b""

        async def stream(_: Any, __: Any) -> AsyncIterator[bytes]:
            yield b""

        if method.server_streaming:
            return grpc.unary_stream_rpc_method_handler(stream, request_deserializer=request.FromString)
        return grpc.unary_unary_rpc_method_handler(answer, request_deserializer=request.FromString)


@pytest.fixture
async def http(tmp_path: Path) -> AsyncIterator[aiohttp.ClientSession]:
    async with AsyncExitStack() as stack:
        url = await stack.enter_async_context(nats_server(tmp_path))
        models = [ModelConfig(name="small"), ModelConfig(name="large")]
        house = House(home=str(tmp_path), bus=BusConfig(url=url), models=models)
        for room in ("adapters", "learner", "memory", "router"):
            silent = open_server(
                house.address(room),
                [lambda server: server.add_generic_rpc_handlers((Silent(),))],
                names=[],
                token=service_token(house),
            )
            await stack.enter_async_context(silent)
        await stack.enter_async_context(open_features(house, FeaturesConfig(), World()))
        await stack.enter_async_context(open_executor(house, ExecutorConfig(attempts=1), World()))
        await stack.enter_async_context(open_gateway(house, GatewayConfig(port=0), World()))
        base = msgspec.json.decode((tmp_path / "run" / "gateway.json").read_bytes())["url"]
        key = (tmp_path / "keys" / "development.key").read_text().strip()
        headers = {"Authorization": f"Bearer {key}", "Content-Type": "application/json"}
        yield await stack.enter_async_context(aiohttp.ClientSession(base, headers=headers))


def passed_through() -> list[Way]:
    """The routes whose bodies are protos."""
    channel = grpc.insecure_channel("localhost:9")
    return ways(
        executor_pb2_grpc.ExecutorServiceStub(channel),
        memory_pb2_grpc.MemoryServiceStub(channel),
        features_pb2_grpc.FeaturesServiceStub(channel),
    )


def example(message: Descriptor, depth: int = 0) -> Any:
    """A message with every field set, as JSON."""
    if message.full_name == "google.protobuf.Value" or depth > 6:
        return {"a": [1]} if message.full_name.startswith("google.protobuf.") else {}
    if message.full_name == "google.protobuf.Struct":
        return {"a": [1]}
    told: dict[str, Any] = {}
    for field in message.fields:
        one = SIMPLE.get(field.cpp_type, 1)
        if field.message_type is not None and field.message_type.GetOptions().map_entry:
            told[field.name] = {"a": example(field.message_type, depth + 1).get("value")}
            continue
        if field.message_type is not None:
            one = example(field.message_type, depth + 1)
        told[field.name] = [one] if field.is_repeated else one
    return told


def routes() -> list[tuple[str, str, dict[str, Any], list[tuple[Any, ...]]]]:
    """Verb, path, a body that fits, and the places in it that may be changed: those of every field that is known."""
    bodies = {(way.verb, way.path): example(way.request.DESCRIPTOR) for way in passed_through() if way.verb in BODIED}
    bodies |= FITTING
    found = [(verb, path, body, places(body)) for (verb, path), body in bodies.items()]
    for (verb, path), (kind, body) in STRUCTS.items():
        unsaid = [(name,) for name in kind.__struct_fields__ if name not in body]
        found.append((verb, path, body, [*places(body), *unsaid]))
    return found


def nested(depth: int, kind: str) -> Any:
    """`depth` containers within each other."""
    made: Any = 1
    for _ in range(depth):
        made = {"a": made} if kind == "object" else [made] if kind == "list" else {"a": [made]}
    return made


EDGES = [0, 1, 7, 31, 32, 53, 63, 64, 70, 1024, 1330]
whole = st.builds(
    lambda sign, power, off: sign * 2**power + off,
    st.sampled_from([1, -1]),
    st.sampled_from(EDGES),
    st.sampled_from([-1, 0, 1]),
)
wild = st.one_of(
    whole,
    st.floats(allow_nan=False, allow_infinity=False),
    st.text(max_size=8),
    st.sampled_from([None, True, "", "\0", "NaN", "-Infinity", "auto", "pipeline:", "small@{a=1e999}", "x" * 5000]),
    st.builds(nested, st.sampled_from([1, 10, 18, 25, 32, 40, 110, 400]), st.sampled_from(["object", "list", "both"])),
    st.sampled_from([[], {}, [None], [[]], {"": 1}, {"a": None}, [1, "a"], {"function": None}, {"function": "x"}]),
)


def places(data: Any, at: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """The way to `data` and to everything inside it."""
    inside = data.items() if isinstance(data, dict) else enumerate(data) if isinstance(data, list) else ()
    return [at, *(place for key, value in inside for place in places(value, (*at, key)))]


def changed(data: Any, place: tuple[Any, ...], value: Any) -> Any:
    """`data` with `value` at `place`; as it was, where an earlier change took the place away."""
    if not place:
        return value
    fits = isinstance(data, dict) if isinstance(place[0], str) else isinstance(data, list) and place[0] < len(data)
    if not fits:
        return data
    copied = copy.copy(data)
    copied[place[0]] = changed(data.get(place[0]) if isinstance(data, dict) else data[place[0]], place[1:], value)
    return copied


@st.composite
def requests(draw: st.DrawFn) -> tuple[str, str, bytes]:
    verb, path, body, known = draw(st.sampled_from(ROUTES))
    for _ in range(draw(st.sampled_from([1, 1, 1, 2]))):
        body = changed(body, draw(st.sampled_from(known)), draw(wild))
    raw = json.dumps(body).encode()
    if draw(st.integers(0, 9)) == 0:
        cut = draw(st.integers(0, len(raw)))
        raw = raw[:cut] + draw(st.sampled_from([b"\xff", b"\xed\xa0\x80", b"\\ud800", b"1" * 400, b""])) + raw[cut:]
    return verb, path, raw


ROUTES = routes()


@settings(
    max_examples=400,
    deadline=None,
    derandomize=True,
    database=None,
    phases=[Phase.generate],
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(request=requests())
async def test_no_body_makes_a_route_fail(http: aiohttp.ClientSession, request: tuple[str, str, bytes]) -> None:
    verb, path, raw = request
    async with http.request(verb, path, data=raw) as answer:
        text = await answer.text()
    assert answer.status != 500, (text, raw[:2000])
    assert "internal" not in text or answer.status == 200, (text, raw[:2000])
