"""JSON from strangers, read so that no two readers can understand it differently.

Python's reader takes the last of two equal keys and accepts NaN; others do not. Both are refused here.
"""

import json
import math
from typing import NoReturn

from catena.artifacts.refusal import Kind, Reason, refused


def read_object(raw: bytes, where: str, kind: Kind, reason: Reason) -> dict[str, object]:
    """The JSON object in `raw`. Raises Refused, naming `where`, for anything else."""
    try:
        value = json.loads(
            raw.decode("utf-8"), object_pairs_hook=_unique, parse_float=_finite, parse_constant=_no_constant
        )
    except RecursionError:
        raise refused(kind, reason, f"{where} nests too deeply to be read; write it flat") from None
    except ValueError as error:
        raise refused(kind, reason, f"{where} is not strict JSON: {error}; save it again") from None
    if not isinstance(value, dict):
        raise refused(kind, reason, f"{where} holds a {type(value).__name__}; it should be a JSON object")
    return value


def _unique(pairs: list[tuple[str, object]]) -> dict[str, object]:
    made = dict(pairs)
    if len(made) != len(pairs):
        seen: set[str] = set()
        twice = next(key for key, _ in pairs if key in seen or seen.add(key))  # type: ignore[func-returns-value]
        raise ValueError(f"key {twice[:80]!r} occurs twice")
    return made


def _finite(text: str) -> float:
    value = float(text)
    if math.isinf(value):
        raise ValueError(f"{text[:40]} is too large for a number")
    return value


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON")
