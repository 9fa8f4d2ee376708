"""Commands over the wire: whom they ask for, and that programs get numbers."""

import asyncio
import json
import os
import sys
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from dataclasses import replace
from pathlib import Path

import pytest
import pytest_asyncio

from catena.api.adapters.v1 import adapters_pb2, adapters_pb2_grpc
from catena.api.executor.v1 import executor_pb2, executor_pb2_grpc
from catena.api.features.v1 import features_pb2, features_pb2_grpc
from catena.api.router.v1 import router_pb2, router_pb2_grpc
from catena.api.trainer.v1 import trainer_pb2, trainer_pb2_grpc
from catena.kit.chassis import service_token
from catena.kit.config import House
from catena.kit.serve import caller, open_server
from catena.plan.build import sequential
from catena.plan.model import Interval, Prediction
from catena.plan.wire import plan_to_proto


class Adapters(adapters_pb2_grpc.AdaptersServiceServicer):
    async def ListAdapters(self, request, context):
        one = adapters_pb2.Adapter(base="large", name=caller().tenant, version="1", bytes=2048, metrics={"accuracy": 1})
        mine = adapters_pb2.Adapter(base=request.base, name="mine", version="1", tasks=["code"])
        return adapters_pb2.ListAdaptersResponse(adapters=[one, mine] if request.base else [one])

    async def GetResidency(self, request, context):
        device = adapters_pb2.Tier(name="device", adapters=1, bytes=2048, budget_bytes=4096, hits=3, misses=2)
        disk = adapters_pb2.Tier(name="disk", adapters=9, bytes=1 << 20)
        resident = adapters_pb2.Resident(model="large@code:1", tier="host", bytes=512)
        return adapters_pb2.GetResidencyResponse(residents=[resident], tiers=[device, disk], pressure="low")

    async def SelectAdapter(self, request, context):
        return adapters_pb2.SelectAdapterResponse(model=request.base, served="auto-base", reason="none")


class Trainer(trainer_pb2_grpc.TrainerServiceServicer):
    async def ListJobs(self, request, context):
        return trainer_pb2.ListJobsResponse(jobs=[trainer_pb2.Job(id=caller().tenant)])

    async def WatchJob(self, request, context):
        yield trainer_pb2.WatchJobResponse(job=trainer_pb2.Job(id=request.id, reason=caller().tenant))


class Executor(executor_pb2_grpc.ExecutorServiceServicer):
    async def ListModels(self, request, context):
        return executor_pb2.ListModelsResponse(models=[executor_pb2.Model(name=caller().tenant)])

    async def ListPipelines(self, request, context):
        steps = [executor_pb2.Step(type="preprocess"), executor_pb2.Step(type="model")]
        return executor_pb2.ListPipelinesResponse(pipelines=[executor_pb2.Pipeline(name=caller().tenant, steps=steps)])

    async def PutPipeline(self, request, context):
        return executor_pb2.PutPipelineResponse(pipeline=executor_pb2.Pipeline(name=request.yaml, version=3))


class Features(features_pb2_grpc.FeaturesServiceServicer):
    async def Get(self, request, context):
        value = features_pb2.Value(feature="age", version=1, event_s=1_795_000_000)
        value.value.number_value = 7
        return features_pb2.GetResponse(row=features_pb2.FeatureRow(values=[value]))


class Router(router_pb2_grpc.RouterServiceServicer):
    async def Explain(self, request, context):
        expected = Interval(0.25, 0.0, 1.0)
        prediction = Prediction(cost_usd=expected, latency_ms=expected, quality=expected)
        plan = plan_to_proto(replace(sequential("large"), prediction=prediction))
        return router_pb2.ExplainResponse(candidates=[router_pb2.Candidate(plan=plan, utility=-0.5)])


