"""The OpenAPI 3.1 document, made from the routes' own types: msgspec structs, and protobuf messages in JSON."""

import re
from collections.abc import Iterable, Sequence
from typing import Any, cast

import msgspec
from google.protobuf.descriptor import Descriptor, EnumDescriptor, FieldDescriptor
from google.protobuf.message import Message

from catena.gateway.handlers.routes import Entry
from catena.gateway.handlers.unserved import CURES

Json = dict[str, Any]
REF = "#/components/schemas/{name}"
ANYTHING = {
    "google.protobuf.Value": {},
    "google.protobuf.Struct": {"type": "object"},
    "google.protobuf.ListValue": {"type": "array"},
}
ERROR = {
    "type": "object",
    "required": ["error"],
    "properties": {
        "error": {
            "type": ["object", "string"],
            "properties": {
                "message": {"type": "string"},
                "type": {"type": "string"},
                "param": {"type": ["string", "null"]},
                "code": {"type": ["string", "integer"]},
            },
        }
    },
}
PARAMETER = re.compile(r"\{(\w+)(?::path)?\}")
BODIED = ("POST", "PUT")


def document(entries: Sequence[Entry], version: str) -> Json:
    """All of it."""
    structs = {entry.takes for entry in entries if entry.takes is not None and not _is_message(entry.takes)}
    schemas = _structs(sorted(structs, key=lambda one: one.__name__))
    schemas["Error"] = ERROR
    for message in _messages(entries):
        _describe(cast(Descriptor, message.DESCRIPTOR), schemas)
    paths: dict[str, Json] = {}
    for entry in entries:
        path = PARAMETER.sub(r"{\1}", entry.path)
        paths.setdefault(path, {})[entry.verb.lower()] = _operation(entry)
    return {
        "openapi": "3.1.0",
        "info": {"title": "Catena", "version": version, "license": {"name": "MIT", "identifier": "MIT"}},
        "paths": paths,
        "components": {"schemas": schemas, "securitySchemes": {"key": {"type": "http", "scheme": "bearer"}}},
        "security": [{"key": []}],
    }


def _structs(kinds: Sequence[type[Any]]) -> Json:
    """The structs' schemas, without the fields that are known in order to be refused."""
    _, schemas = msgspec.json.schema_components(kinds, schema_hook=lambda _: {"type": "object"}, ref_template=REF)
    for schema in schemas.values():
        for name in CURES:
            schema.get("properties", {}).pop(name, None)
    return schemas


def _operation(entry: Entry) -> Json:
    told: Json = {
        "operationId": re.sub(r"\W+", "_", f"{entry.verb}{entry.path}").strip("_").lower(),
        "summary": entry.says,
        "responses": {str(entry.status): _answer(entry), "default": _refusal(entry)},
    }
    if entry.handler is None:
        told["security"] = []
    parameters = [
        {"name": name, "in": "path", "required": True, "schema": {"type": "string", "minLength": 1}}
        for name in PARAMETER.findall(entry.path)
    ]
    if entry.takes is not None and entry.verb not in BODIED:
        parameters += _query(entry.takes, {one["name"] for one in parameters})
    if parameters:
        told["parameters"] = parameters
    if entry.takes is not None and entry.verb in BODIED:
        body: Json = {"schema": {"$ref": REF.format(name=_name(entry.takes))}}
        if entry.example is not None:
            body["example"] = entry.example
        # No body is a message of which nothing is said.
        needed = not (entry.optional_body or _is_message(entry.takes))
        told["requestBody"] = {"required": needed, "content": {"application/json": body}}
    return told


def _answer(entry: Entry) -> Json:
    schema: Json = {"type": "object"} if entry.gives is None else entry.gives
    if _is_message(entry.gives):
        schema = {"$ref": REF.format(name=_name(entry.gives))}
    content: Json = {entry.media: {"schema": schema} if entry.media == "application/json" else {}}
    if entry.streams:
        content["text/event-stream"] = {}
    return {"description": entry.says, "content": content}


