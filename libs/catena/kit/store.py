"""Each room's own SQL: one SQLite file, or one schema of a PostgreSQL; opened, migrated and guarded the same way.

A room's `drivers` declare Core tables in a MetaData and write only inside `Store.begin`. Writers never meet
"database is locked": within a process they queue on one lock, between processes on SQLite's own (BEGIN IMMEDIATE waits
its turn; a deferred transaction that upgrades later would fail instead).
"""

import asyncio
import contextlib
import re
import sqlite3
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any, Literal

import sqlalchemy as sa
from alembic.migration import MigrationContext
from alembic.operations import Operations
from sqlalchemy import event
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.exc import IntegrityError, InterfaceError, OperationalError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, create_async_engine

from catena.kit.errors import CatenaError, Conflict, Invalid, Unavailable
from catena.kit.sqlite import SqliteFile

Json = sa.JSON(none_as_null=True).with_variant(postgresql.JSONB(none_as_null=True), "postgresql")
"""A column of plain JSON data; Python's None is stored as SQL NULL."""

BUSY_TIMEOUT_MS = 30_000
READERS = 4
WAL_TRIES = 100
EMITTED = "catena.emitted"
Migration = Callable[[Operations], None]

_VERSION = sa.Table("schema_version", sa.MetaData(), sa.Column("version", sa.Integer, nullable=False))


class Store:
    """One room's database. Reads go through `connect`, writes through `begin`.

    `emitted` is set whenever a transaction that put events into the outbox has been committed.
    """

    def __init__(self, engine: AsyncEngine, reader: AsyncEngine, file: SqliteFile | None = None) -> None:
        """Take the engine that writes and the one that reads (on PostgreSQL the same), and the file under them."""
        self.engine = engine
        self.emitted = asyncio.Event()
        self._reader = reader
        self._file = file
        self._turn = asyncio.Lock() if engine.dialect.name == "sqlite" else None
        self._writing: asyncio.Task[Any] | None = None

    @asynccontextmanager
    async def begin(self) -> AsyncIterator[AsyncConnection]:
        """A write transaction: committed when the block ends, rolled back when it raises.

        Raises Unavailable when the database does not answer, Conflict when a constraint is broken.
        """
        async with self._my_turn(), _database_errors():
            async with self.engine.begin() as conn:
                conn.info.pop(EMITTED, None)
                yield conn
                emitted = conn.info.pop(EMITTED, False)
            if emitted:
                self.emitted.set()

    @asynccontextmanager
    async def connect(self) -> AsyncIterator[AsyncConnection]:
        """A connection that reads one consistent snapshot; a write through it fails."""
        async with _database_errors(), self._reader.connect() as conn:
            if self._turn is None:
                await conn.execution_options(postgresql_readonly=True, isolation_level="REPEATABLE READ")
            yield conn

    async def close(self) -> None:
        """Close every connection."""
        await self.engine.dispose()
        await self._reader.dispose()
        if self._file is not None:
            await self._file.close()

    @asynccontextmanager
    async def _my_turn(self) -> AsyncIterator[None]:
        if self._turn is None:
            yield
            return
        me = asyncio.current_task()
        if me is not None and self._writing is me:
            raise RuntimeError("begin() inside begin() would wait for itself; pass the connection down instead")
        async with self._turn:
            self._writing = me
            try:
                yield
            finally:
                self._writing = None


@asynccontextmanager
async def open_store(
    url: str,
    metadata: sa.MetaData,
    *,
    room: str,
    migrations: Sequence[Migration] = (),
    synchronous: Literal["NORMAL", "FULL"] = "NORMAL",
) -> AsyncIterator[Store]:
    """Open `room`'s database, bring its tables up to `metadata`, and close it at the end.

    `metadata` is the newest shape. An empty database gets it whole; an older one runs the `migrations` it lacks, in
    order, in one transaction. Never edit or reorder a migration that has shipped: append.
    Raises Conflict when the database was made by newer code, Unavailable when it does not answer.
    """
    if not re.fullmatch(r"[a-z_][a-z0-9_]*", room):
        raise Invalid(f"room {room!r} cannot name a schema; use lower-case letters, digits and underscores")
    sqlite_file = sa.make_url(url).get_backend_name() == "sqlite"
    store = _open_sqlite(url, synchronous) if sqlite_file else _open_postgres(url, room)
    try:
        if sqlite_file:
            await asyncio.to_thread(_enable_wal, store.engine.url.database or "")
        async with store.begin() as conn:
            await conn.run_sync(_bring_up, metadata, migrations, room)
        yield store
    finally:
        await store.close()


def upsert(table: sa.Table, conn: AsyncConnection) -> "sqlite.Insert | postgresql.Insert":
    """The connected dialect's INSERT into `table`, which has `on_conflict_do_update` and `on_conflict_do_nothing`."""
    return upsert_for(table, conn.dialect.name)


