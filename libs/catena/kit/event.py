"""What travels on the bus: a CloudEvent in NATS' binary mode, its subject, and the way back.

The subject is `catena.<tenant>.<room>.<entity>.<event>.v1`, so that outsiders may subscribe to one tenant or one room.
Source: CloudEvents 1.0.2, NATS protocol binding, section 3.1 (binary content mode).
"""

import itertools
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from urllib.parse import quote, unquote

from catena.kit.errors import Invalid

MAX_EVENT_BYTES = 900_000
"""Below the server's 1 MiB message limit, with room for the headers."""

_SAFE = "!#$&'()*+,-./:;<=>?@[\\]^_`{|}~"
_TOKEN = re.compile(r"[^A-Za-z0-9_-]")


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """Something that happened, told once. `type` is `room.entity.event`, `data` a serialised protobuf message.

    `id` identifies the event for ever: two deliveries with one id are one event. `subject` names the entity, if any.
    `time_s` is in seconds since the epoch; `traceparent` is the W3C header of the span that caused it.
    """

    id: str
    type: str
    tenant: str
    time_s: float
    data: bytes
    subject: str = ""
    traceparent: str = ""

    @property
    def room(self) -> str:
        """The room that told it."""
        return self.type.split(".", 1)[0]


def check(event: Event) -> Event:
    """The same event. Raises Invalid when it could not be published."""
    parts = event.type.split(".")
    if len(parts) != 3 or not all(parts) or any(_TOKEN.search(part) for part in parts):
        raise Invalid(f"event type {event.type!r} should read room.entity.event", code="bad_event")
    if not event.id or not event.tenant:
        raise Invalid(f"event {event.type} has id {event.id!r} and tenant {event.tenant!r}; both are needed")
    if len(event.data) > MAX_EVENT_BYTES:
        raise Invalid(
            f"event {event.type} holds {len(event.data)} bytes > {MAX_EVENT_BYTES}; send a reference instead",
            code="event_too_large",
        )
    return event


def subject_of(event: Event) -> str:
    """The NATS subject on which `event` is published."""
    return f"catena.{_TOKEN.sub('-', event.tenant)}.{event.type}.v1"


def pattern(type_: str, tenant: str = "*") -> str:
    """The NATS subject filter for a type, in which `*` stands for one word: `trainer.job.*`, `*.*.*`."""
    parts = type_.split(".")
    if len(parts) != 3 or not all(part == "*" or (part and not _TOKEN.search(part)) for part in parts):
        raise Invalid(f"event type {type_!r} should read room.entity.event, each a word or *", code="bad_event")
    return f"catena.{tenant if tenant == '*' else _TOKEN.sub('-', tenant)}.{type_}.v1"


def patterns(types: Sequence[str]) -> list[str]:
    """The filters of several types. Raises Invalid when one event could match two of them, or there is none."""
    filters = [pattern(type_) for type_ in types]
    for one, other in itertools.combinations(filters, 2):
        if all(a == b or "*" in (a, b) for a, b in zip(one.split("."), other.split("."), strict=True)):
            raise Invalid(f"event types {list(types)} overlap; name each event once", code="bad_event")
    if not filters:
        raise Invalid("no event types; name at least one, or *.*.* for all", code="bad_event")
    return filters


def headers_of(event: Event) -> dict[str, str]:
    """The headers under which `event` is published; the id is the server's deduplication key as well."""
    headers = {
        "ce-specversion": "1.0",
        "ce-id": event.id,
        "ce-type": event.type,
        "ce-source": f"/catena/{event.room}",
        "ce-time": datetime.fromtimestamp(event.time_s, UTC).isoformat(timespec="microseconds"),
        "ce-subject": event.subject,
        "ce-tenant": event.tenant,
        "content-type": "application/protobuf",
        "Nats-Msg-Id": event.id,
        "traceparent": event.traceparent,
    }
    return {key: quote(value, safe=_SAFE) for key, value in headers.items() if value}


def read_event(headers: Mapping[str, str] | None, data: bytes) -> Event:
    """The event that a message carries. Raises Invalid when a required attribute is absent or malformed."""
    plain = {key.lower(): unquote(value) for key, value in (headers or {}).items()}
    try:
        return Event(
            id=plain["ce-id"],
            type=plain["ce-type"],
            tenant=plain["ce-tenant"],
            time_s=datetime.fromisoformat(plain["ce-time"]).timestamp() if "ce-time" in plain else 0.0,
            data=data,
            subject=plain.get("ce-subject", ""),
            traceparent=plain.get("traceparent", ""),
        )
    except (KeyError, ValueError) as error:
        raise Invalid(f"a message without proper CloudEvents headers: {error}", code="bad_event") from error
