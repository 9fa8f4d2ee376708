"""aiosqlite's connection, made safe against cancellation: a task that is cancelled leaves neither a lock nor a task."""

import asyncio
import contextlib
import sqlite3
from functools import partial
from pathlib import Path
from weakref import WeakSet

import aiosqlite


class _File(sqlite3.Connection):
    """A connection that ends its transaction when it is closed.

    Closing alone does not while a statement lives (sqlite3_close_v2), and a statement lives as long as the traceback of
    the cancelled task that ran it.
    """

    def close(self) -> None:
        """Roll back what is open, then close."""
        with contextlib.suppress(sqlite3.Error):
            self.rollback()
        super().close()


class _Connection(aiosqlite.Connection):
    """A connection that may be stopped and closed any number of times, at once; its thread ends once.

    aiosqlite's own waits for a second end that never comes, and may forget to close what a stop was asked to close;
    SQLAlchemy asks for both when a task is cancelled twice.
    """

    _stopping = False
    _stopped: asyncio.Future[None] | None = None

    def stop(self) -> asyncio.Future[None] | None:
        """Have the thread close the file after what it is doing, and end."""
        if not self._stopping:
            self._stopping = True
            self._stopped = super().stop()
        return self._stopped

    async def close(self) -> None:
        """Stop, and wait for the end."""
        stopped = self.stop()
        if stopped is not None:
            await asyncio.shield(stopped)


class SqliteFile:
    """One SQLite file, and the connections to it that are open."""

    def __init__(self, path: str | Path) -> None:
        """Name the file; nothing is opened yet."""
        self._path = path
        self._open: WeakSet[_Connection] = WeakSet()

    async def connect(self) -> aiosqlite.Connection:
        """Open the file in a thread of its own. Raises sqlite3.OperationalError when it cannot be opened."""
        connection = _Connection(partial(sqlite3.connect, self._path, factory=_File), iter_chunk_size=64)
        connection._thread.daemon = True  # as SQLAlchemy does for its own: a thread left over must not hold up the exit
        self._open.add(connection)
        return await connection

    async def close(self) -> None:
        """Close what is open, and wait for what is being closed."""
        await asyncio.gather(*(connection.close() for connection in list(self._open)))
