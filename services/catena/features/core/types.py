"""Features' own nouns. Values are only ever appended; what is true at a time is chosen when read."""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

Json = bool | int | float | str | list["Json"] | dict[str, "Json"] | None


class Status(StrEnum):
    """What a read says of a feature; values are those of the wire."""

    PRESENT = "PRESENT"
    MISSING = "MISSING"
    OUTSIDE_TTL = "OUTSIDE_TTL"


class FeatureType(StrEnum):
    """What values a definition admits; values are those of the wire."""

    NUMBER = "number"
    TEXT = "text"
    BOOL = "bool"
    VECTOR = "vector"
    JSON = "json"


@dataclass(frozen=True, slots=True, kw_only=True)
class Definition:
    """What is known of a feature; `ttl_s` 0 means that its values count for ever. `version` counts its changes."""

    entity_type: str
    name: str
    type: FeatureType = FeatureType.JSON
    ttl_s: float = 0.0
    description: str = ""
    version: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Group:
    """Features that are read together, in the order of their vector; `version` counts its changes."""

    name: str
    entity_type: str
    features: tuple[str, ...]
    description: str = ""
    version: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Draft:
    """A value to append; true from `event_s` on, in seconds since the epoch; 0: from when it is appended."""

    entity_type: str
    entity_id: str
    feature: str
    value: Json
    event_s: float
    definition_version: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """A value as appended, known since `created_s`. `version` counts those of its feature and entity, from 1."""

    entity_id: str
    feature: str
    value: Json
    event_s: float
    created_s: float
    definition_version: int
    version: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Latest:
    """The row that holds at a time, if any, and when the next one takes over (infinity: none is known)."""

    row: Row | None
    next_event_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Reading:
    """A feature as read. Without a row that counts, `value` is None, whatever was stored."""

    feature: str
    status: Status
    value: Json
    row: Row | None


@dataclass(frozen=True, slots=True, kw_only=True)
class EntityReading:
    """The features of one entity in the order asked for; `vector` is empty unless all are there and numeric."""

    entity_id: str
    readings: Sequence[Reading]
    vector: Sequence[float]


Key = tuple[str, str]
"""Entity id and feature."""
