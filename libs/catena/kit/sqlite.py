"""aiosqlite's connection, with one visit to its thread a statement, and safe against cancellation.

aiosqlite goes to the thread to make a cursor, to execute, to fetch and to close; each time costs more than most
statements. A task that is cancelled in the midst of it leaves neither a lock nor a task behind.
"""

import asyncio
import contextlib
import sqlite3
from collections.abc import Iterable
from functools import partial
from pathlib import Path
from typing import Any
from weakref import WeakSet

import aiosqlite
from aiosqlite.context import Result


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


class _Cursor(aiosqlite.Cursor):
    """A cursor that fetches all there is as it executes."""

    def __init__(self, conn: "_Connection", cursor: sqlite3.Cursor) -> None:
        super().__init__(conn, cursor)
        self._rows: list[Any] = []

    async def execute(self, sql: str, parameters: Iterable[Any] | None = None) -> "_Cursor":
        """Run a statement, and keep its rows."""
        await self._execute(self._run, sql, parameters or ())  # type: ignore[no-untyped-call]
        return self

    async def fetchall(self) -> list[Any]:
        """The rows that are left."""
        return await self.fetchmany(len(self._rows))

    async def fetchmany(self, size: int | None = None) -> list[Any]:
        """The next rows."""
        count = self.arraysize if size is None else size
        taken, self._rows = self._rows[:count], self._rows[count:]
        return taken

    async def fetchone(self) -> Any:
        """The next row; None after the last."""
        return next(iter(await self.fetchmany(1)), None)

    async def close(self) -> None:
        """Forget the rows; the statement was done when the last of them was read."""
        self._rows = []

    def _run(self, sql: str, parameters: Any) -> None:
        self._cursor.execute(sql, parameters)
        self._rows = self._cursor.fetchall() if self._cursor.description else []


class _Connection(aiosqlite.Connection):
    """A connection that may be stopped and closed any number of times, at once; its thread ends once.

    aiosqlite's own waits for a second end that never comes, and may forget to close what a stop was asked to close;
    SQLAlchemy asks for both when a task is cancelled twice.
    """

    _stopping = False
    _stopped: asyncio.Future[None] | None = None

    def cursor(self) -> Result[aiosqlite.Cursor]:
        """A cursor, made here: SQLite itself hears of it only when it executes."""

        async def made() -> aiosqlite.Cursor:
            return _Cursor(self, self._conn.cursor())

        return Result(made())

    async def rollback(self) -> None:
        """End a transaction, if there is one."""
        if self._conn.in_transaction:
            await super().rollback()

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
        connection = _Connection(
            partial(sqlite3.connect, self._path, factory=_File, check_same_thread=False), iter_chunk_size=64
        )
        connection._thread.daemon = True  # as SQLAlchemy does for its own: a thread left over must not hold up the exit
        self._open.add(connection)
        return await connection

    async def close(self) -> None:
        """Close what is open, and wait for what is being closed."""
        await asyncio.gather(*(connection.close() for connection in list(self._open)))
