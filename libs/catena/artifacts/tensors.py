"""Safetensors without torch: the header checked field by field, and a scan of the values for NaN and infinity.

The format: eight bytes of little-endian header length, a JSON header, then the bytes of all tensors without gap or
overlap. Every rule of the format is checked here, before any library that maps or allocates sees the file.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, BinaryIO

import numpy as np

from catena.artifacts.files import PlainFile, open_plain
from catena.artifacts.refusal import Kind, refused
from catena.artifacts.strict_json import read_object

MAX_HEADER_BYTES = 16 << 20
MAX_TENSORS = 200_000
MAX_DIMENSIONS = 8
MAX_EXTENT = 1 << 40
SCAN_BYTES = 4 << 20
ITEM_BYTES = {
    "BOOL": 1, "U8": 1, "I8": 1, "F8_E4M3": 1, "F8_E5M2": 1, "F8_E8M0": 1, "I16": 2, "U16": 2, "F16": 2, "BF16": 2,
    "I32": 4, "U32": 4, "F32": 4, "F64": 8, "I64": 8, "U64": 8,
}  # fmt: skip
# All exponent bits set means NaN or infinity, in every IEEE layout and in bfloat16.
EXPONENT: dict[str, tuple[np.dtype[Any], int]] = {
    "F16": (np.dtype("<u2"), 0x7C00),
    "BF16": (np.dtype("<u2"), 0x7F80),
    "F32": (np.dtype("<u4"), 0x7F800000),
    "F64": (np.dtype("<u8"), 0x7FF0000000000000),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class TensorInfo:
    """One tensor of a file: `begin` and `end` are byte offsets from the start of the file."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    begin: int
    end: int

    @property
    def bytes(self) -> int:
        """Size of the values in bytes."""
        return self.end - self.begin


def read_header(file: PlainFile, kind: Kind = "adapter") -> dict[str, TensorInfo]:
    """Every tensor of a safetensors file, in order of offset. Raises Refused when any rule of the format is broken."""
    with open_plain(file.path, kind) as opened:
        prefix = _read_exactly(opened, min(8, file.size))
        length = header_length(prefix, file.size, file.name, kind)
        raw = _read_exactly(opened, length)
    if len(raw) != length:
        raise refused(kind, "bad_header", f"{file.name} shrank while it was read; import it again")
    return parse_header(raw, file.size - 8 - length, file.name, kind)


def header_length(prefix: bytes, file_bytes: int, where: str, kind: Kind = "adapter") -> int:
    """The header's length in bytes, checked against the file's size and the limit."""
    if len(prefix) < 8:
        raise refused(kind, "bad_header", f"{where} has {file_bytes} bytes, too few for safetensors; copy it again")
    length = int.from_bytes(prefix[:8], "little")
    if length > MAX_HEADER_BYTES:
        raise refused(kind, "bad_header", f"{where}: header of {length} bytes > {MAX_HEADER_BYTES}; save it again")
    if length > file_bytes - 8:
        raise refused(
            kind, "bad_header", f"{where}: header of {length} bytes in a file of {file_bytes}; it is cut, copy it again"
        )
    return length


def parse_header(raw: bytes, data_bytes: int, where: str, kind: Kind = "adapter") -> dict[str, TensorInfo]:
    """The tensors that a header describes, over `data_bytes` bytes of values that follow it.

    Raises Refused for an unknown type, a negative or huge extent, a size that differs from shape times type, offsets
    out of bounds, a gap, an overlap.
    """
    if not raw.startswith(b"{"):
        raise refused(kind, "bad_header", f"{where}: the header does not start with '{{'; it is no safetensors file")
    tree = read_object(raw, f"{where}: the header", kind, "bad_header")
    _check_metadata(tree.pop("__metadata__", {}), where, kind)
    if len(tree) > MAX_TENSORS:
        raise refused(kind, "bad_header", f"{where}: {len(tree)} tensors > {MAX_TENSORS}; split the file")
    start = 8 + len(raw)
    found = sorted((_entry(name, entry, start, where, kind) for name, entry in tree.items()), key=_by_offset)
    reached = start
    for info in found:
        if info.begin != reached:
            what = "overlaps the one before" if info.begin < reached else "leaves a gap before it"
            raise refused(kind, "bad_header", f"{where}: tensor {info.name!r} {what} at byte {info.begin}")
        reached = info.end
    if reached != start + data_bytes:
        raise refused(
            kind,
            "bad_header",
            f"{where}: tensors end at byte {reached}, the file at {start + data_bytes}; it is cut or padded",
        )
    return {info.name: info for info in found}


