"""GGUF files: opened without trusting them, and written one tensor at a time. The container is `gguf`'s.

Tensor types go by llama.cpp's names (`F16`, `Q4_K`); which are written here is `WRITTEN`, all that `gguf` decodes are
read.
"""

import struct
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import gguf
import numpy as np
from gguf import GGMLQuantizationType as Type
from numpy.typing import NDArray

from catena.artifacts.formats.arrays import Floats, Planned, Step, silent
from catena.artifacts.formats.kquants import quantise_q4_k, quantise_q6_k
from catena.artifacts.refusal import Kind, refused

MAGIC = b"GGUF"
MAX_COUNT = 1 << 20
MAX_VALUES = 1 << 40
ROWS_AT_ONCE = 1 << 22
"""Values that are quantised in one go: progress is told in between, and temporaries stay small."""
WRITTEN = ("F32", "F16", "BF16", "Q8_0", "Q6_K", "Q5_0", "Q4_K", "Q4_0")


class _Bounded(gguf.GGUFReader):
    """`gguf`'s reader, which would loop without end over a length that the file does not have."""

    def _get(self, offset: int, dtype: Any, count: int = 1, override_order: Any = None) -> NDArray[Any]:
        found: NDArray[Any] = super()._get(offset, dtype, count, override_order)
        if len(found) != int(count):
            raise ValueError(f"it ends at byte {len(self.data)}, {int(count)} values are meant to be at {offset}")
        return found


class GgufFile:
    """A GGUF file that was read as far as its tensors' places."""

    def __init__(self, path: Path, kind: Kind) -> None:
        """Open a file. Raises Refused (`_missing_file`, `_bad_header`) when it is none or is cut or inconsistent."""
        if not path.is_file():
            raise refused(kind, "missing_file", f"no file at {path}; name a .gguf file")
        _check_counts(path, kind)
        try:
            reader = _Bounded(path)
            self._fields = {name: reader.fields[name] for name in reader.fields}
            self._tensors = {tensor.name: tensor for tensor in reader.tensors}
        except (ValueError, KeyError, IndexError, TypeError, OverflowError, RecursionError) as error:
            why = str(error)[:200]
            raise refused(kind, "bad_header", f"{path.name} is no whole GGUF file: {why}; copy it again") from error
        self.path = path
        self.kind: Kind = kind

    def get(self, key: str, otherwise: Any = None) -> Any:
        """A value of the file's metadata. Raises Refused when it cannot be read."""
        if key not in self._fields:
            return otherwise
        try:
            return self._fields[key].contents()
        except (ValueError, IndexError) as error:
            raise refused(self.kind, "bad_header", f"{self.path.name}: {key} cannot be read: {error}") from error

    def need(self, key: str) -> Any:
        """A value that has to be there."""
        found = self.get(key)
        if found is None:
            raise refused(self.kind, "bad_header", f"{self.path.name} has no {key}; convert it from its source again")
        return found

    def names(self) -> list[str]:
        """Every tensor, in the order of the file."""
        return list(self._tensors)

    def shape(self, name: str) -> tuple[int, ...]:
        """A tensor's shape as numpy and transformers write it: rows first."""
        return tuple(int(size) for size in reversed(self._tensors[name].shape))

    def type(self, name: str) -> str:
        """A tensor's stored type."""
        return str(self._tensors[name].tensor_type.name)

    def values(self, name: str) -> Floats:
        """A tensor's values, dequantised where they are blocks. Raises Refused for a type that `gguf` cannot decode."""
        tensor = self._tensors[name]
        try:
            return gguf.quants.dequantize(tensor.data, tensor.tensor_type).reshape(self.shape(name)).astype(np.float32)
        except (NotImplementedError, ValueError) as error:
            message = f"{self.path.name}: {name} of type {self.type(name)} cannot be decoded: {error}"
            raise refused(self.kind, "bad_tensor", f"{message}; convert from a file in F16 or Q8_0") from error


def write_gguf(
    path: Path, architecture: str, metadata: Mapping[str, Any], plan: Sequence[Planned], *, step: Step = silent
) -> None:
    """Write a new file; `dtype` of the plan is a name of `WRITTEN`. Floats have 32 bits; a tuple is of numbers >= 0."""
    writer = gguf.GGUFWriter(path, architecture)
    for key, value in metadata.items():
        _add(writer, key, value)
    for tensor in plan:
        kind = Type[tensor.dtype]
        size = bytes_of(tensor.shape, tensor.dtype)
        writer.add_tensor_info(tensor.name, tensor.shape, np.dtype(np.float32), size, raw_dtype=kind)
    try:
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        for tensor in plan:
            values = tensor.make()
            assert values.shape == tensor.shape, tensor.name
            writer.write_tensor_data(_encode(values, tensor.dtype, tensor.name, step))
    finally:
        writer.close()


def bytes_of(shape: Sequence[int], dtype: str) -> int:
    """Bytes of a tensor stored in a type."""
    block, size = gguf.GGML_QUANT_SIZES[Type[dtype]]
    count = 1
    for extent in shape:
        count *= extent
    return count // block * size


def fits_blocks(columns: int, dtype: str) -> bool:
    """Whether rows of so many values divide into a type's blocks."""
    return bool(columns % gguf.GGML_QUANT_SIZES[Type[dtype]][0] == 0)


def encode(values: Floats, dtype: str) -> NDArray[Any]:
    """Values as a type stores them."""
    if dtype == "Q4_K":
        return quantise_q4_k(values)
    if dtype == "Q6_K":
        return quantise_q6_k(values)
    return gguf.quants.quantize(np.ascontiguousarray(values), Type[dtype])


def shortest(value: float) -> float:
    """A number kept in 32 bits as it was meant: 1e-06, not 9.999999974752427e-07."""
    return float(str(np.float32(value)))


def _encode(values: Floats, dtype: str, name: str, step: Step) -> NDArray[Any]:
    if values.ndim < 2:
        step(values.size, name)
        return encode(values, dtype)
    rows = max(1, ROWS_AT_ONCE // values.shape[1])
    made = []
    for at in range(0, len(values), rows):
        part = values[at : at + rows]
        made.append(encode(part, dtype))
        step(part.size, name)
    return np.concatenate(made)


def _add(writer: gguf.GGUFWriter, key: str, value: Any) -> None:
    if isinstance(value, bool):
        writer.add_bool(key, value)
    elif isinstance(value, int):
        writer.add_uint32(key, value)
    elif isinstance(value, float):
        writer.add_float32(key, value)
    elif isinstance(value, str):
        writer.add_string(key, value)
    elif isinstance(value, tuple):
        writer.add_key_value(key, list(value), gguf.GGUFValueType.ARRAY, gguf.GGUFValueType.UINT32)
    else:
        writer.add_array(key, value)


def _check_counts(path: Path, kind: Kind) -> None:
    """Refuse absurd counts before `gguf`, which loops over them."""
    with path.open("rb") as file:
        head = file.read(24)
    if len(head) < 24 or not head.startswith(MAGIC):
        raise refused(kind, "bad_header", f"{path.name} does not start as GGUF does; name a .gguf file")
    _, tensors, fields = struct.unpack("<IQQ", head[4:])
    if max(tensors, fields) > MAX_COUNT:
        raise refused(kind, "bad_header", f"{path.name} claims {tensors} tensors and {fields} fields; it is damaged")
