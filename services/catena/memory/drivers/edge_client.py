"""The room's side of the index process: keeps it running, connects again when it died, and pairs answers with calls."""

import asyncio
import contextlib
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from itertools import count
from pathlib import Path
from typing import TypeVar

import msgspec
import structlog

from catena.kit.errors import Unavailable
from catena.kit.supervise import Child, Supervisor
from catena.memory.core.ports import IndexPoint, IndexQuery
from catena.memory.drivers.edge import Shape
from catena.memory.drivers.wire import (
    HEADER,
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

CHILD = "index"
PAGE = 5_000
BATCH = 250
RETRY_S = 0.05
Result = TypeVar("Result")
log = structlog.get_logger()


class EdgeIndex:
    """`Index` over the process at `path`. While it is away calls wait for it, at most `patience_s`."""

    def __init__(self, path: Path, *, patience_s: float = 20.0) -> None:
        """Nothing happens before `run`. `on_open` is called at each new connection but is nobody's at first."""
        self.on_open: Callable[[], None] = lambda: None
        self._path = path
        self._patience_s = patience_s
        self._numbers = count(1)
        self._waiting: dict[int, asyncio.Future[msgspec.Raw]] = {}
        self._writer: asyncio.StreamWriter | None = None
        self._connected = asyncio.Event()

    async def put(self, points: Sequence[IndexPoint]) -> None:
        """Insert or replace; searchable when this returns."""
        for start in range(0, len(points), BATCH):
            await self._call(Put(list(points[start : start + BATCH])), type(None))

    async def delete(self, ids: Sequence[str]) -> None:
        """Remove."""
        await self._call(Delete(list(ids)), type(None))

    async def search(self, query: IndexQuery) -> list[tuple[str, float]]:
        """Ids and scores, best first."""
        return await self._call(Search(query), list[tuple[str, float]])

    async def inventory(self) -> dict[str, str]:
        """The stamp of every point, by id."""
        stamps: dict[str, str] = {}
        after = ""
        while True:
            page = await self._call(Inventory(after, PAGE), Page)
            stamps |= page.stamps
            after = page.after
            if not after:
                return stamps

    async def measure(self, texts: Sequence[str]) -> list[int]:
        """How many terms of each text count."""
        parts = [texts[start : start + BATCH] for start in range(0, len(texts), BATCH)]
        return [terms for part in parts for terms in await self._call(Measure(list(part)), list[int])]

    async def run(self) -> None:
        """Stay connected, until cancelled."""
        while True:
            try:
                reader, self._writer = await asyncio.open_unix_connection(str(self._path))
            except OSError:
                await asyncio.sleep(RETRY_S)
                continue
            try:
                self._connected.set()
                self.on_open()
                await self._read(reader)
            finally:
                self._hang_up()
            log.warning("index connection lost", socket=str(self._path))

    async def _read(self, reader: asyncio.StreamReader) -> None:
        decoder = msgspec.msgpack.Decoder(Answer)
        with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError, msgspec.DecodeError):
            while True:
                (length,) = HEADER.unpack(await reader.readexactly(HEADER.size))
                answer = decoder.decode(await reader.readexactly(length))
                future = self._waiting.pop(answer.number, None)
                if future is None or future.done():
                    continue
                if answer.error:
                    future.set_exception(RuntimeError(f"the index refused: {answer.error}"))
                else:
                    future.set_result(answer.result)

    def _hang_up(self) -> None:
        self._connected.clear()
        if self._writer is not None:
            self._writer.close()
            self._writer = None
        lost, self._waiting = self._waiting, {}
        for future in lost.values():
            if not future.done():
                future.set_exception(_gone("ended during the call"))

    async def _call(self, request: Put | Delete | Search | Inventory | Measure, kind: type[Result]) -> Result:
        if not self._connected.is_set():
            try:
                async with asyncio.timeout(self._patience_s):
                    await self._connected.wait()
            except TimeoutError as error:
                raise _gone(f"did not come back within {self._patience_s:g} s") from error
        assert self._writer is not None
        number = next(self._numbers)
        future = self._waiting[number] = asyncio.get_running_loop().create_future()
        self._writer.write(frame(Call(number, request)))
        try:
            return msgspec.msgpack.decode(await future, type=kind)
        finally:
            self._waiting.pop(number, None)


@asynccontextmanager
async def open_edge(folder: Path, path: Path, shape: Shape, supervisor: Supervisor) -> AsyncIterator[EdgeIndex]:
    """Start the process on `folder`, listening at `path`, and a client of it; both end with the block."""
    command = [sys.executable, "-m", "catena.memory.drivers.edge_process", str(folder), str(path)]
    child = Child(name=CHILD, command=[*command, str(shape.dimension), shape.language], ready=_ready(path))
    await supervisor.start(child)
    index = EdgeIndex(path)
    running = asyncio.create_task(index.run(), name="index client")
    try:
        yield index
    finally:
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
        await supervisor.stop(CHILD)


def _ready(path: Path) -> Callable[[], Awaitable[bool]]:
    async def ready() -> bool:
        try:
            _, writer = await asyncio.open_unix_connection(str(path))
        except OSError:
            return False
        writer.close()
        return True

    return ready


def _gone(how: str) -> Unavailable:
    return Unavailable(
        f"the memory index {how}; it is being restarted, try again", code="index_away", retry_after_s=1.0
    )
