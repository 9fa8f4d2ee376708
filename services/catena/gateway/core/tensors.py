"""Tensors of the Open Inference Protocol (KServe's `predict-v2`), to rows of plain data and back. Pure."""

import math
import struct
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from catena.kit.errors import Invalid

CODES = {
    "BOOL": "?", "UINT8": "B", "UINT16": "H", "UINT32": "I", "UINT64": "Q", "INT8": "b", "INT16": "h", "INT32": "i",
    "INT64": "q", "FP16": "e", "FP32": "f", "FP64": "d",
}  # fmt: skip
"""How `struct` writes an element of each type; `BYTES` are lengths of 32 bits, each before its text."""
MOST_ELEMENTS = 1 << 22


@dataclass(frozen=True, slots=True, kw_only=True)
class Tensor:
    """A named array, its elements in row-major order."""

    name: str
    datatype: str
    shape: tuple[int, ...]
    data: Sequence[Any]
    parameters: Mapping[str, Any] = field(default_factory=dict)


def tensor(name: str, datatype: str, shape: Sequence[int], data: Any, parameters: Mapping[str, Any]) -> Tensor:
    """A tensor from JSON, nested or flat. Raises Invalid (`bad_tensor`) where shape, type and data disagree."""
    check_type(name, datatype)
    flat = list(flattened(data))
    if len(flat) != elements(name, shape):
        raise bad(name, f"shape {list(shape)} holds {elements(name, shape)} elements, data {len(flat)}")
    kinds: tuple[type, ...] = (str,) if datatype == "BYTES" else (bool,) if datatype == "BOOL" else (int, float)
    for one in flat:
        if not isinstance(one, kinds) or (datatype != "BOOL" and isinstance(one, bool)):
            raise bad(name, f"an element of JSON type {type(one).__name__} is no {datatype}")
    _check_finite(name, flat)
    return Tensor(name=name, datatype=datatype, shape=tuple(shape), data=flat, parameters=parameters)


def from_bytes(name: str, datatype: str, shape: Sequence[int], raw: bytes, parameters: Mapping[str, Any]) -> Tensor:
    """A tensor from the binary extension's little-endian bytes. Raises Invalid (`bad_tensor`)."""
    check_type(name, datatype)
    count = elements(name, shape)
    if datatype == "BYTES":
        data: Sequence[Any] = list(_texts(name, raw))
    elif len(raw) % struct.calcsize(CODES[datatype]):
        raise bad(name, f"{len(raw)} bytes are no whole number of {datatype}")
    else:
        data = struct.unpack(f"<{len(raw) // struct.calcsize(CODES[datatype])}{CODES[datatype]}", raw)
    if len(data) != count:
        raise bad(name, f"shape {list(shape)} holds {count} elements, its bytes {len(data)}")
    _check_finite(name, data)
    return Tensor(name=name, datatype=datatype, shape=tuple(shape), data=data, parameters=parameters)


def to_bytes(one: Tensor) -> bytes:
    """The elements as `from_bytes` reads them."""
    if one.datatype == "BYTES":
        texts = [text.encode() for text in one.data]
        return b"".join(struct.pack("<I", len(text)) + text for text in texts)
    return struct.pack(f"<{len(one.data)}{CODES[one.datatype]}", *one.data)


def rows_of(inputs: Sequence[Tensor]) -> list[Any]:
    """One input a row of the first dimension: a text, number or list of numbers; of several tensors a mapping of them.

    Raises Invalid (`bad_tensor`) where they differ in that dimension.
    """
    if not inputs:
        raise Invalid("`inputs` is empty; give at least one tensor", code="bad_tensor")
    counts = {one.shape[0] if one.shape else 1 for one in inputs}
    if len(counts) > 1:
        raise Invalid(f"inputs have {sorted(counts)} rows; give all as many", code="bad_tensor")
    (count,) = counts
    columns = {one.name: list(_rows(one, count)) for one in inputs}
    if len(columns) < len(inputs):
        raise Invalid("two inputs have the same name; rename one", code="bad_tensor")
    if len(columns) == 1:
        return next(iter(columns.values()))
    return [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]


def column(name: str, results: Sequence[Any], encode: Any) -> Tensor:
    """Results as one tensor: numbers as FP64, equally long lists of them as a matrix, texts as they are, else JSON."""
    if results and all(map(_number, results)):
        return Tensor(name=name, datatype="FP64", shape=(len(results),), data=list(map(float, results)))
    lists = [one for one in results if isinstance(one, list) and one and all(map(_number, one))]
    if lists and len(lists) == len(results) and len({len(one) for one in lists}) == 1:
        flat = [float(value) for one in lists for value in one]
        return Tensor(name=name, datatype="FP64", shape=(len(lists), len(lists[0])), data=flat)
    texts = [one if isinstance(one, str) else encode(one) for one in results]
    return Tensor(name=name, datatype="BYTES", shape=(len(texts),), data=texts)


def flattened(data: Any) -> Iterator[Any]:
    """The elements of nested lists, in row-major order."""
    if not isinstance(data, list):
        yield data
        return
    for one in data:
        yield from flattened(one)


def elements(name: str, shape: Sequence[int]) -> int:
    """How many a shape holds. Raises Invalid (`bad_tensor`)."""
    if any(size < 0 for size in shape):
        raise bad(name, f"shape {list(shape)} has a negative dimension")
    count = math.prod(shape)
    if count > MOST_ELEMENTS:
        raise bad(name, f"{count} elements > {MOST_ELEMENTS}; send fewer at a time")
    return count


def check_type(name: str, datatype: str) -> None:
    """Raise Invalid (`bad_tensor`) for a type that there is not."""
    if datatype not in CODES and datatype != "BYTES":
        raise bad(name, f"unknown datatype {datatype!r}; use one of BYTES, {', '.join(CODES)}")


def bad(name: str, why: str) -> Invalid:
    """The refusal of a tensor."""
    return Invalid(f"tensor {name!r}: {why}", code="bad_tensor")


def _check_finite(name: str, data: Sequence[Any]) -> None:
    if any(isinstance(one, float) and not math.isfinite(one) for one in data):
        raise bad(name, "an element is not finite")


def _rows(one: Tensor, count: int) -> Iterator[Any]:
    width = len(one.data) // count if count else 0
    for row in range(count):
        cells = list(one.data[row * width : (row + 1) * width])
        single = len(one.shape) < 2 or (one.datatype == "BYTES" and width == 1)
        yield cells[0] if single else cells


def _texts(name: str, raw: bytes) -> Iterator[str]:
    at = 0
    while at < len(raw):
        if at + 4 > len(raw):
            raise bad(name, "its bytes end within a length")
        (size,) = struct.unpack_from("<I", raw, at)
        if at + 4 + size > len(raw):
            raise bad(name, "its bytes end within a text")
        try:
            yield raw[at + 4 : at + 4 + size].decode()
        except UnicodeDecodeError:
            raise bad(name, "a text is not UTF-8") from None
        at += 4 + size


def _number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