def upsert_for(table: sa.Table, dialect: str) -> "sqlite.Insert | postgresql.Insert":
    """The same by the dialect's name, for statements that are made once."""
    return sqlite.insert(table) if dialect == "sqlite" else postgresql.insert(table)


def _open_sqlite(url: str, synchronous: str) -> Store:
    file = SqliteFile(sa.make_url(url).database or "")
    writer = create_async_engine(url, pool_size=1, max_overflow=0, async_creator=file.connect)
    reader = create_async_engine(url, pool_size=READERS, max_overflow=READERS, async_creator=file.connect)

    def on_connect(connection: Any, _: Any) -> None:
        connection.isolation_level = None  # sqlite3 would otherwise begin deferred transactions by itself
        cursor = connection.cursor()
        cursor.execute(f"PRAGMA busy_timeout = {BUSY_TIMEOUT_MS}")
        cursor.execute("PRAGMA foreign_keys = ON")
        cursor.execute(f"PRAGMA synchronous = {synchronous}")
        cursor.close()

    def read_only(connection: Any, _: Any) -> None:
        cursor = connection.cursor()
        cursor.execute("PRAGMA query_only = ON")
        cursor.close()

    for engine in (writer, reader):
        event.listen(engine.sync_engine, "connect", on_connect)
    event.listen(reader.sync_engine, "connect", read_only)
    event.listen(writer.sync_engine, "begin", lambda conn: conn.exec_driver_sql("BEGIN IMMEDIATE"))
    event.listen(reader.sync_engine, "begin", lambda conn: conn.exec_driver_sql("BEGIN"))
    return Store(writer, reader, file)


def _open_postgres(url: str, room: str) -> Store:
    driver = sa.make_url(url).set(drivername="postgresql+psycopg")
    engine = create_async_engine(
        driver,
        pool_size=READERS,
        max_overflow=2 * READERS,
        pool_pre_ping=True,
        connect_args={"options": f"-csearch_path={room}", "connect_timeout": 5},
    )
    return Store(engine, engine)


def _enable_wal(path: str) -> None:
    """Switch the file to WAL, for good. SQLite does not queue processes that switch at once, so ask again."""
    for attempt in range(WAL_TRIES):
        try:
            with contextlib.closing(sqlite3.connect(path, timeout=BUSY_TIMEOUT_MS / 1000)) as conn:
                mode = conn.execute("PRAGMA journal_mode = WAL").fetchone()[0]
        except sqlite3.OperationalError as error:
            if "locked" not in str(error) or attempt == WAL_TRIES - 1:
                raise Unavailable(
                    f"cannot open {path}: {error}; check that the folder exists and is writable"
                ) from error
            time.sleep(0.05)
        else:
            if mode != "wal":
                raise Invalid(f"{path} stays in journal mode {mode!r}; put the file on a local file system")
            return


def _bring_up(conn: sa.Connection, metadata: sa.MetaData, migrations: Sequence[Migration], room: str) -> None:
    if conn.dialect.name == "postgresql":
        conn.execute(sa.select(sa.func.pg_advisory_xact_lock(sa.func.hashtext(f"catena.{room}"))))
        conn.execute(sa.schema.CreateSchema(room, if_not_exists=True))
    target = len(migrations)
    if not sa.inspect(conn).has_table(_VERSION.name):
        _VERSION.create(conn)
        metadata.create_all(conn)
        conn.execute(_VERSION.insert().values(version=target))
        return
    version = conn.scalar(sa.select(_VERSION.c.version))
    if version is None or version > target:
        raise Conflict(
            f"the database of {room} has schema version {version}, this code knows {target}; "
            f"run a newer release or restore a backup made before the upgrade",
            code="newer_database",
        )
    operations = Operations(MigrationContext.configure(conn))
    for migrate in migrations[version:]:
        migrate(operations)
    if version < target:
        conn.execute(_VERSION.update().values(version=target))


@asynccontextmanager
async def _database_errors() -> AsyncIterator[None]:
    """Map what a driver raises to a kind of error, so that callers and consumers know whether waiting helps."""
    try:
        yield
    except CatenaError:
        raise
    except IntegrityError as error:
        raise Conflict(f"a constraint refuses the write: {error.orig}", code="constraint") from error
    except (OperationalError, InterfaceError) as error:
        if _is_outage(error):
            raise Unavailable(f"the database does not answer: {error.orig}", retry_after_s=1.0) from error
        raise


def _is_outage(error: OperationalError | InterfaceError) -> bool:
    """SQLite reports programming mistakes as operational errors too; only a lock or a full disk may pass by itself."""
    if type(error.orig).__module__.startswith("sqlite3"):
        return any(word in str(error.orig) for word in ("locked", "busy", "disk"))
    return True
