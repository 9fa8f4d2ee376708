"""From what is stored to what is true at a time, and from values to a vector."""

import json
import math
from collections.abc import Sequence

from catena.features.core.types import Definition, EntityReading, FeatureType, Json, Latest, Reading, Status
from catena.kit.errors import Invalid

NAME_CHARACTERS = 256


def read_feature(feature: str, latest: Latest | None, definition: Definition | None, at_s: float) -> Reading:
    """The feature at `at_s`. A value older than its definition's TTL does not count, and is not told."""
    row = latest.row if latest else None
    if row is None:
        return Reading(feature=feature, status=Status.MISSING, value=None, row=None)
    if definition is not None and 0 < definition.ttl_s < at_s - row.event_s:
        return Reading(feature=feature, status=Status.OUTSIDE_TTL, value=None, row=row)
    return Reading(feature=feature, status=Status.PRESENT, value=row.value, row=row)


def read_entity(entity_id: str, readings: Sequence[Reading]) -> EntityReading:
    """The readings with their vector: numbers and lists of numbers one after the other, or nothing at all."""
    vector: list[float] = []
    for reading in readings:
        numbers = as_numbers(reading.value) if reading.status is Status.PRESENT else None
        if numbers is None:
            return EntityReading(entity_id=entity_id, readings=readings, vector=())
        vector += numbers
    return EntityReading(entity_id=entity_id, readings=readings, vector=vector)


def as_numbers(value: Json) -> list[float] | None:
    """A number as a list of one, a non-empty list of numbers as itself, and None for anything else."""
    items = value if isinstance(value, list) else [value]
    numbers = [float(item) for item in items if isinstance(item, int | float) and not isinstance(item, bool)]
    return numbers if items and len(numbers) == len(items) else None


def check_value(feature: str, value: Json, definition: Definition | None, max_bytes: int) -> None:
    """Raises Invalid when the value is not of the defined type, or larger than `max_bytes` as JSON."""
    kind = definition.type if definition else FeatureType.JSON
    if not _fits(value, kind):
        raise Invalid(
            f"feature {feature!r} is a {kind}, got {_short(value)}; send a {kind} or change the definition",
            code="wrong_type",
        )
    size = len(json.dumps(value, ensure_ascii=False).encode(errors="replace"))
    if size > max_bytes:
        raise Invalid(
            f"a value of feature {feature!r} has {size} bytes > {max_bytes}; raise features.max_value_bytes",
            code="value_too_large",
        )


def check_name(what: str, name: str) -> str:
    """The same name. Raises Invalid when it is empty, too long, or holds a NUL character."""
    if not name.strip() or len(name) > NAME_CHARACTERS or "\0" in name:
        raise Invalid(f"{what} {name[:40]!r} should be 1 to {NAME_CHARACTERS} characters of text", code="bad_name")
    return name


def check_time(what: str, seconds: float) -> float:
    """The same time. Raises Invalid when it is negative or not finite."""
    if not math.isfinite(seconds) or seconds < 0:
        raise Invalid(f"{what} is {seconds}; give seconds since the epoch, or 0", code="bad_time")
    return seconds


def _fits(value: Json, kind: FeatureType) -> bool:
    match kind:
        case FeatureType.NUMBER:
            return isinstance(value, int | float) and not isinstance(value, bool)
        case FeatureType.TEXT:
            return isinstance(value, str)
        case FeatureType.BOOL:
            return isinstance(value, bool)
        case FeatureType.VECTOR:
            return isinstance(value, list) and as_numbers(value) is not None
        case FeatureType.JSON:
            return True


def _short(value: Json) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 60 else f"{text[:57]}..."


def choose_feature_type(asked: str) -> FeatureType:
    """The type of that name; empty: json. Raises Invalid for another."""
    try:
        return FeatureType(asked or FeatureType.JSON)
    except ValueError as error:
        known = ", ".join(FeatureType)
        raise Invalid(f"unknown feature type {asked!r}; use one of {known}", code="unknown_type") from error
