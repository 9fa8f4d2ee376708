"""The index as a process of its own, since Qdrant Edge holds the interpreter's lock: one shard, one caller, one socket.

Started by the room's supervisor: `python -m catena.memory.drivers.edge_process FOLDER SOCKET DIMENSION LANGUAGE`.
Writes are answered at once and flushed to disk when the caller has been quiet for a moment.
"""

import contextlib
import os
import select
import signal
import socket
import sys
import time
from pathlib import Path
from types import FrameType
from typing import NoReturn

import msgspec

from catena.kit.leash import exit_with_parent
from catena.memory.drivers.edge import Edge, Shape
from catena.memory.drivers.wire import (
    HEADER,
    MAX_FRAME_BYTES,
    Answer,
    Call,
    Delete,
    Inventory,
    Measure,
    Page,
    Put,
    Search,
    frame,
)

QUIET_S = 0.5
LONGEST_S = 10.0


def main(folder: str, path: str, dimension: str, language: str) -> None:
    """Serve one caller after the other until SIGTERM or the parent's end."""
    exit_with_parent()
    signal.signal(signal.SIGTERM, _leave)
    edge = Edge(Path(folder), Shape(dimension=int(dimension), language=language))
    try:
        with _listen(Path(path)) as listener:
            while True:
                connection, _ = listener.accept()
                with connection, contextlib.suppress(ConnectionError):
                    _converse(edge, connection)
    finally:
        edge.close()


def _leave(_number: int, _frame: FrameType | None) -> NoReturn:
    sys.exit(0)


def _listen(path: Path) -> socket.socket:
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    path.unlink(missing_ok=True)
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    before = os.umask(0o177)
    listener.bind(str(path))
    os.umask(before)
    listener.listen(4)
    return listener


def _converse(edge: Edge, connection: socket.socket) -> None:
    """Answer until the caller hangs up; flush after `QUIET_S` without a call, or `LONGEST_S` after the last flush."""
    decoder = msgspec.msgpack.Decoder(Call)
    flushed_s = time.monotonic()
    while True:
        quiet = edge.dirty and not select.select([connection], [], [], QUIET_S)[0]
        if edge.dirty and (quiet or time.monotonic() - flushed_s > LONGEST_S):
            edge.flush()
            flushed_s = time.monotonic()
        body = _receive(connection)
        if body is None:
            return
        connection.sendall(frame(_answer(edge, decoder.decode(body))))


def _answer(edge: Edge, call: Call) -> Answer:
    """The answer to one call; a failure is the caller's to see, and the process lives on."""
    try:
        result = _do(edge, call.request)
    except Exception as error:  # noqa: BLE001 - atop the loop; Edge raises bare Exception
        return Answer(call.number, error=f"{type(error).__name__}: {error}")
    return Answer(call.number, result=msgspec.Raw(msgspec.msgpack.encode(result)))


def _do(edge: Edge, request: Put | Delete | Search | Inventory | Measure) -> object:
    match request:
        case Put():
            edge.put(request.points)
        case Delete():
            edge.delete(request.ids)
        case Search():
            return edge.search(request.query)
        case Inventory():
            return Page(*edge.inventory(request.after, request.limit))
        case Measure():
            return edge.measure(request.texts)
    return None


def _receive(connection: socket.socket) -> bytes | None:
    """One frame's body; None when the caller hung up."""
    header = _exactly(connection, HEADER.size)
    if header is None:
        return None
    (length,) = HEADER.unpack(header)
    return _exactly(connection, length) if length <= MAX_FRAME_BYTES else None


def _exactly(connection: socket.socket, count: int) -> bytes | None:
    parts = bytearray()
    while len(parts) < count:
        part = connection.recv(min(count - len(parts), 1 << 20))
        if not part:
            return None
        parts += part
    return bytes(parts)


if __name__ == "__main__":
    main(*sys.argv[1:])
