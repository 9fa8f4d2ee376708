"""JSON data on the wire: `google.protobuf.Value` and `Struct` to plain Python data and back; for rooms' handlers."""

import math
from collections.abc import Mapping
from typing import TypeAlias

from google.protobuf.struct_pb2 import NULL_VALUE, ListValue, Struct, Value

from catena.kit.errors import Invalid

Json: TypeAlias = "bool | int | float | str | list[Json] | dict[str, Json] | None"
SAFE_INTEGER = 2**53


def to_json(value: Value) -> Json:
    """Plain data; numbers that are whole become integers, up to 2^53, beyond which a double cannot tell them apart.

    Raises Invalid for a number that is not finite and for a NUL character, which PostgreSQL does not keep. Nesting has
    protobuf's own limit: a message of more than 100 levels is not parsed.
    """
    match value.WhichOneof("kind"):
        case "bool_value":
            return value.bool_value
        case "number_value":
            return _number(value.number_value)
        case "string_value":
            return _string(value.string_value)
        case "list_value":
            return [to_json(item) for item in value.list_value.values]
        case "struct_value":
            return struct_to_json(value.struct_value)
    return None


def struct_to_json(struct: Struct) -> dict[str, Json]:
    """Plain data; errors of `to_json`."""
    return {_string(key): to_json(item) for key, item in struct.fields.items()}


def from_json(data: Json) -> Value:
    """The value as it goes on the wire, where all numbers are doubles."""
    if data is None:
        return Value(null_value=NULL_VALUE)
    if isinstance(data, bool):
        return Value(bool_value=data)
    if isinstance(data, int | float):
        return Value(number_value=data)
    if isinstance(data, str):
        return Value(string_value=data)
    if isinstance(data, list):
        return Value(list_value=ListValue(values=[from_json(item) for item in data]))
    return Value(struct_value=struct_from_json(data))


def struct_from_json(data: Mapping[str, Json]) -> Struct:
    """The object as it goes on the wire."""
    return Struct(fields={key: from_json(item) for key, item in data.items()})


def _number(number: float) -> int | float:
    if not math.isfinite(number):
        raise Invalid(f"{number} is not a JSON number; leave it out or send null", code="bad_value")
    return int(number) if number.is_integer() and abs(number) <= SAFE_INTEGER else number


def _string(text: str) -> str:
    if "\0" in text:
        raise Invalid(f"{text[:40]!r} holds a NUL character; send text, not binary", code="bad_value")
    return text
