"""Keeps an index equal to the library: follows each commit, and compares all of both whenever the index came anew."""

import asyncio
from collections.abc import Mapping, Sequence
from typing import Protocol

import structlog

from catena.kit.errors import CatenaError, Unavailable
from catena.memory.core.ports import Index, IndexPoint

BATCH = 250
PAUSE_S = 0.2
PATIENCE_S = 20.0
log = structlog.get_logger()


class Source(Protocol):
    """The library, as points."""

    async def points(self, chunk_ids: Sequence[str]) -> dict[str, IndexPoint]:
        """What the index should hold of these chunks; those that are gone are left out."""
        ...

    async def stamps(self) -> dict[str, str]:
        """The stamp that each chunk's index entry should carry."""
        ...


class Mirror:
    """One writer to the index: whatever order commits came in, it reads the library's latest word before it writes."""

    def __init__(self, source: Source, index: Index, *, patience_s: float = PATIENCE_S) -> None:
        """Nothing happens before `run`; `follow` waits at most `patience_s`."""
        self._source = source
        self._index = index
        self._patience_s = patience_s
        self._waiting: list[tuple[set[str], asyncio.Future[None]]] = []
        self._unchecked = True
        self._news = asyncio.Event()
        self._news.set()

    async def follow(self, chunk_ids: set[str]) -> None:
        """Return once the index holds what the library says of these chunks.

        Raises Unavailable when the index stays away; the work is not forgotten.
        """
        if not chunk_ids:
            return
        done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append((chunk_ids, done))
        self._news.set()
        try:
            async with asyncio.timeout(self._patience_s):
                await done
        except TimeoutError as error:
            raise Unavailable(
                f"committed, but the index did not follow within {self._patience_s:g} s; it will once it is back",
                code="index_away",
                retry_after_s=1.0,
            ) from error

    def distrust(self) -> None:
        """Compare everything before the next write: the index is new, or its process died."""
        self._unchecked = True
        self._news.set()

    async def run(self) -> None:
        """Follow until cancelled. While the index is away work waits."""
        while True:
            await self._news.wait()
            self._news.clear()
            batch, self._waiting = self._waiting, []
            await self._catch_up(batch)

    async def _catch_up(self, batch: list[tuple[set[str], asyncio.Future[None]]]) -> None:
        wanted = set[str]().union(*(ids for ids, _ in batch))
        failure: Exception | None = None
        while True:
            try:
                await self._apply(wanted | await self._strays())
                break
            except CatenaError as error:
                log.warning("index waits", error=str(error), chunks=len(wanted))
                await asyncio.sleep(PAUSE_S)
            except Exception as error:
                log.exception("index does not follow", chunks=len(wanted))
                failure = error
                break
        for _, done in batch:
            if not done.done():
                done.set_exception(failure) if failure else done.set_result(None)

    async def _strays(self) -> set[str]:
        """Chunks on which library and index differ, if there is reason to look."""
        if not self._unchecked:
            return set()
        self._unchecked = False
        try:
            strays = differing(await self._source.stamps(), await self._index.inventory())
        except BaseException:
            self._unchecked = True
            raise
        if strays:
            log.info("index differs from the library", chunks=len(strays))
        return strays

    async def _apply(self, chunk_ids: set[str]) -> None:
        ordered = sorted(chunk_ids)
        for start in range(0, len(ordered), BATCH):
            page = ordered[start : start + BATCH]
            points = await self._source.points(page)
            if points:
                await self._index.put(list(points.values()))
            gone = [chunk_id for chunk_id in page if chunk_id not in points]
            if gone:
                await self._index.delete(gone)


def differing(wanted: Mapping[str, str], held: Mapping[str, str]) -> set[str]:
    """Ids whose stamps differ, or that one side lacks."""
    return {key for key in wanted.keys() | held.keys() if wanted.get(key) != held.get(key)}
