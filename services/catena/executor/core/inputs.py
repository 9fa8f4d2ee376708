"""What may be asked of models that label, find spans or read feature vectors: one input, or a list of them."""

from collections.abc import Mapping
from typing import Any

from catena.executor.core.catalogue import Kind
from catena.executor.core.pipelines.templates import as_text
from catena.kit.errors import Invalid

PREDICTED = frozenset({"classification", "token-classification", "prediction"})
"""Types of models that make values, not texts or vectors."""


def inputs_of(kind: Kind, data: Any) -> tuple[list[Any], bool]:
    """The inputs in `data`, and whether it is one alone. Raises Invalid (`bad_input`)."""
    if kind == "prediction":
        alone = isinstance(data, Mapping) or (isinstance(data, list) and all(map(_is_number, data)) and bool(data))
        rows = [data] if alone else data
        if not isinstance(rows, list) or not rows:
            raise _bad(f"a {type(data).__name__} holds no features; send a list or a mapping of numbers")
        return [_row(row) for row in rows], alone
    if isinstance(data, list):
        if not data:
            raise Invalid("there is nothing to label; give at least one text", code="empty_input")
        return [_text(text) for text in data], False
    return [_text(data)], True


def _row(row: Any) -> Any:
    values = row.values() if isinstance(row, Mapping) else row
    if not isinstance(row, Mapping | list) or not row or not all(map(_is_number, values)):
        raise _bad(f"{as_text(row)[:100]!r} are no features; send a list or a mapping of numbers")
    return row


def _text(text: Any) -> Any:
    if isinstance(text, Mapping):
        pair = text.get("text_pair", "")
        if not isinstance(text.get("text"), str) or not isinstance(pair, str) or not set(text) <= {"text", "text_pair"}:
            raise _bad(f"{as_text(text)[:100]!r} is no text; send a text or {{text, text_pair}}")
        return text
    return as_text(text)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _bad(message: str) -> Invalid:
    return Invalid(message, code="bad_input")