def check_finite(file: PlainFile, tensors: Mapping[str, TensorInfo], kind: Kind = "adapter") -> None:
    """Read every floating value once. Raises Refused, naming tensor and index, at the first NaN or infinity."""
    with open_plain(file.path, kind) as opened:
        for info in tensors.values():
            if info.dtype in EXPONENT:
                _scan(opened, info, file.name, kind)


def _scan(opened: BinaryIO, info: TensorInfo, where: str, kind: Kind) -> None:
    word, mask = EXPONENT[info.dtype]
    opened.seek(info.begin)
    for begin in range(info.begin, info.end, SCAN_BYTES):
        raw = _read_exactly(opened, min(SCAN_BYTES, info.end - begin))
        if len(raw) != min(SCAN_BYTES, info.end - begin):
            raise refused(kind, "bad_header", f"{where} shrank while it was read; import it again")
        wrong = (np.frombuffer(raw, word) & mask) == mask
        if wrong.any():
            index = (begin - info.begin) // word.itemsize + int(wrong.argmax())
            raise refused(
                kind, "not_finite", f"{where}: {info.name!r} holds NaN or infinity at value {index}; train it again"
            )


def _entry(name: str, entry: object, start: int, where: str, kind: Kind) -> TensorInfo:
    said = f"{where}: tensor {name[:200]!r}"
    if not isinstance(entry, dict) or set(entry) != {"dtype", "shape", "data_offsets"}:
        raise refused(kind, "bad_header", f"{said} should have exactly dtype, shape, data_offsets")
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(dtype, str) or dtype not in ITEM_BYTES:
        raise refused(kind, "bad_header", f"{said} has type {str(dtype)[:40]!r}; known: {', '.join(ITEM_BYTES)}")
    if not _extents(shape) or len(shape) > MAX_DIMENSIONS:
        raise refused(kind, "bad_header", f"{said} has shape {str(shape)[:80]}; up to {MAX_DIMENSIONS} sizes >= 0")
    if not _extents(offsets) or len(offsets) != 2 or offsets[0] > offsets[1]:
        raise refused(kind, "bad_header", f"{said} has offsets {str(offsets)[:80]}; they should be [begin, end]")
    begin, end = offsets
    size = ITEM_BYTES[dtype]
    for extent in shape:
        size *= extent
    if end - begin != size:
        raise refused(kind, "bad_header", f"{said} takes {end - begin} bytes; {dtype} {shape} needs {size}")
    return TensorInfo(name=name, dtype=dtype, shape=tuple(shape), begin=start + begin, end=start + end)


def _check_metadata(metadata: object, where: str, kind: Kind) -> None:
    # MLX writes null for none at all, and the format's own reader takes it so.
    if metadata is None:
        return
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise refused(kind, "bad_header", f"{where}: __metadata__ should map text to text; save it again")


def _extents(value: object) -> bool:
    # `type is int`, since True is an int to isinstance.
    return isinstance(value, list) and all(type(item) is int and 0 <= item <= MAX_EXTENT for item in value)


def _by_offset(info: TensorInfo) -> tuple[int, int]:
    return info.begin, info.end


def _read_exactly(opened: BinaryIO, count: int) -> bytes:
    parts = []
    while count > 0 and (part := opened.read(count)):
        parts.append(part)
        count -= len(part)
    return b"".join(parts)
