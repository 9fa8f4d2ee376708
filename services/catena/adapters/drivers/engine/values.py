"""The values of a safetensors file, read once into memory that is there, and hashed on the way.

Called for adapters that passed the gate: what is hashed is what is in memory, so that a file which was changed since
the gate saw it is found out, whoever changed it and whenever.
"""

from pathlib import Path

import blake3
import torch
from torch import Tensor

from catena.adapters.core.work import Part
from catena.artifacts.files import WEIGHTS, open_plain
from catena.artifacts.refusal import untrusted

DTYPES = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
CHUNK_BYTES = 1 << 19
"""What is hashed while it is still in the processor's cache, which is faster than in a thread beside."""


def read_values(part: Part, begin: int, into_N: Tensor) -> None:
    """Fill `into_N` with the values of a part's file from byte `begin` to its end, converted to its type.

    Raises Untrusted (`adapter_tampered`) unless the whole file is the one that the gate saw.
    """
    dtype = DTYPES[part.dtype]
    raw_N = into_N if dtype == into_N.dtype else torch.empty(into_N.shape, dtype=dtype)
    bytes_X = raw_N.view(torch.uint8).numpy().data
    hasher = blake3.blake3()
    with open_plain(Path(part.folder) / WEIGHTS, "adapter") as file:
        hasher.update(file.read(begin))
        reached = 0
        while count := file.readinto(bytes_X[reached : reached + CHUNK_BYTES]):  # type: ignore[attr-defined]
            hasher.update(bytes_X[reached : reached + count])
            reached += count
        hasher.update(file.read(1))
    if hasher.hexdigest() != part.digest:
        raise untrusted(
            "adapter",
            "tampered",
            f"{WEIGHTS} in {part.folder} is not the file that passed the gate; register the adapter again",
        )
    if raw_N is not into_N:
        into_N.copy_(raw_N)
