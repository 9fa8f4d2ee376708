"""Routes whose JSON is the room's own message: pipelines, runs, features and memory pass straight through.

Field names are the protos'; path parameters fill fields of the same name.
"""

import json
import re
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar, cast

from google.protobuf import json_format
from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.message import Message
from starlette.requests import Request
from starlette.responses import Response

from catena.api.executor.v1 import executor_pb2
from catena.gateway.core.keys import Key
from catena.gateway.handlers.exchange import Reader, decode
from catena.gateway.handlers.routes import Entry
from catena.kit.errors import Invalid

NUMBERS = frozenset(getattr(FieldDescriptor, f"CPPTYPE_{kind}") for kind in (
    "INT32", "INT64", "UINT32", "UINT64", "DOUBLE", "FLOAT"))  # fmt: skip
Wanted = TypeVar("Wanted", bound=Message)


@dataclass(frozen=True, slots=True, kw_only=True)
class Way:
    """A route to a method of a room."""

    verb: str
    path: str
    request: type[Message]
    response: type[Message]
    call: Callable[[Any], Awaitable[Message]]
    says: str
    example: Any = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Passage:
    """The ways, and how bodies are read."""

    ways: Sequence[Way]
    reader: Reader

    def entries(self) -> list[Entry]:
        """Where the ways are."""
        return [
            Entry(
                verb=way.verb,
                path=way.path,
                says=way.says,
                handler=partial(self.call, way),
                takes=way.request,
                gives=way.response,
                example=way.example if way.verb in ("POST", "PUT") else None,
            )
            for way in self.ways
        ]

    async def call(self, way: Way, request: Request, _: Key) -> Response:
        """Body, query and path as the room's request; its answer as JSON. Raises Invalid (`bad_request`)."""
        wanted = await self.read(request, way.request)
        return Response(message_json(await way.call(wanted)), media_type="application/json")

    async def read(self, request: Request, kind: type[Wanted]) -> Wanted:
        """Body, query and path as a message. Raises Invalid (`bad_request`)."""
        raw = await self.reader.raw(request) if request.method in ("POST", "PUT") else b""
        fields = decode(raw, dict[str, Any]) if raw else {}
        return message_from(fields | {**request.query_params, **request.path_params}, kind)

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


def message_from(fields: dict[str, Any], kind: type[Wanted]) -> Wanted:
    """JSON as a message. Raises Invalid (`bad_request`) that names fields as the protos do."""
    check_numbers(fields, cast(Descriptor, kind.DESCRIPTOR))
    try:
        return json_format.ParseDict(fields, kind())
    # Beside its own error, protobuf's parser lets slip what plain code raises at a value of a wrong type.
    except (json_format.ParseError, AttributeError, TypeError, ValueError) as error:
        told = str(error) if isinstance(error, json_format.ParseError) else "a value is of a wrong type"
        raise Invalid(f"the request does not fit: {snake(told, kind())}", code="bad_request") from None


def check_numbers(fields: Any, message: Descriptor) -> None:
    """Raise Invalid (`bad_request`) for true or false in the place of a number, which the parser takes for 1 and 0."""
    if not isinstance(fields, dict) or message.full_name.startswith("google.protobuf."):
        return
    for field in message.fields:
        values = fields.get(field.name, fields.get(field.json_name))
        for value in values if isinstance(values, list) else [values]:
            if field.message_type is not None:
                check_numbers(value, field.message_type)
            elif isinstance(value, bool) and field.cpp_type in NUMBERS:
                raise Invalid(f"the request does not fit: {field.name} is a number, not {value}", code="bad_request")


def snake(text: str, message: Message) -> str:
    """`text` with the fields that it quotes in camel case, as the parser does, named as documented."""
    known = {field.json_name: field.name for field in fields_of(cast(Descriptor, message.DESCRIPTOR), set())}
    return re.sub(r"(?<![\w.])[a-z]\w*[A-Z]\w*", lambda found: known.get(found[0], found[0]), text)


def fields_of(message: Descriptor, seen: set[str]) -> list[FieldDescriptor]:
    """The fields of a message and of every message inside it."""
    if message.full_name in seen:
        return []
    seen.add(message.full_name)
    inner = [field for one in message.fields if one.message_type for field in fields_of(one.message_type, seen)]
    return [*message.fields, *inner]


def message_json(message: Message) -> bytes:
    """A message as JSON with the protos' field names."""
    return json.dumps(message_plain(message)).encode()


def message_plain(message: Message) -> dict[str, Any]:
    """The same as plain data."""
    return json_format.MessageToDict(
        message, preserving_proto_field_name=True, always_print_fields_with_no_presence=True
    )
