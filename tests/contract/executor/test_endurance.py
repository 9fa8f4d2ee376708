"""The whole room under load, faults, cancelled, and killed: what must stay flat, go fast, and not be done twice."""

import asyncio
import gc
import os
import signal
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml

from catena.api.executor.v1 import executor_pb2 as pb
from catena.api.executor.v1 import executor_pb2_grpc
from catena.executor.config import CacheConfig
from catena.kit.chassis import service_token
from catena.kit.config import House, ModelConfig, PriceConfig, RateConfig
from catena.kit.dial import dial
from catena.kit.errors import CatenaError
from catena.kit.outbox import ABREAST
from catena.kit.testing import eventually
from catena.plan.build import sequential
from catena.plan.model import Plan, Role, Settings, Shape, Stage
from tests.contract.executor.rooms import around, house_at, neighbours, request
from tests.contract.executor.upstream import Upstream, upstream

CASCADE = Plan(
    shape=Shape.CASCADE,
    stages=(Stage(name="fast", role=Role.FAST, model="small"), Stage(name="main", role=Role.MAIN, model="large")),
    settings=Settings(min_chars=0, threshold=0.95),
)
FAULTS = ["well"] * 6 + ["broken", "cut", "reset", "busy", "garbage", "empty", "no done", "ended early"]
AT_ONCE = 16
WARM_S = 60.0
SLOPE_BYTES_A_MINUTE = 1024 * 1024
LEFT_TASKS = 5 + ABREAST  # there is no broker here: events try in vain, so many at once
LEFT_DESCRIPTORS = 10


def outside(server: Upstream, name: str = "far", **more: Any) -> ModelConfig:
    return ModelConfig(name=name, provider="openai", base_url=f"{server.url}/v1", **more)


@pytest.mark.timed
async def test_a_client_that_leaves_reaches_the_model_within_fifty_milliseconds(tmp_path: Path) -> None:
    took_ms = []
    async with (
        upstream("stall") as server,
        around(tmp_path, house=house_at(tmp_path, models=[outside(server)])) as room,
    ):
        for _ in range(5):
            server.left.clear()
            call = room.stub.Run(request(sequential("far"), stream=True))
            async for event in call:
                if event.HasField("delta"):
                    break
            started = time.perf_counter()
            call.cancel()
            await asyncio.wait_for(server.left.wait(), 30)
            took_ms.append((time.perf_counter() - started) * 1000)
    assert sorted(took_ms)[2] < 50, took_ms


async def test_embeddings_of_outside_models_are_tried_again_and_priced(tmp_path: Path) -> None:
    async with upstream("broken", "well") as server:
        vectors = outside(server, "vectors", type="embedding", price=PriceConfig(input=2.0))
        async with around(tmp_path, house=house_at(tmp_path, models=[vectors])) as room:
            told = await room.stub.Embed(pb.EmbedRequest(model="vectors", texts=["a", "abc"]))
    assert [vector.values[0] for vector in told.vectors] == [1.0, 3.0]
    assert told.usage.input_tokens == 5
    assert len(server.bodies) == 2


@asynccontextmanager
async def process(house: House, config: Path) -> AsyncIterator[asyncio.subprocess.Process]:
    """An executor in a process of its own, killed with SIGKILL at the end of the block."""
    log = (config.parent / "log").open("ab")
    child = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "catena.executor", "--config", str(config), stdout=log, stderr=log
    )
    try:
        yield child
    finally:
        if child.returncode is None:
            os.kill(child.pid, signal.SIGKILL)
        await child.wait()
        log.close()


def configured(house: House, path: Path) -> Path:
    models = [
        {"name": one.name, "price": {"input": one.price.input, "output": one.price.output}} for one in house.models
    ]
    tree = {
        "home": house.home,
        "bus": {"url": house.bus.url},
        "models": models,
        "executor": {"runs": {"lease_s": 1.0}, "examples": False},
    }
    path.write_text(yaml.safe_dump(tree))
    return path