ROOMS = {
    "adapters": (adapters_pb2_grpc.add_AdaptersServiceServicer_to_server, Adapters),
    "trainer": (trainer_pb2_grpc.add_TrainerServiceServicer_to_server, Trainer),
    "executor": (executor_pb2_grpc.add_ExecutorServiceServicer_to_server, Executor),
    "features": (features_pb2_grpc.add_FeaturesServiceServicer_to_server, Features),
    "router": (router_pb2_grpc.add_RouterServiceServicer_to_server, Router),
}


@pytest_asyncio.fixture
async def home(tmp_path: Path) -> AsyncIterator[Path]:
    """A home in which these rooms answer, each with whom it was asked for."""
    house = House(home=str(tmp_path))
    async with AsyncExitStack() as stack:
        for room, (add, made) in ROOMS.items():

            def added(server, add=add, made=made):
                add(made(), server)

            serving = open_server(house.address(room), [added], names=[], token=service_token(house))
            await stack.enter_async_context(serving)
        yield tmp_path


async def printed(home: Path, *words: str) -> str:
    """What `catena words` prints."""
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        *("-m", "catena.sdk.command", *words),
        env={**os.environ, "CATENA__HOME": str(home)},
        stdout=asyncio.subprocess.PIPE,
    )
    told, _ = await process.communicate()
    assert process.returncode == 0
    return told.decode()


async def typed(home: Path, *words: str) -> object:
    """What `catena words --json` prints, as data."""
    return json.loads(await printed(home, *words, "--json"))


@pytest.mark.parametrize(
    ("words", "where"),
    [
        (("adapters", "list"), "adapter"),
        (("jobs", "list"), "job"),
        (("jobs", "watch", "j"), "reason"),
        (("models",), "model"),
        (("pipelines", "list"), "name"),
    ],
)
async def test_commands_ask_as_the_development_keys_tenant_unless_another_is_named(home, words, where):
    for tenant, named in (("default", ()), ("shared", ("--tenant", "shared"))):
        told = await typed(home, *words, *named)
        row = told if isinstance(told, dict) else told[0]
        assert tenant in row[where]


async def test_programs_get_numbers_as_numbers_and_times_as_times(home):
    (candidate,) = (await typed(home, "route", "explain", "hello"))["candidates"]
    assert {name: ends["mean"] for name, ends in candidate["plan"]["prediction"].items()} == {
        "quality": 0.25,
        "cost_usd": 0.25,
        "latency_ms": 0.25,
    }
    assert candidate["utility"] == -0.5
    (adapter,) = await typed(home, "adapters", "list")
    assert (adapter["size"], adapter["accuracy"]) == (2048, 1.0)
    (value,) = await typed(home, "features", "get", "user/1", "age")
    assert (value["value"], value["event time"]) == (7.0, "2026-11-18 11:06:40+00:00")


async def test_an_adapter_that_is_for_the_task_but_not_stable_is_told_with_the_cure(home):
    cure = "`catena adapters alias large@mine:1 stable`"
    assert cure in await printed(home, "adapters", "select", "code", "--base", "large")
    assert cure not in await printed(home, "adapters", "select", "poems", "--base", "large")


async def test_the_tiers_of_memory_are_told_with_their_budgets(home):
    device, disk = await typed(home, "adapters", "tiers")
    assert (device["tier"], device["size"], device["budget"], device["hits"], device["misses"]) == (
        "device", 2048, 4096, 3, 2,
    )  # fmt: skip
    assert (disk["adapters"], disk["budget"]) == (9, None)
    (resident,) = await typed(home, "adapters", "resident")
    assert (resident["adapter"], resident["tier"]) == ("large@code:1", "host")
    assert "device 2.0 KiB of 4.0 KiB, disk 1.0 MiB" in " ".join((await printed(home, "adapters", "resident")).split())


async def test_a_pipeline_is_stored_as_it_is_written(home):
    (home / "tidy.yaml").write_text("name: tidy")
    told = await typed(home, "pipelines", "put", str(home / "tidy.yaml"))
    assert told == [{"name": "name: tidy", "version": 3}]
