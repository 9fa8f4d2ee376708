import asyncio
import json

import pytest

from catena.kit.clock import still_world
from catena.kit.errors import Invalid, Missing, Unavailable
from catena.kit.testing import eventually, running
from catena.trainer.core.job import VersionTaken
from catena.trainer.core.order import Failure
from catena.trainer.core.spec import JobSpec, Peft, Source, Submission, Training
from catena.trainer.core.trainer import Ports, Settings, Trainer
from tests.unit.trainer.fakes import (
    DONE,
    FakeRegistry,
    MemoryJobs,
    NoFiles,
    OneBase,
    ScriptedWorkers,
    point,
    result,
)

ROWS = b"".join(json.dumps({"prompt": f"q{i}", "completion": "a"}).encode() + b"\n" for i in range(10))
SPEC = JobSpec(
    adapter="okay", base="tiny", sources=(Source(name="s", weight=1.0),), register=True, training=Training(epochs=1)
)


class Scene:
    def __init__(self, *scripts, registry=None, jobs=None):
        self.world = still_world()
        self.jobs = jobs or MemoryJobs(self.world)
        self.workers = ScriptedWorkers(*scripts)
        self.registry = registry or FakeRegistry()
        ports = Ports(jobs=self.jobs, workers=self.workers, bases=OneBase(), files=NoFiles(), registry=self.registry)
        settings = Settings(
            concurrency=1, threads=1, device="cpu", lease_s=0.03, max_stalled=3, point_s=0.0, event_s=60.0,
            eval_rows=5, keep_folders=3, pause_s=0.005,
        )  # fmt: skip
        self.trainer = Trainer(ports, settings=settings, world=self.world)

    async def create(self, spec=SPEC, rows=ROWS, request_id=""):
        return await self.trainer.create("acme", Submission(spec=spec, jsonl=(rows,)), request_id)

    async def ends(self, job):
        async with running(self.trainer.run()):
            async for seen in self.trainer.watch("acme", job.id):
                last = seen
        return last


async def test_an_accepted_job_is_sealed_registered_and_told():
    scene = Scene(DONE)
    job = await scene.ends(await scene.create())
    assert (job.state, job.model, job.digest) == ("succeeded", "tiny@okay:1", "digest 1")
    assert job.metrics["accuracy"] == 1.0
    assert scene.registry.registered == [(job.id, "digest 1")]
    assert scene.jobs.told == ["started", "progressed", "finished"]


async def test_the_order_trains_on_what_is_not_held_out():
    scene = Scene(DONE)
    await scene.ends(await scene.create())
    ((order, attempt),) = scene.workers.orders
    assert attempt == 1
    assert len(order.portions[0].rows) == 9
    assert len(order.measured["heldout"]) == 1
    assert set(order.peft.targets) == {"q_proj", "down_proj"}


async def test_a_rejected_adapter_is_neither_sealed_nor_registered_and_says_why():
    scene = Scene((result(heldout_accuracy=0.3),))
    job = await scene.ends(await scene.create())
    assert job.state == "rejected"
    assert "0.300" in job.reason
    assert not scene.registry.sealed
    assert scene.jobs.told[-1] == "finished"


async def test_a_registry_that_is_down_is_asked_until_it_answers():
    scene = Scene(DONE, registry=FakeRegistry(Unavailable("down"), Unavailable("down")))
    job = await scene.ends(await scene.create())
    assert job.state == "succeeded"
    assert scene.registry.sealed == ["1"]
    assert len(scene.registry.registered) == 1


async def test_a_version_taken_meanwhile_is_followed_by_the_next():
    registry = FakeRegistry(VersionTaken("1 is taken"))
    scene = Scene(DONE, registry=registry)
    job = await scene.ends(await scene.create())
    assert registry.sealed == ["1", "2"]
    assert (job.state, job.model) == ("succeeded", "tiny@okay:2")


async def test_a_version_asked_for_and_taken_fails_the_job():
    scene = Scene(DONE, registry=FakeRegistry(VersionTaken("7 is taken")))
    job = await scene.ends(
        await scene.create(JobSpec(**{f: getattr(SPEC, f) for f in SPEC.__struct_fields__} | {"version": "7"}))
    )
    assert (job.state, job.reason) == ("failed", "7 is taken")


async def test_a_process_that_dies_is_started_again():
    scene = Scene((point(3, 2), -9), (point(6, 6), -9), DONE)
    job = await scene.ends(await scene.create())
    assert (job.state, job.attempts, job.reason) == ("succeeded", 3, "")
    assert [attempt for _, attempt in scene.workers.orders] == [1, 2, 3]


