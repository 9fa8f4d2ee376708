"""What room and index process say to each other: MessagePack in frames that lead with their length, over a unix socket.

Requests are answered in any order; `number` pairs them. Not gRPC, since nobody else speaks it and a point is bytes.
"""

import struct

import msgspec

from catena.memory.core.ports import IndexPoint, IndexQuery

MAX_FRAME_BYTES = 64 * 1024 * 1024
HEADER = struct.Struct(">I")


class Put(msgspec.Struct, frozen=True, tag=True):
    """Insert or replace."""

    points: list[IndexPoint]


class Delete(msgspec.Struct, frozen=True, tag=True):
    """Remove by id."""

    ids: list[str]


class Search(msgspec.Struct, frozen=True, tag=True):
    """Find."""

    query: IndexQuery


class Inventory(msgspec.Struct, frozen=True, tag=True):
    """Ids and stamps from `after` on (empty: the first), at most `limit`."""

    after: str
    limit: int


class Measure(msgspec.Struct, frozen=True, tag=True):
    """Count BM25's terms."""

    texts: list[str]


class Call(msgspec.Struct, frozen=True):
    """A request under a number."""

    number: int
    request: Put | Delete | Search | Inventory | Measure


class Answer(msgspec.Struct, frozen=True):
    """The result of the call of that number, as MessagePack; `error` is set instead when it failed."""

    number: int
    result: msgspec.Raw = msgspec.Raw(b"\xc0")
    error: str = ""


class Page(msgspec.Struct, frozen=True):
    """A part of the inventory; `after` is where the next begins, empty at the end."""

    stamps: dict[str, str]
    after: str


def frame(message: Call | Answer) -> bytes:
    """The message as bytes to send."""
    body = msgspec.msgpack.encode(message)
    return HEADER.pack(len(body)) + body
