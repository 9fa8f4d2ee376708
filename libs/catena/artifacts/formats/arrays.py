"""Tensor values as float32 whatever type they are stored in, and safetensors written one tensor at a time.

float16 and bfloat16 widen to float32 without loss, so what is read and written in its own type stays bit for bit.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from catena.artifacts.files import PlainFile
from catena.artifacts.refusal import Kind, refused
from catena.artifacts.tensors import ITEM_BYTES, TensorInfo

Floats = NDArray[np.float32]
Step = Callable[[int, str], None]
"""Told of progress: values finished since the last call, and of what."""

STORED: dict[str, str] = {"F32": "<f4", "F16": "<f2", "BF16": "<u2"}
ALIGNMENT = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class Planned:
    """A tensor to be written: `make` computes its values when their turn comes; `dtype` is the type to store."""

    name: str
    shape: tuple[int, ...]
    dtype: str
    make: Callable[[], Floats]

    @property
    def count(self) -> int:
        """How many values it has."""
        return math.prod(self.shape)


def silent(count: int, what: str) -> None:
    """A `Step` for callers who show no progress."""


def load(file: PlainFile, info: TensorInfo, kind: Kind = "adapter") -> Floats:
    """The values of one tensor of a safetensors file. Raises Refused (`_bad_tensor`) for types that are no floats."""
    if info.dtype not in STORED:
        known = ", ".join(STORED)
        raise refused(kind, "bad_tensor", f"tensor {info.name!r} holds {info.dtype}; {known} can be converted")
    raw = np.fromfile(file.path, STORED[info.dtype], math.prod(info.shape), offset=info.begin)
    return widen(raw, info.dtype).reshape(info.shape)


def widen(raw: NDArray[Any], dtype: str) -> Floats:
    """Stored values as float32."""
    if dtype == "BF16":
        return (raw.astype(np.uint32) << 16).view(np.float32)
    return raw.astype(np.float32)


def narrow(values: Floats, dtype: str) -> NDArray[Any]:
    """Float32 as stored values of a type, rounded to the nearest, ties to even."""
    flat = np.ascontiguousarray(values, np.float32)
    if dtype != "BF16":
        return flat.astype(STORED[dtype])
    bits = flat.view(np.uint32)
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype("<u2")


def write_safetensors(path: Path, plan: Sequence[Planned], *, step: Step = silent) -> None:
    """Write a new file; only one tensor's values are held at a time."""
    tree: dict[str, object] = {"__metadata__": {"format": "pt"}}
    reached = 0
    for tensor in plan:
        end = reached + tensor.count * ITEM_BYTES[tensor.dtype]
        tree[tensor.name] = {"dtype": tensor.dtype, "shape": tensor.shape, "data_offsets": (reached, end)}
        reached = end
    header = msgspec.json.encode(tree)
    header += b" " * (-len(header) % ALIGNMENT)
    with path.open("xb") as file:
        file.write(len(header).to_bytes(8, "little") + header)
        for tensor in plan:
            values = tensor.make()
            assert values.shape == tensor.shape, tensor.name
            narrow(values, tensor.dtype).tofile(file)
            step(tensor.count, tensor.name)
