"""One suite over the fake queue and the real one, on SQLite and PostgreSQL."""

from dataclasses import replace

import pytest
import sqlalchemy as sa

from catena.kit.clock import still_world
from catena.kit.errors import Missing
from catena.kit.outbox import Outbox
from catena.kit.store import open_store
from catena.kit.testing import MemoryBus, postgres, sqlite_url
from catena.trainer.core.job import ClaimLost, Job, Material, Progress
from catena.trainer.core.rows import Row, Turn
from catena.trainer.core.spec import JobSpec, Source
from catena.trainer.drivers.jobs import SqlJobs
from catena.trainer.drivers.tables import metadata
from tests.unit.trainer.fakes import MemoryJobs

SPEC = JobSpec(adapter="okay", base="tiny", sources=(Source(name="s", weight=2.0, retention=True),), tasks=("t",))
MATERIAL = Material(((Row((Turn("user", "q"), Turn("assistant", "a"))),),))
LEASE_S = 10.0


class Queue:
    """Trainers that share one queue."""

    def __init__(self, world, make, told):
        self.world, self.make, self.told = world, make, told
        self.mine, self.other = make("mine"), make("other")

    async def add(self, tenant="acme", request_id=""):
        self.world.clock.advance(1)
        job = Job(id=self.world.new_id(), tenant=tenant, spec=SPEC, created_s=self.world.clock.now())
        return await self.mine.create(job, MATERIAL, request_id)


@pytest.fixture(params=["memory", "sqlite", "postgresql"])
async def queue(request, tmp_path):
    world = still_world()
    if request.param == "memory":
        first = MemoryJobs(world, lease_s=LEASE_S)

        def make(holder):
            made = MemoryJobs(world, holder=holder, lease_s=LEASE_S, shelf=first.shelf)
            made.told = first.told
            return made

        async def told():
            return first.told

        yield Queue(world, make, told)
        return
    if request.param == "sqlite":
        opened = open_store(sqlite_url(tmp_path), metadata, room="trainer")
        async with opened as store:
            yield sql_queue(store, world)
    else:
        async with postgres() as url, open_store(url, metadata, room="trainer") as store:
            yield sql_queue(store, world)


def sql_queue(store, world):
    def make(holder):
        return SqlJobs(store, Outbox(store, MemoryBus(), world), world, holder=holder, lease_s=LEASE_S)

    async def told():
        table = metadata.tables["outbox"]
        async with store.connect() as conn:
            rows = await conn.execute(sa.select(table.c.type).order_by(table.c.seq))
            return [type_.rpartition(".")[2] for (type_,) in rows]

    return Queue(world, make, told)


async def test_what_was_created_is_found_whole(queue):
    job = await queue.add()
    assert await queue.other.get("acme", job.id) == job
    assert await queue.other.material(job.id) == MATERIAL
    assert job.spec == SPEC


async def test_a_repeated_request_finds_the_first_job_and_tenants_do_not_share_requests(queue):
    first = await queue.add(request_id="r")
    assert (await queue.add(request_id="r")).id == first.id
    assert (await queue.add("other", request_id="r")).id != first.id
    assert len(await queue.mine.find("acme", "", 10, "")) == 1


async def test_other_tenants_jobs_are_missing(queue):
    job = await queue.add()
    for refused in (queue.mine.get("other", job.id), queue.mine.cancel("other", job.id), queue.mine.get("acme", "no")):
        with pytest.raises(Missing):
            await refused


async def test_the_newest_come_first_and_pages_follow_each_other(queue):
    ids = [(await queue.add()).id for _ in range(5)]
    await queue.add("other")
    page = await queue.mine.find("acme", "", 2, "")
    rest = await queue.mine.find("acme", "", 9, page[-1].id)
    assert [job.id for job in page + rest] == ids[::-1]
    assert await queue.mine.find("acme", "running", 9, "") == []
    assert len(await queue.mine.find("", "", 9, "")) == 6


