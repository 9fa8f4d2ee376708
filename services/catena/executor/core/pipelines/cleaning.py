"""The built-in operations of preprocess and postprocess steps: value in, value out."""

import html
import re
import unicodedata
from collections.abc import Callable, Mapping
from typing import Any

import msgspec

from catena.executor.core.pipelines.templates import as_text, reach
from catena.kit.errors import Invalid

_SPACE = re.compile(r"\s+")
_TAG = re.compile(r"<[^<>]{0,1000}>")
_DECODER = msgspec.json.Decoder()

PLAIN: Mapping[str, Callable[[str], Any]] = {
    "strip": str.strip,
    "lower": str.lower,
    "upper": str.upper,
    "collapse_spaces": lambda said: _SPACE.sub(" ", said).strip(),
    "remove_html": lambda said: html.unescape(_TAG.sub("", said)),
    "remove_control": lambda said: "".join(c for c in said if c in "\n\t" or unicodedata.category(c) != "Cc"),
    "normalise": lambda said: unicodedata.normalize("NFKC", said),
    "lines": lambda said: [line.strip() for line in said.splitlines() if line.strip()],
    "json": lambda said: extract_json(said),
}


def apply(operation: str | Mapping[str, Any], value: Any) -> Any:
    """`value` after one operation: a name of `PLAIN`, or `{name: argument}` of those below. Raises Invalid."""
    if isinstance(operation, str):
        return PLAIN[operation](as_text(value))
    name, argument = next(iter(operation.items()))
    return ARGUED[name](value, argument)


def check(operation: Any) -> None:
    """Raise Invalid (`bad_pipeline`) unless `operation` is known and well formed."""
    if isinstance(operation, str) and operation in PLAIN:
        return
    if isinstance(operation, Mapping) and len(operation) == 1:
        name, argument = next(iter(operation.items()))
        if name in ARGUED and isinstance(argument, KINDS[name]) and not isinstance(argument, bool):
            return
    known = ", ".join([*PLAIN, *(f"{{{name}: ...}}" for name in ARGUED)])
    raise Invalid(f"operation {operation!r} is unknown or its argument is wrong; use {known}", code="bad_pipeline")


def extract_json(said: str) -> Any:
    """The first JSON object or array in a text, code fences and chatter around it ignored. Raises Invalid."""
    for start in _starts(said):
        end = _end(said, start)
        if end:
            try:
                return _DECODER.decode(said[start:end])
            except msgspec.DecodeError:
                continue
    raise Invalid("no JSON object or array in the text; ask the model for JSON", code="no_json")


def _starts(said: str) -> list[int]:
    return [place for place, letter in enumerate(said) if letter in "{["][:64]


def _end(said: str, start: int) -> int:
    """Where the bracket at `start` is closed, strings respected; 0: nowhere."""
    depth = 0
    quoted = escaped = False
    for place in range(start, len(said)):
        letter = said[place]
        if quoted:
            quoted = escaped or letter != '"'
            escaped = letter == "\\" and not escaped
        elif letter == '"':
            quoted = True
        elif letter in "{[":
            depth += 1
        elif letter in "}]":
            depth -= 1
            if depth == 0:
                return place + 1
    return 0


def _truncate(value: Any, most: int) -> str:
    return as_text(value)[: max(0, most)]


def _key(value: Any, path: str) -> Any:
    return reach(extract_json(value) if isinstance(value, str) else value, path)


def _map(value: Any, table: Mapping[str, Any]) -> Any:
    said = as_text(value).strip()
    if said in table:
        return table[said]
    if "*" in table:
        return table["*"]
    raise Invalid(f"a value is none of {', '.join(table)}; add it, or '*' for all others", code="not_mapped")


def _metadata(value: Any, labels: Mapping[str, Any]) -> dict[str, Any]:
    return {"value": value, "metadata": dict(labels)}


def _chunks(value: Any, size: int) -> list[Any]:
    if not isinstance(value, list) or size < 1:
        raise Invalid("`chunks` cuts a list into pieces of at least 1; give it one", code="not_a_list")
    return [value[start : start + size] for start in range(0, len(value), size)]


ARGUED: Mapping[str, Callable[[Any, Any], Any]] = {
    "truncate": _truncate,
    "key": _key,
    "map": _map,
    "metadata": _metadata,
    "chunks": _chunks,
    "split": lambda value, mark: as_text(value).split(mark or None),
}
KINDS: Mapping[str, type] = {
    "truncate": int,
    "key": str,
    "map": dict,
    "metadata": dict,
    "chunks": int,
    "split": str,
}
