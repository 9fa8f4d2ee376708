import asyncio
import subprocess
import sys

import pytest
import sqlalchemy as sa

from catena.kit.errors import Conflict, Invalid, Unavailable
from catena.kit.store import Json, open_store, upsert
from catena.kit.testing import free_port, postgres, sqlite_url

METADATA = sa.MetaData()
NOTES = sa.Table(
    "notes",
    METADATA,
    sa.Column("id", sa.Text, primary_key=True),
    sa.Column("body", Json),
    sa.Column("hits", sa.Integer, nullable=False, server_default="0"),
)


@pytest.fixture(params=["sqlite", "postgresql"])
async def url(request, tmp_path):
    if request.param == "sqlite":
        yield sqlite_url(tmp_path)
    else:
        async with postgres() as address:
            yield address


async def rows(store, table=NOTES):
    async with store.connect() as conn:
        return [tuple(row) for row in await conn.execute(sa.select(table).order_by(table.c.id))]


async def test_keeps_what_was_committed_and_forgets_what_was_rolled_back(url):
    async with open_store(url, METADATA, room="features") as store:
        async with store.begin() as conn:
            await conn.execute(NOTES.insert().values(id="kept", body={"a": [1, None]}))
        with pytest.raises(RuntimeError):
            async with store.begin() as conn:
                await conn.execute(NOTES.insert().values(id="lost"))
                raise RuntimeError
    async with open_store(url, METADATA, room="features") as store:
        assert await rows(store) == [("kept", {"a": [1, None]}, 0)]


async def test_upsert_writes_a_row_once_and_then_changes_it(url):
    async with open_store(url, METADATA, room="features") as store:
        for _ in range(3):
            async with store.begin() as conn:
                insert = upsert(NOTES, conn).values(id="a", hits=1)
                await conn.execute(
                    insert.on_conflict_do_update(
                        index_elements=["id"], set_={"hits": NOTES.c.hits + insert.excluded.hits}
                    )
                )
        assert await rows(store) == [("a", None, 3)]


async def test_writers_in_one_process_take_turns(url):
    async with open_store(url, METADATA, room="features") as store:
        async with store.begin() as conn:
            await conn.execute(NOTES.insert().values(id="n"))

        async def bump():
            async with store.begin() as conn:
                hits = await conn.scalar(sa.select(NOTES.c.hits).with_for_update())
                await conn.execute(NOTES.update().values(hits=hits + 1))

        await asyncio.gather(*(bump() for _ in range(50)))
        assert await rows(store) == [("n", None, 50)]


async def test_writers_that_were_cancelled_leave_the_database_to_the_next(tmp_path):
    gone = []  # a task that is kept keeps the statement that it ran
    async with asyncio.timeout(25):
        for turn in range(40):
            async with open_store(sqlite_url(tmp_path), METADATA, room="features") as store:
                writer = asyncio.create_task(write_without_end(store))
                await asyncio.sleep(turn * 0.0005)
                writer.cancel()
                await asyncio.sleep(0)
                writer.cancel()
                await asyncio.wait([writer])
                gone.append(writer)
    assert all(writer.cancelled() for writer in gone)
    assert asyncio.all_tasks() == {asyncio.current_task()}


async def write_without_end(store):
    while True:
        async with store.begin() as conn:
            await conn.execute(NOTES.insert().values(id="a"))
            await conn.execute(NOTES.delete())


async def test_a_broken_constraint_is_a_conflict(url):
    async with open_store(url, METADATA, room="features") as store:
        async with store.begin() as conn:
            await conn.execute(NOTES.insert().values(id="a"))
        with pytest.raises(Conflict):
            async with store.begin() as conn:
                await conn.execute(NOTES.insert().values(id="a"))


async def test_a_reading_connection_cannot_write(url):
    async with open_store(url, METADATA, room="features") as store:
        with pytest.raises(sa.exc.DBAPIError, match=r"read-?only"):
            async with store.connect() as conn:
                await conn.execute(NOTES.insert().values(id="a"))
        async with store.begin() as conn:
            await conn.execute(NOTES.insert().values(id="b"))
        assert await rows(store) == [("b", None, 0)]


