"""Routes whose JSON is the room's own message: pipelines, runs, features and memory pass straight through.

Field names are the protos'; path parameters fill fields of the same name.
"""

import json
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any

from google.protobuf import json_format
from google.protobuf.message import Message
from starlette.requests import Request
from starlette.responses import Response

from catena.api.executor.v1 import executor_pb2
from catena.gateway.core.keys import Key
from catena.gateway.handlers.exchange import Reader, decode
from catena.kit.errors import Invalid


@dataclass(frozen=True, slots=True, kw_only=True)
class Way:
    """A route to a method of a room."""

    verb: str
    path: str
    request: type[Message]
    call: Callable[[Any], Awaitable[Message]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Passage:
    """The ways, and how bodies are read."""

    ways: Sequence[Way]
    reader: Reader

    async def call(self, way: Way, request: Request, _: Key) -> Response:
        """Body, query and path as the room's request; its answer as JSON. Raises Invalid (`bad_request`)."""
        raw = await self.reader.raw(request) if way.verb in ("POST", "PUT") else b""
        fields = decode(raw, dict[str, Any]) if raw else {}
        fields |= {**request.query_params, **request.path_params}
        try:
            wanted = json_format.ParseDict(fields, way.request())
        except json_format.ParseError as error:
            raise Invalid(f"the request does not fit: {error}", code="bad_request") from None
        return Response(message_json(await way.call(wanted)), media_type="application/json")

    def predicted(self, done: executor_pb2.PredictResponse) -> dict[str, Any]:
        """`{result, latency}` and the steps."""
        return {
            "result": json_format.MessageToDict(done.result),
            "latency": round(done.duration_ms, 3),
            "cached": done.cached,
            "cost_usd": done.cost_usd,
            "execution_id": done.execution_id,
            "steps": [
                {
                    "name": step.name,
                    "output": json_format.MessageToDict(step.output),
                    "latency": round(step.duration_ms, 3),
                    "error": step.error or None,
                }
                for step in done.steps
            ],
        }


def message_json(message: Message) -> bytes:
    """A message as JSON with the protos' field names."""
    plain = json_format.MessageToDict(
        message, preserving_proto_field_name=True, always_print_fields_with_no_presence=True
    )
    return json.dumps(plain).encode()
