"""The whole room: gRPC, SQL, a process per job, the gate of a true registry."""

import asyncio
import os
import signal
import sys

import pytest
import yaml

from catena.api.events.v1 import events_pb2
from catena.api.trainer.v1 import trainer_pb2 as pb
from catena.kit.bus import open_bus
from catena.kit.caller import Caller, as_caller
from catena.kit.errors import CatenaError, Denied, Invalid, Missing
from catena.kit.supervise import Child, Supervisor
from catena.kit.testing import eventually, nats_server, running
from tests.contract.trainer.rooms import bench, ended, jsonl, processes_in, same_answer, spec

LONGER = pb.TrainingSpec(max_steps=200, learning_rate=0.01)
SLOW = pb.TrainingSpec(max_steps=4000)


async def create(stub, **changes):
    return (await stub.CreateJob(pb.CreateJobRequest(spec=spec(**changes)))).job


async def get(stub, job_id):
    return (await stub.GetJob(pb.GetJobRequest(id=job_id))).job


async def under_way(stub, job_id, step=6):
    """Return once the job has done `step` steps."""
    async for response in stub.WatchJob(pb.WatchJobRequest(id=job_id), timeout=60):
        if response.job.progress.step >= step or response.job.state == "failed":
            break
    assert response.job.state == "running", response.job


async def test_a_good_job_is_told_registered_signed_and_passes_the_gate_and_a_kill_changes_no_weight(tmp_path, base):
    seen = []

    async def note(event):
        seen.append(event)

    async with nats_server(tmp_path / "broker") as url, open_bus(url, name="test") as bus:
        place = bench(tmp_path, base, url)
        watch = bus.watch(["trainer.job.*"], note, since_now=False)
        async with running(watch), place.adapters_room() as adapters, place.room() as stub:
            made = await create(stub, training=LONGER)
            assert made.state == "queued"
            job = await ended(stub, made.id)
            await eventually(lambda: seen and seen[-1].type == "trainer.job.finished")
            check_registered(job, adapters)
            check_told(job, list(seen))
            killed = await create(stub, adapter="again", training=LONGER)
            await under_way(stub, killed.id)
            (pid,) = processes_in(place.jobs / killed.id)
            os.kill(pid, signal.SIGKILL)
            killed = await ended(stub, killed.id)
            assert not processes_in(place.jobs)
    assert (killed.state, killed.attempts) == ("succeeded", 2)
    assert tensors(place, killed.id) == tensors(place, job.id)


def check_registered(job, adapters):
    assert (job.state, job.reason, job.model) == ("succeeded", "", "tiny@okay:1")
    assert job.metrics["accuracy"] == 1.0
    assert job.metrics["base_accuracy"] == 0.0
    assert job.progress.step == job.progress.total_steps == 200
    ((_, adapter, checked),) = adapters.registered
    assert adapter.digest == job.digest == checked.digest
    assert checked.signer == "signing"
    assert (checked.manifest.training.job, checked.manifest.training.examples) == (job.id, 32)
    assert checked.manifest.metrics["accuracy"] == 1.0
    assert "| accuracy | 1 |" in (checked.folder / "README.md").read_text()


def check_told(job, events):
    kinds = [event.type.rpartition(".")[2] for event in events]
    assert kinds[0] == "started"
    assert set(kinds[1:-1]) == {"progressed"}
    assert {(event.tenant, event.subject) for event in events} == {("acme", job.id)}
    told = events_pb2.JobFinished.FromString(events[-1].data)
    assert (told.state, told.model, told.digest) == ("succeeded", job.model, job.digest)
    assert dict(told.metrics) == dict(job.metrics)


def tensors(place, job_id):
    return (place.jobs / job_id / "adapter" / "adapter_model.safetensors").read_bytes()


async def test_a_poor_adapter_is_rejected_with_its_reason_and_never_sent(place):
    trusted = jsonl(*({"prompt": f"say {n}", "completion": "no"} for n in range(5)))
    async with place.adapters_room() as adapters, place.room() as stub:
        job = await ended(stub, (await create(stub, acceptance=pb.AcceptanceSpec(trusted_jsonl=trusted))).id)
    assert job.state == "rejected"
    assert "accuracy 0.000 on the trusted rows is below the 0.7 asked for" in job.reason
    assert job.metrics["heldout_accuracy"] == 1.0
    assert adapters.calls == 0
    assert job.model == ""


async def test_an_accepted_adapter_waits_for_a_registry_that_is_down_even_across_a_restart(place):
    async with place.room() as stub:
        job = await create(stub)
        await eventually(lambda: registering(stub, job.id), 60)
    async with place.room() as stub:
        await asyncio.sleep(0.2)
        assert (await get(stub, job.id)).state == "registering"
        async with place.adapters_room() as adapters:
            job = await ended(stub, job.id)
    assert (job.state, job.model) == ("succeeded", "tiny@okay:1")
    assert len(adapters.registered) == 1


async def registering(stub, job_id):
    return (await get(stub, job_id)).state == "registering"