def _refusal(entry: Entry) -> Json:
    return {
        "description": "what was wrong, in `error`, with its code and its cure",
        "content": {"application/json": {"schema": {"$ref": REF.format(name="Error")}}},
    }


def _query(takes: type[Message], taken: set[str]) -> list[Json]:
    fields = cast(Descriptor, takes.DESCRIPTOR).fields
    return [
        {"name": field.name, "in": "query", "required": False, "schema": _scalar(field)}
        for field in fields
        if field.name not in taken and field.message_type is None and not field.is_repeated
    ]


def _messages(entries: Iterable[Entry]) -> list[type[Message]]:
    kinds: list[Any] = [kind for entry in entries for kind in (entry.takes, entry.gives)]
    return [kind for kind in kinds if _is_message(kind)]


def _is_message(kind: Any) -> bool:
    return isinstance(kind, type) and issubclass(kind, Message)


def _name(kind: type[Any]) -> str:
    return _label(cast(Descriptor, kind.DESCRIPTOR)) if _is_message(kind) else kind.__name__


def _label(message: Descriptor) -> str:
    """`executor.Run` for `catena.api.executor.v1.Run`: rooms share some names with each other and with the structs."""
    room, _, name = message.full_name.split(".")[-3:]
    return f"{room}.{name}"


def _describe(message: Descriptor, schemas: dict[str, Any]) -> None:
    """Add a message, and those inside it, as protobuf's JSON writes and reads them with the protos' field names."""
    if (label := _label(message)) in schemas:
        return
    properties: Json = {}
    schemas[label] = {"type": "object", "additionalProperties": False, "properties": properties}
    for field in message.fields:
        # Null stands for a field that is not said.
        properties[field.name] = {"anyOf": [_field(field, schemas), {"type": "null"}]}


def _field(field: FieldDescriptor, schemas: dict[str, Any]) -> Json:
    inner = field.message_type
    if inner is not None and inner.GetOptions().map_entry:
        return {"type": "object", "additionalProperties": _field(inner.fields_by_name["value"], schemas)}
    one = _scalar(field) if inner is None else _inner(inner, schemas)
    return {"type": "array", "items": one} if field.is_repeated else one


def _inner(message: Descriptor, schemas: dict[str, Any]) -> Json:
    if message.full_name in ANYTHING:
        return dict(ANYTHING[message.full_name])
    _describe(message, schemas)
    return {"$ref": REF.format(name=_label(message))}


INTEGERS = {
    FieldDescriptor.CPPTYPE_INT32: (-(2**31), 2**31 - 1),
    FieldDescriptor.CPPTYPE_UINT32: (0, 2**32 - 1),
    FieldDescriptor.CPPTYPE_INT64: (-(2**63), 2**63 - 1),
    FieldDescriptor.CPPTYPE_UINT64: (0, 2**64 - 1),
}


def _scalar(field: FieldDescriptor) -> Json:
    if field.cpp_type in INTEGERS:
        low, high = INTEGERS[field.cpp_type]
        number = {"type": "integer", "minimum": low, "maximum": high}
        # JSON's numbers are doubles to many: protobuf writes those of 64 bits as texts.
        return number if high < 2**32 else {"anyOf": [number, {"type": "string", "pattern": "^-?[0-9]+$"}]}
    if field.cpp_type in (FieldDescriptor.CPPTYPE_DOUBLE, FieldDescriptor.CPPTYPE_FLOAT):
        return {"anyOf": [{"type": "number"}, {"type": "string", "enum": ["NaN", "Infinity", "-Infinity"]}]}
    if field.cpp_type == FieldDescriptor.CPPTYPE_BOOL:
        return {"type": "boolean"}
    if field.cpp_type == FieldDescriptor.CPPTYPE_ENUM:
        return {"type": "string", "enum": [value.name for value in cast(EnumDescriptor, field.enum_type).values]}
    return {"type": "string"}