async def test_a_process_that_dies_again_and_again_at_one_place_fails_the_job_with_its_last_words():
    scene = Scene(*[(point(3, 2), -9)] * 9)
    job = await scene.ends(await scene.create())
    assert job.state == "failed"
    assert "Killed" in job.reason
    assert job.attempts == 5


async def test_what_fails_for_a_reason_is_not_tried_again():
    scene = Scene((Failure(code="diverged", message="the loss is nan"),))
    job = await scene.ends(await scene.create())
    assert (job.state, job.reason, job.attempts) == ("failed", "the loss is nan", 1)


async def test_cancelling_ends_the_process_and_then_the_job():
    scene = Scene((point(1), None))
    job = await scene.create()
    async with running(scene.trainer.run()):
        await eventually(lambda: scene.workers.running == 1)
        await scene.trainer.cancel("acme", job.id)
        await eventually(lambda: scene.jobs.shelf["jobs"][job.id].ended)
    assert scene.workers.running == 0
    assert scene.jobs.shelf["jobs"][job.id].state == "cancelled"


async def test_a_job_that_waits_is_cancelled_at_once():
    scene = Scene()
    job = await scene.create()
    assert (await scene.trainer.cancel("acme", job.id)).state == "cancelled"


async def test_a_room_that_closes_hands_its_job_back():
    scene = Scene((point(1), None), DONE)
    job = await scene.create()
    async with running(scene.trainer.run()):
        await eventually(lambda: scene.workers.running == 1)
    assert scene.workers.running == 0
    assert not scene.jobs.shelf["held"]
    assert (await scene.ends(job)).state == "succeeded"


async def test_a_trainer_that_lost_its_job_lets_go_and_changes_nothing():
    scene = Scene((point(1), None))
    job = await scene.create()
    async with running(scene.trainer.run()):
        await eventually(lambda: scene.workers.running == 1)
        scene.jobs.shelf["held"][job.id] = ("other", scene.world.clock.now() + 60)
        await eventually(lambda: scene.workers.running == 0)
        await asyncio.sleep(0.02)
    assert scene.jobs.shelf["jobs"][job.id].state == "running"


async def test_an_adapter_that_lies_on_a_lost_disk_is_trained_again_before_it_is_registered():
    scene = Scene(DONE, DONE, registry=FakeRegistry(*[Unavailable("down")] * 1000))
    job = await scene.create()
    async with running(scene.trainer.run()):
        await eventually(lambda: scene.jobs.shelf["jobs"][job.id].state == "registering")
    scene.workers.adapter_here = False
    scene.registry.errors.clear()
    assert (await scene.ends(job)).state == "succeeded"
    assert len(scene.workers.orders) == 2
    assert set(scene.registry.sealed) == {"1"}


async def test_the_folders_of_the_newest_and_of_all_unfinished_jobs_are_kept():
    scene = Scene(DONE, (result(heldout_accuracy=0.0),), *[DONE] * 3, (point(1), None))
    jobs = []
    for _ in range(6):
        jobs.append((await scene.create()).id)
        scene.world.clock.advance(1)
    async with running(scene.trainer.run()):
        await eventually(lambda: len(scene.workers.orders) == 6)
    assert set(scene.workers.kept) == set(jobs[3:])


async def test_a_repeated_request_is_the_same_job():
    scene = Scene()
    assert (await scene.create(request_id="r")).id == (await scene.create(request_id="r")).id
    assert (await scene.create()).id != (await scene.create()).id


@pytest.mark.parametrize(
    ("spec", "rows", "kind"),
    [
        (SPEC, b"{oops", Invalid),
        (SPEC, b"", Invalid),
        (JobSpec(adapter="a", base="gone", sources=SPEC.sources), ROWS, Missing),
        (JobSpec(adapter="a", base="tiny", sources=SPEC.sources, peft=Peft(targets=("nothing",))), ROWS, Invalid),
    ],
)
async def test_what_could_never_run_is_not_accepted(spec, rows, kind):
    scene = Scene()
    with pytest.raises(kind):
        await scene.create(spec, rows)
    assert not scene.jobs.shelf["jobs"]


async def test_another_tenant_sees_no_job():
    scene = Scene()
    job = await scene.create()
    with pytest.raises(Missing):
        await scene.trainer.get("other", job.id)


async def test_a_plan_counts_steps_and_parameters_and_shows_what_four_bits_save():
    scene = Scene()
    told = await scene.trainer.plan(Submission(spec=SPEC, jsonl=(ROWS,)))
    assert (told.steps, told.rows) == (1, 9)
    assert told.trainable_parameters == 16 * (8 + 8 + 16 + 8)
    assert told.memory_bytes_4bit < told.memory_bytes
    assert told.duration_s > 0