async def test_the_oldest_is_claimed_first_and_by_one_alone(queue):
    old, new = await queue.add(), await queue.add()
    claimed = [await queue.mine.claim(), await queue.other.claim(), await queue.mine.claim()]
    assert [job and job.id for job in claimed] == [old.id, new.id, None]
    assert claimed[0].attempts == 1
    assert await queue.told() == ["started", "started"]


async def test_a_silent_holders_job_is_claimed_by_another_and_lost_to_it(queue):
    job = await queue.add()
    mine = await queue.mine.claim()
    queue.world.clock.advance(LEASE_S - 1)
    assert await queue.mine.renew(job.id) == "held"
    queue.world.clock.advance(LEASE_S - 1)
    assert await queue.other.claim() is None
    queue.world.clock.advance(2)
    assert (await queue.other.claim()).attempts == 2
    assert await queue.mine.renew(job.id) == "lost"
    with pytest.raises(ClaimLost):
        await queue.mine.save(replace(mine, state="succeeded"), "finished")
    assert (await queue.mine.get("acme", job.id)).state == "queued"
    assert await queue.told() == ["started", "started"]


async def test_what_is_saved_is_there_for_all_and_an_end_lets_go(queue):
    await queue.add()
    job = await queue.mine.claim()
    progress = Progress(step=3, total_steps=9, loss=0.5, learning_rate=1e-3, tokens_per_s=7.0, remaining_s=2.0, rows=6)
    job = await queue.mine.save(replace(job, state="running", progress=progress, checkpoint=2), "progressed")
    assert await queue.other.get("acme", job.id) == job
    ended = replace(job, state="succeeded", model="tiny@okay:1", digest="d", metrics={"accuracy": 0.5}, finished_s=9.0)
    await queue.mine.save(ended, "finished")
    queue.world.clock.advance(2 * LEASE_S)
    assert await queue.mine.claim() is None
    assert await queue.mine.renew(job.id) == "lost"
    assert await queue.told() == ["started", "progressed", "finished"]
    assert await queue.mine.speed("tiny") == 7.0
    assert await queue.mine.speed("large") is None


async def test_a_revision_counts_every_change(queue):
    await queue.add()
    first = await queue.mine.claim()
    second = await queue.mine.save(replace(first, state="running"))
    assert second.revision > first.revision


async def test_attempts_that_get_no_further_are_counted_and_progress_forgives_them(queue):
    await queue.add()
    stalled = []
    for checkpoint in (0, 0, 4, 4, 4):
        job = await queue.mine.claim()
        stalled.append(job.stalled)
        await queue.mine.save(replace(job, state="running", checkpoint=checkpoint))
        await queue.mine.release(job.id, died="killed")
    assert stalled == [0, 1, 2, 0, 1]
    assert (await queue.mine.get("acme", job.id)).reason == "killed"


async def test_closing_hands_back_at_once_without_blame(queue):
    await queue.add()
    for _ in range(3):
        job = await queue.mine.claim()
        assert job.stalled == 0
        await queue.mine.release(job.id)


async def test_a_cancelled_job_that_waits_ends_at_once_and_one_that_runs_is_told_to(queue):
    waits, runs = await queue.add(), None
    assert (await queue.mine.cancel("acme", waits.id)).state == "cancelled"
    await queue.add()
    runs = await queue.mine.claim()
    assert not (await queue.other.cancel("acme", runs.id)).ended
    assert await queue.mine.renew(runs.id) == "cancel"
    await queue.mine.save(replace(runs, state="cancelled"), "finished")
    assert (await queue.other.cancel("acme", runs.id)).state == "cancelled"
    assert await queue.told() == ["finished", "started", "finished"]


async def test_a_holder_that_starts_again_takes_back_what_it_held(queue):
    job = await queue.add()
    await queue.mine.claim()
    assert await queue.make("mine").claim() is None
    await queue.make("mine").take_back()
    assert (await queue.other.claim()).id == job.id
