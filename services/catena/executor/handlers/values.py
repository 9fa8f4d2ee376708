"""Google's Struct and Value to plain JSON data and back; whole numbers stay whole."""

from collections.abc import Mapping
from typing import Any

from google.protobuf import struct_pb2

from catena.kit.errors import Invalid


def plain(value: struct_pb2.Value) -> Any:
    """What the message means."""
    match value.WhichOneof("kind"):
        case "string_value":
            return value.string_value
        case "number_value":
            number = value.number_value
            return int(number) if number.is_integer() and abs(number) < 2**53 else number
        case "bool_value":
            return value.bool_value
        case "struct_value":
            return plain_struct(value.struct_value)
        case "list_value":
            return [plain(item) for item in value.list_value.values]
    return None


def plain_struct(struct: struct_pb2.Struct) -> dict[str, Any]:
    """The mapping that the message means."""
    return {key: plain(value) for key, value in struct.fields.items()}


def to_value(data: Any) -> struct_pb2.Value:
    """The message that means `data`. Raises Invalid when it is not JSON."""
    match data:
        case None:
            return struct_pb2.Value(null_value=struct_pb2.NULL_VALUE)
        case bool():
            return struct_pb2.Value(bool_value=data)
        case int() | float():
            return struct_pb2.Value(number_value=data)
        case str():
            return struct_pb2.Value(string_value=data)
        case Mapping():
            return struct_pb2.Value(struct_value=to_struct(data))
        case list() | tuple():
            values = [to_value(item) for item in data]
            return struct_pb2.Value(list_value=struct_pb2.ListValue(values=values))
    raise Invalid(f"a {type(data).__name__} is not JSON; give text, numbers, lists and mappings", code="bad_value")


def to_struct(data: Mapping[str, Any]) -> struct_pb2.Struct:
    """The message that means `data`."""
    return struct_pb2.Struct(fields={str(key): to_value(value) for key, value in data.items()})