async def serves(stub: Any) -> bool:
    try:
        await stub.ListModels(pb.ListModelsRequest(), timeout=2.0)
    except CatenaError:
        return False
    return True


async def test_a_durable_run_survives_kill_minus_nine_and_calls_no_finished_stage_again(tmp_path: Path) -> None:
    house = house_at(tmp_path)
    config = configured(house, tmp_path / "catena.yaml")
    async with (
        neighbours(house) as (adapters, _, _),
        dial(house.address("executor"), token=service_token(house)) as channel,
    ):
        stub: Any = executor_pb2_grpc.ExecutorServiceStub(channel)
        adapters.hold.add("large")
        async with process(house, config):
            await eventually(lambda: serves(stub), 60.0)
            run = (await stub.SubmitRun(pb.SubmitRunRequest(run=request(CASCADE)))).run
            await eventually(lambda: [one.model for one in adapters.asked] == ["small", "large"])
        adapters.released.set()
        async with process(house, config):
            await eventually(lambda: serves(stub), 60.0)

            async def over() -> bool:
                told = (await stub.GetRun(pb.GetRunRequest(id=run.id))).run
                return told.state not in ("queued", "running")

            await eventually(over, 60.0)
            end = (await stub.GetRun(pb.GetRunRequest(id=run.id))).run
    assert end.state == "succeeded", end.error
    assert [one.model for one in adapters.asked] == ["small", "large", "large"]
    assert [stage.name for stage in end.result.stages] == ["fast", "main"]


class Load:
    """Clients that ask, stream and leave, over and over."""

    def __init__(self, stub: Any) -> None:
        self.stub = stub
        self.answered = self.failed = self.left = 0

    async def one(self, number: int) -> None:
        asked = request(sequential("far" if number % 2 else "near"), f"question {number}", stream=number % 3 != 0)
        call = self.stub.Run(asked, timeout=10.0)
        try:
            async for event in call:
                if number % 7 == 0 and event.HasField("delta"):
                    call.cancel()
                    self.left += 1
                    return
            self.answered += 1
        except CatenaError:
            self.failed += 1

    async def client(self, until_s: float, first: int) -> None:
        number = first
        while time.monotonic() < until_s:
            await self.one(number)
            number += AT_ONCE

    async def run(self, seconds: float) -> None:
        until_s = time.monotonic() + seconds
        async with asyncio.TaskGroup() as group:
            for first in range(AT_ONCE):
                group.create_task(self.client(until_s, first))


def measured() -> tuple[int, int, int]:
    """Resident bytes, descriptors and tasks of this process, in which executor, upstream and clients run."""
    gc.collect()
    here = psutil.Process()
    return here.memory_info().rss, here.num_fds(), len(asyncio.all_tasks())


@pytest.mark.timeout(900)
@pytest.mark.parametrize("seconds", [3.0, pytest.param(600.0, marks=pytest.mark.soak)])
async def test_memory_descriptors_and_tasks_stay_flat_under_load_and_faults(tmp_path: Path, seconds: float) -> None:
    async with upstream(*FAULTS) as server, upstream("well") as other:
        server.over_again, server.forgetful, other.forgetful = True, True, True
        models = [outside(server, fallbacks=["near"]), outside(other, "near", rate=RateConfig(at_once=8))]
        house = house_at(tmp_path, models=models)
        async with around(tmp_path, house=house, cache=CacheConfig(size=100)) as room:
            load = Load(room.stub)
            await load.run(min(seconds, WARM_S))
            before, started = measured(), time.monotonic()
            await load.run(seconds)
            await asyncio.sleep(1.0)
            after, minutes = measured(), (time.monotonic() - started) / 60
    assert load.answered > 20 * seconds
    assert load.left > 0
    assert after[1] - before[1] <= LEFT_DESCRIPTORS
    assert after[2] - before[2] <= LEFT_TASKS
    if seconds > WARM_S:
        assert (after[0] - before[0]) / minutes < SLOPE_BYTES_A_MINUTE, (before, after, load.answered)
