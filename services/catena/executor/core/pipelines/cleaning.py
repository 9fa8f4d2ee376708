"""The built-in operations of preprocess and postprocess steps: value in, value out."""

import html
import re
import unicodedata
from collections.abc import Callable, Mapping
from typing import Any

from catena.executor.core.extraction import extract_json
from catena.executor.core.pipelines.templates import as_text, reach
from catena.kit.errors import Invalid

_SPACE = re.compile(r"\s+")
_TAG = re.compile(r"<[^<>]{0,1000}>")

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