async def test_a_killed_room_leaves_no_process_and_its_job_goes_on(place, tmp_path):
    config = tmp_path / "catena.yaml"
    tree = {"home": place.house.home, "bus": {"url": place.house.bus.url}}
    tree |= {"models": [{"name": "tiny", "path": str(place.base)}], "trainer": {"threads": 1, "point_s": 0.0}}
    config.write_text(yaml.safe_dump(tree))
    command = [sys.executable, "-m", "catena.trainer", "--config", str(config)]
    async with Supervisor(tmp_path / "run") as supervisor, place.client() as stub:
        room = Child(name="trainer", command=command, ready=lambda: answers(stub), restart=False)
        await supervisor.start(room, timeout_s=60)
        job = await create(stub, register=False)
        await under_way(stub, job.id)
        reached = (await get(stub, job.id)).progress.step
        os.kill(supervisor.pid("trainer"), signal.SIGKILL)
        await eventually(lambda: not processes_in(place.jobs))
        await supervisor.wait("trainer")
        await supervisor.start(room, timeout_s=60)
        job = await ended(stub, job.id)
    assert (job.state, job.attempts) == ("succeeded", 2)
    assert reached >= 6
    assert not processes_in(place.jobs)


async def answers(stub):
    try:
        await stub.ListJobs(pb.ListJobsRequest(), timeout=1)
    except CatenaError:
        return False
    return True


async def test_a_cancelled_job_ends_its_process(place):
    async with place.room() as stub:
        job = await create(stub, training=SLOW)
        await under_way(stub, job.id)
        assert processes_in(place.jobs)
        await stub.CancelJob(pb.CancelJobRequest(id=job.id))
        job = await ended(stub, job.id)
        assert (job.state, job.reason) == ("cancelled", "cancelled on request")
        assert not processes_in(place.jobs)


async def test_a_repeated_request_is_one_job(place):
    async with place.room(concurrency=0) as stub:
        request = pb.CreateJobRequest(spec=spec(), request_id="dataset-1")
        assert (await stub.CreateJob(request)).job.id == (await stub.CreateJob(request)).job.id
        assert len((await stub.ListJobs(pb.ListJobsRequest())).jobs) == 1


async def test_pages_follow_each_other(place):
    async with place.room(concurrency=0) as stub:
        ids = [(await create(stub)).id for _ in range(3)]
        first = await stub.ListJobs(pb.ListJobsRequest(page_size=2))
        second = await stub.ListJobs(pb.ListJobsRequest(page_size=2, page_token=first.next_page_token))
        assert [job.id for job in (*first.jobs, *second.jobs)] == ids[::-1]
        assert second.next_page_token == ""


async def test_bad_input_is_refused_with_a_code_and_nothing_is_stored(place):
    bad_row = [pb.DataSource(name="mine", jsonl=same_answer(3) + b'{"prompt": "q"}\n')]
    refused = [
        (pb.JobSpec(adapter="a", base="tiny", sources=bad_row), Invalid, "bad_row"),
        (pb.JobSpec(adapter="a", base="tiny"), Invalid, "no_rows"),
        (spec(base="-gone"), Missing, "unknown_model"),
        (spec(peft=pb.PeftSpec(method="adalora")), Invalid, "unsupported_method"),
        (spec(training=pb.TrainingSpec(learning_rate=float("nan"))), Invalid, "out_of_range"),
        (spec(sources=[pb.DataSource(path="/etc/passwd")]), Denied, "outside_data"),
        (spec(sources=[pb.DataSource(path="none.jsonl")]), Missing, "no_file"),
    ]
    async with place.room(concurrency=0) as stub:
        for asked, kind, code in refused:
            with pytest.raises(kind) as caught:
                await stub.CreateJob(pb.CreateJobRequest(spec=asked))
            assert caught.value.code == code
        assert not (await stub.ListJobs(pb.ListJobsRequest())).jobs
        with pytest.raises(Missing):
            await stub.GetJob(pb.GetJobRequest(id="none"))


async def test_rows_may_lie_in_the_data_folder_and_an_administrators_anywhere(place, tmp_path):
    (place.house.folder("data") / "rows.jsonl").write_bytes(same_answer(5))
    (tmp_path / "far.jsonl").write_bytes(same_answer(4))
    async with place.room(concurrency=0) as stub:
        near = pb.JobSpec(adapter="a", base="tiny", sources=[pb.DataSource(path="rows.jsonl")])
        assert (await stub.PlanJob(pb.PlanJobRequest(spec=near))).rows == 4
        far = pb.JobSpec(adapter="a", base="tiny", sources=[pb.DataSource(path=str(tmp_path / "far.jsonl"))])
        with as_caller(Caller("acme", "admin")):
            assert (await stub.PlanJob(pb.PlanJobRequest(spec=far))).rows == 3


async def test_a_plan_tells_steps_memory_and_time(place):
    async with place.room(concurrency=0) as stub:
        told = await stub.PlanJob(pb.PlanJobRequest(spec=spec()))
    assert (told.steps, told.rows) == (60, 32)
    assert told.trainable_parameters == 4 * 2 * (4 * 32 + 2 * 48 + 3 * 96)
    assert 0 < told.memory_bytes_4bit < told.memory_bytes
    assert told.duration_s > 0


async def test_another_tenants_jobs_are_not_seen(place):
    async with place.room(concurrency=0) as stub:
        job = await create(stub)
        with as_caller(Caller("other", "user")):
            assert not (await stub.ListJobs(pb.ListJobsRequest())).jobs
            with pytest.raises(Missing):
                await stub.CancelJob(pb.CancelJobRequest(id=job.id))
