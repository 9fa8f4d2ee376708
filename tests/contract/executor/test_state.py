"""The executor's SQL on both databases: leases of runs, records once, figures, retention, catalogue seeds."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from catena.executor.core.background import RunEnd, StoredRun
from catena.executor.core.catalogue import Model
from catena.executor.core.chat import ChatRequest, Image, Message, Score, Usage
from catena.executor.core.events import Record, StageResult
from catena.executor.drivers import tables
from catena.executor.drivers.catalogue import Served, SqlCatalogue
from catena.executor.drivers.records import GROUP_S, SqlRecords, Waiting
from catena.executor.drivers.runs import Announcements, SqlRuns
from catena.executor.drivers.tables import METADATA, MIGRATIONS
from catena.executor.handlers import wire
from catena.kit.clock import ManualClock, World, still_world
from catena.kit.outbox import Outbox
from catena.kit.store import Store, open_store
from catena.kit.testing import MemoryBus, eventually, postgres, running, sqlite_url
from catena.plan.model import Role, Shape
from tests.unit.executor.fakes import errand, plan, stage

ANY = plan(Shape.SEQUENTIAL, stage(Role.MAIN, "large"))
STAGE = StageResult(name="main", role=Role.MAIN, model="large", duration_ms=4.0, usage=Usage(input_tokens=3))


@pytest.fixture(params=["sqlite", "postgresql"])
async def store(request: Any, tmp_path: Path) -> AsyncIterator[Store]:
    if request.param == "sqlite":
        async with open_store(sqlite_url(tmp_path), METADATA, room="executor") as opened:
            yield opened
    else:
        async with postgres() as url, open_store(url, METADATA, room="executor") as opened:
            yield opened


def state(store: Store) -> tuple[World, MemoryBus, SqlRecords, SqlRuns]:
    world, bus = still_world(), MemoryBus()
    told = Announcements(submitted=wire.run_submitted_event, finished=wire.run_finished_event)
    records = SqlRecords(store, world, event=wire.completed_event)
    runs = SqlRuns(store, Outbox(store, bus, world), records, world, events=told)
    return world, bus, records, runs


def run(run_id: str, tenant: str = "acme") -> StoredRun:
    asked = replace(errand(ANY), left_s=0.0)
    return StoredRun(id=run_id, tenant=tenant, role="user", state="queued", created_s=1.0, errand=asked)


def record(execution_id: str, **more: Any) -> Record:
    given: dict[str, Any] = {
        "id": execution_id,
        "tenant": "acme",
        "created_s": 1_800_000_000.0,
        "plan": ANY,
        "context": errand(ANY).context,
        "stages": (STAGE,),
        "usage": STAGE.usage,
        "cost_usd": 0.5,
        "duration_ms": 5.0,
        "outcome": "succeeded",
    }
    return Record(**(given | more))


class Counted(SqlRecords):
    """Counts the groups that it writes."""

    groups = 0

    async def write(self, conn: AsyncConnection, waiting: Sequence[Waiting]) -> None:
        self.groups += 1
        await super().write(conn, waiting)


async def test_what_comes_while_a_group_is_written_waits_for_the_next_one(store: Store) -> None:
    records, loop = Counted(store, still_world(), event=wire.completed_event), asyncio.get_running_loop()
    began_s = loop.time()
    async with running(records.run()):
        for number in range(150):
            records.add(record(f"e{number}"))
            await asyncio.sleep(0.001)
    assert records.groups <= 2 + (loop.time() - began_s) / GROUP_S
    assert await records.get("acme", "e149") is not None


async def test_a_held_run_is_nobody_elses_until_its_lease_has_run_out(store: Store) -> None:
    world, _, _, runs = state(store)
    assert isinstance(world.clock, ManualClock)
    await runs.submit(run("r"), "")
    claimed = await runs.claim("one", 5, 10.0)
    assert [found.id for found in claimed] == ["r"]
    assert claimed[0].errand == run("r").errand
    world.clock.advance(9)
    assert await runs.claim("two", 5, 10.0) == ()
    assert await runs.renew("one", ["r"], 10.0) == {"r": False}
    world.clock.advance(9)
    assert await runs.claim("two", 5, 10.0) == ()
    world.clock.advance(2)
    assert [found.id for found in await runs.claim("two", 5, 10.0)] == ["r"]
    assert await runs.renew("one", ["r"], 10.0) == {}


async def test_only_the_holder_ends_a_run_and_only_once(store: Store) -> None:
    world, bus, records, runs = state(store)
    assert isinstance(world.clock, ManualClock)
    await runs.submit(run("r"), "")
    await runs.claim("one", 5, 10.0)
    world.clock.advance(11)
    await runs.claim("two", 5, 10.0)
    await runs.note("r", "1", b"kept")
    await runs.finish("one", "r", RunEnd(state="failed", result=None, error="late", record=record("r")))
    found = await runs.get("acme", "r")
    assert found is not None
    assert found.state == "running"
    assert await runs.recall("r", "1") == b"kept"
    end = RunEnd(state="succeeded", result=None, error="", record=record("r"))
    await runs.finish("two", "r", end)
    await runs.finish("two", "r", end)
    assert await runs.recall("r", "1") is None, "the log is not needed any more"
    async with running(Outbox(store, bus, world).run()):
        await eventually(lambda: len(bus.events) >= 3)
    assert sorted(event.type for event in bus.events) == [
        "executor.execution.completed",
        "executor.run.finished",
        "executor.run.submitted",
    ]
    kept = await records.get("acme", "r")
    assert kept is not None
    assert kept.outcome == "succeeded"


async def test_large_parts_of_a_run_lie_beside_it_once_until_it_has_ended(store: Store) -> None:
    _, _, _, runs = state(store)
    picture, words = "data:image/png;base64," + "A" * 100_000, "w" * 20_000
    turn = Message(role="user", content=words, images=(Image(url=picture), Image(url="https://x/y.png")))
    asked = replace(errand(ANY), left_s=0.0, request=ChatRequest(messages=(turn, turn)))

    async def sizes() -> tuple[int, list[int]]:
        async with store.connect() as conn:
            row = len((await conn.execute(sa.select(tables.runs.c.errand))).scalar_one())
            beside = (await conn.execute(sa.select(tables.run_payloads.c.body))).scalars().all()
        return row, sorted(len(body) for body in beside)

    await runs.submit(replace(run("r"), errand=asked), "")
    row, beside = await sizes()
    assert row < 5000
    assert beside == [len(words), len(picture)]
    assert (await runs.claim("one", 1, 10.0))[0].errand == asked
    await runs.finish("one", "r", RunEnd(state="failed", result=None, error="x: y", record=None))
    assert (await sizes())[1] == []


async def test_what_only_looks_like_a_reference_is_left_alone(store: Store) -> None:
    _, _, _, runs = state(store)
    told = replace(errand(ANY, "ref:sha256:abc"), left_s=0.0)
    await runs.submit(replace(run("r"), errand=told), "")
    assert (await runs.claim("one", 1, 10.0))[0].errand == told


async def test_a_submitted_run_is_announced_once_with_what_was_stored(store: Store) -> None:
    world, bus, _, runs = state(store)
    await runs.submit(run("r"), "once")
    await runs.submit(run("s"), "once")
    async with running(Outbox(store, bus, world).run()):
        await eventually(lambda: bool(bus.events), 30.0)
    (told,) = bus.events
    assert (told.type, told.subject, told.tenant) == ("executor.run.submitted", "r", "acme")


async def test_a_request_id_makes_one_run_per_tenant(store: Store) -> None:
    _, _, _, runs = state(store)
    first = await runs.submit(run("a"), "same")
    again = await runs.submit(run("b"), "same")
    other = await runs.submit(run("c", "other"), "same")
    anew = await runs.submit(run("d"), "")
    assert [found.id for found in (first, again, other, anew)] == ["a", "a", "c", "d"]


async def test_a_queued_run_is_cancelled_at_once_a_running_one_by_its_holder(store: Store) -> None:
    _, _, _, runs = state(store)
    await runs.submit(run("queued"), "")
    ended = await runs.wish_end("acme", "queued")
    assert ended is not None
    assert ended.state == "cancelled"
    await runs.submit(run("running"), "")
    await runs.claim("one", 5, 10.0)
    await runs.wish_end("acme", "running")
    assert await runs.renew("one", ["running"], 10.0) == {"running": True}
    assert await runs.wish_end("other", "running") is None


async def test_records_are_written_once_with_one_event_and_counted_once(store: Store) -> None:
    world, bus, records, _ = state(store)
    for _ in range(2):
        async with store.begin() as conn:
            await records.write(conn, [Waiting(record("e", scores=(Score(value=1.0, source="schema"),)), "")])
    figures = await records.figures("acme", "")
    assert (figures[0].executions, figures[0].cost_usd) == (1, 0.5)
    assert (figures[0].stages[0].calls, figures[0].stages[0].mean_duration_ms) == (1, 4.0)
    assert await records.figures("other", "") == []
    async with running(Outbox(store, bus, world).run()):
        await eventually(lambda: bool(bus.events))
    assert len(bus.events) == 1
    for _ in range(2):
        await records.score("feedback-1", "acme", "e", 0.25)
    await records.score("feedback-2", "acme", "nobody", 1.0)
    await records.score("feedback-3", "other", "e", 1.0)
    found = await records.get("acme", "e")
    assert found is not None
    assert {(score.source, score.value) for score in found.scores} == {("schema", 1.0), ("feedback", 0.25)}
    assert found.plan == ANY


async def test_a_score_that_overtakes_its_execution_shows_once_that_is_recorded(store: Store) -> None:
    _, _, records, _ = state(store)
    await records.score("f", "acme", "e", 0.25)
    async with store.begin() as conn:
        await records.write(conn, [Waiting(record("e"), "")])
    found = await records.get("acme", "e")
    assert found is not None
    assert [(score.source, score.value) for score in found.scores] == [("feedback", 0.25)]


BEFORE = (
    "CREATE TABLE execution_scores (execution_id TEXT REFERENCES executions (id) ON DELETE CASCADE, number TEXT, "
    "source TEXT NOT NULL, value DOUBLE PRECISION NOT NULL, PRIMARY KEY (execution_id, number))",
    "INSERT INTO executions VALUES ('e', 'acme', 5.0, '{}', NULL)",
    "INSERT INTO execution_scores VALUES ('e', 'f', 'feedback', 0.25)",
)


@pytest.mark.parametrize("database", ["sqlite", "postgresql"])
async def test_a_database_from_before_keeps_its_scores_and_takes_more(tmp_path: Path, database: str) -> None:
    older = sa.MetaData()
    for table in METADATA.tables.values():
        if table.name not in ("execution_scores", "run_payloads"):
            table.to_metadata(older)
    async with AsyncExitStack() as stack:
        url = sqlite_url(tmp_path) if database == "sqlite" else await stack.enter_async_context(postgres())
        async with open_store(url, older, room="executor") as old, old.begin() as conn:
            for statement in BEFORE:
                await conn.execute(sa.text(statement))
        new = await stack.enter_async_context(open_store(url, METADATA, room="executor", migrations=MIGRATIONS))
        await state(new)[2].score("g", "acme", "nobody", 1.0)
        asked = replace(errand(ANY, "w" * 20_000), left_s=0.0)
        await state(new)[3].submit(replace(run("r"), errand=asked), "")
        assert (await state(new)[3].claim("one", 1, 10.0))[0].errand == asked
        async with new.connect() as conn:
            rows = (await conn.execute(sa.select(tables.scores).order_by(tables.scores.c.number))).all()
    assert [(row.tenant, row.execution_id, row.value) for row in rows] == [("acme", "e", 0.25), ("acme", "nobody", 1.0)]
    assert rows[0].created_s == 5.0


async def test_records_are_committed_within_fifty_milliseconds_and_at_the_end(store: Store) -> None:
    _, _, records, _ = state(store)

    async def there(execution_id: str) -> bool:
        return await records.get("acme", execution_id) is not None

    writing = asyncio.create_task(records.run())
    records.add(record("early"))
    await eventually(lambda: there("early"))
    records.add(record("last"))
    writing.cancel()
    await asyncio.gather(writing, return_exceptions=True)
    assert await there("last")


async def test_texts_go_before_records_and_scores_go_with_them(store: Store) -> None:
    world, _, records, _ = state(store)
    assert isinstance(world.clock, ManualClock)
    kept = record("e", prompt=(Message(role="user", content="hi"),), answer="ho")
    async with store.begin() as conn:
        await records.write(conn, [Waiting(kept, "")])
    await records.score("f", "acme", "e", 1.0)
    world.clock.advance(31 * 86_400)
    await records.forget(records_days=90, texts_days=30)
    found = await records.get("acme", "e")
    assert found is not None
    assert (found.prompt, found.answer) == ((), "")
    world.clock.advance(60 * 86_400)
    await records.forget(records_days=90, texts_days=30)
    assert await records.get("acme", "e") is None
    async with store.connect() as conn:
        assert (await conn.execute(sa.select(tables.scores))).all() == []
    assert (await records.figures("acme", ""))[0].executions == 1, "figures outlive records"


async def test_a_changed_configuration_wins_over_what_was_put(store: Store) -> None:
    async def nobody() -> Served:
        return Served()

    catalogue = SqlCatalogue(store, nobody, lambda model, bases: "", ManualClock())
    configured = Model(name="m", price_input=1.0)
    await catalogue.seed([configured])
    await catalogue.put(replace(configured, price_input=2.0))
    await catalogue.seed([configured])
    assert catalogue.models["m"].price_input == 2.0
    await catalogue.seed([replace(configured, price_input=3.0)])
    assert catalogue.models["m"].price_input == 3.0