async def test_rooms_in_one_database_do_not_see_each_other():
    async with (
        postgres() as url,
        open_store(url, METADATA, room="features") as one,
        open_store(url, METADATA, room="memory") as other,
    ):
        async with one.begin() as conn:
            await conn.execute(NOTES.insert().values(id="mine"))
        assert await rows(other) == []


def add_colour(operations):
    with operations.batch_alter_table("notes") as notes:
        notes.add_column(sa.Column("colour", sa.Text, nullable=False, server_default="red"))


def fill_colour(operations):
    operations.execute("UPDATE notes SET colour = 'blue'")


NEWER = sa.MetaData()
COLOURED = sa.Table(
    "notes",
    NEWER,
    sa.Column("id", sa.Text, primary_key=True),
    sa.Column("body", Json),
    sa.Column("hits", sa.Integer, nullable=False, server_default="0"),
    sa.Column("colour", sa.Text, nullable=False, server_default="red"),
)


async def test_an_older_database_is_brought_up_once_and_in_order(url):
    async with open_store(url, METADATA, room="features") as store, store.begin() as conn:
        await conn.execute(NOTES.insert().values(id="a"))
    for _ in range(2):
        async with open_store(url, NEWER, room="features", migrations=[add_colour, fill_colour]) as store:
            assert await rows(store, COLOURED) == [("a", None, 0, "blue")]


async def test_a_migration_that_fails_leaves_the_database_as_it_was(url):
    def fail(operations):
        raise RuntimeError

    async with open_store(url, METADATA, room="features"):
        pass
    with pytest.raises(RuntimeError):
        async with open_store(url, NEWER, room="features", migrations=[add_colour, fail]):
            pass
    async with open_store(url, NEWER, room="features", migrations=[add_colour]) as store:
        assert await rows(store, COLOURED) == []


async def test_refuses_a_database_made_by_newer_code(url):
    async with open_store(url, NEWER, room="features", migrations=[add_colour]):
        pass
    with pytest.raises(Conflict, match="newer release"):
        async with open_store(url, METADATA, room="features"):
            pass


async def test_begin_within_begin_is_refused_rather_than_waited_for(tmp_path):
    async with open_store(sqlite_url(tmp_path), METADATA, room="features") as store, store.begin():
        with pytest.raises(RuntimeError, match="wait for itself"):
            async with store.begin():
                pass


async def test_refuses_a_room_that_cannot_name_a_schema(tmp_path):
    with pytest.raises(Invalid, match="schema"):
        async with open_store(sqlite_url(tmp_path), METADATA, room="a; drop"):
            pass


WRITER = """
import asyncio, sys
import sqlalchemy as sa
from catena.kit.store import open_store

metadata = sa.MetaData()
table = sa.Table("counts", metadata, sa.Column("id", sa.Integer, primary_key=True), sa.Column("n", sa.Integer))

async def main():
    async with open_store(sys.argv[1], metadata, room="features") as store:
        for _ in range(100):
            async with store.begin() as conn:
                n = await conn.scalar(sa.select(table.c.n))
                if n is None:
                    await conn.execute(table.insert().values(id=1, n=1))
                else:
                    await conn.execute(table.update().values(n=n + 1))

asyncio.run(main())
"""


async def test_processes_that_write_one_sqlite_file_wait_for_each_other(tmp_path):
    url = sqlite_url(tmp_path)
    command = [sys.executable, "-c", WRITER, url]
    writers = [await asyncio.create_subprocess_exec(*command, stderr=subprocess.PIPE) for _ in range(3)]
    errors = [(await writer.communicate())[1].decode() for writer in writers]
    assert errors == ["", "", ""]
    metadata = sa.MetaData()
    counts = sa.Table("counts", metadata, sa.Column("id", sa.Integer), sa.Column("n", sa.Integer))
    async with open_store(url, metadata, room="features") as store:
        assert await rows(store, counts) == [(1, 300)]


async def test_an_absent_database_is_unavailable(tmp_path):
    for url in (f"postgresql://postgres@127.0.0.1:{free_port()}/x", sqlite_url(tmp_path / "absent")):
        with pytest.raises(Unavailable):
            async with open_store(url, METADATA, room="features"):
                pass
