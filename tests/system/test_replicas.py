"""Two executors as processes of their own over one database and broker: they share runs, and one outlives the other."""

import asyncio
import os
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

from catena.api.executor.v1 import executor_pb2 as pb
from catena.api.executor.v1 import executor_pb2_grpc
from catena.kit.chassis import service_token
from catena.kit.config import House
from catena.kit.dial import dial
from catena.kit.testing import eventually, nats_server, postgres
from catena.plan.model import Plan, Role, Settings, Shape, Stage
from tests.contract.executor.rooms import Adapters, house_at, neighbours, request

pytestmark = pytest.mark.timeout(180)
PATIENCE_S = 60.0
AT_ONCE = 2
CASCADE = Plan(
    shape=Shape.CASCADE,
    stages=(Stage(name="fast", role=Role.FAST, model="small"), Stage(name="main", role=Role.MAIN, model="large")),
    settings=Settings(min_chars=0, threshold=0.95),
)


@dataclass(frozen=True)
class Replica:
    """An executor as a process, and a stub of it."""

    process: asyncio.subprocess.Process
    stub: Any

    async def kill(self) -> None:
        """As the kernel does when memory runs out."""
        os.kill(self.process.pid, signal.SIGKILL)
        await self.process.wait()


@dataclass(frozen=True)
class Ground:
    """What replicas stand on: one home, database and broker, and scripted rooms around."""

    home: Path
    house: House
    adapters: Adapters

    @asynccontextmanager
    async def replica(self, name: str) -> AsyncIterator[Replica]:
        """An executor at an address of its own, serving until the block ends."""
        address = f"unix:{self.home / f'{name}.sock'}"
        told = {
            "home": str(self.home),
            "bus": {"url": self.house.bus.url},
            "sql": {"url": self.house.sql.url},
            "addresses": {"executor": address},
            "models": [
                {"name": "small", "price": {"input": 1.0, "output": 4.0}},
                {"name": "large", "price": {"input": 10.0, "output": 40.0}},
            ],
            "executor": {"runs": {"lease_s": 2.0, "at_once": AT_ONCE}, "examples": False},
        }
        config = self.home / f"{name}.yaml"
        config.write_text(yaml.safe_dump(told))
        command = (sys.executable, "-m", "catena.executor", "--config", str(config))
        quiet = asyncio.subprocess.DEVNULL
        process = await asyncio.create_subprocess_exec(*command, stdout=quiet, stderr=quiet)
        try:
            async with dial(address, token=service_token(self.house)) as channel:
                stub = executor_pb2_grpc.ExecutorServiceStub(channel)
                await asyncio.wait_for(channel.channel_ready(), PATIENCE_S)
                yield Replica(process, stub)
        finally:
            if process.returncode is None:
                process.terminate()
                await process.wait()

    def calls(self, model: str) -> int:
        """How often a model was asked so far."""
        return [one.model for one in self.adapters.asked].count(model)


@pytest.fixture
async def ground(tmp_path: Path) -> AsyncIterator[Ground]:
    async with AsyncExitStack() as stack:
        url = await stack.enter_async_context(postgres())
        broker = await stack.enter_async_context(nats_server(tmp_path))
        house = house_at(tmp_path, bus_url=broker, sql_url=url)
        adapters, _, _ = await stack.enter_async_context(neighbours(house))
        yield Ground(tmp_path, house, adapters)


async def submitted(replica: Replica, text: str = "hello there") -> str:
    return str((await replica.stub.SubmitRun(pb.SubmitRunRequest(run=request(CASCADE, text)))).run.id)


async def ended(replica: Replica, run_id: str) -> pb.Run:
    async with asyncio.timeout(PATIENCE_S):
        async for change in replica.stub.WatchRun(pb.WatchRunRequest(id=run_id)):
            last = change.run
    return last


async def test_after_kill_minus_nine_another_replica_goes_on_and_repeats_no_finished_stage(ground: Ground) -> None:
    ground.adapters.hold.add("large")
    async with ground.replica("one") as one:
        run_id = await submitted(one)
        await eventually(lambda: ground.calls("large") == 1, PATIENCE_S)
        async with ground.replica("two") as two:
            await one.kill()
            await eventually(lambda: ground.calls("large") == 2, PATIENCE_S)
            ground.adapters.released.set()
            run = await ended(two, run_id)
            figures = (await two.stub.GetMetrics(pb.GetMetricsRequest())).pipelines
    assert run.state == "succeeded"
    assert run.result.choices[0].message.content == "HELLO THERE"
    assert [stage.name for stage in run.result.stages] == ["fast", "main"]
    assert ground.calls("small") == 1, "it had finished before the kill"
    assert [one.executions for one in figures] == [1]
    assert run.result.cost_usd == pytest.approx(sum(stage.cost_usd for stage in run.result.stages))


async def test_replicas_share_what_one_of_them_was_given(ground: Ground) -> None:
    ground.adapters.hold.add("large")
    async with ground.replica("one") as one, ground.replica("two") as two:
        runs = [await submitted(one, f"question {number}") for number in range(6)]
        await eventually(lambda: ground.calls("large") == 2 * AT_ONCE, PATIENCE_S)
        await asyncio.sleep(0.5)
        assert ground.calls("large") == 2 * AT_ONCE, "neither takes more than it may"
        ground.adapters.released.set()
        states = [(await ended(two, run_id)).state for run_id in runs]
    assert states == ["succeeded"] * 6
    assert (ground.calls("small"), ground.calls("large")) == (6, 6), "each run was worked on once"


async def test_a_run_is_cancelled_through_a_replica_that_does_not_hold_it(ground: Ground) -> None:
    ground.adapters.hold.add("large")
    async with ground.replica("one") as one:
        run_id = await submitted(one)
        await eventually(lambda: ground.calls("large") == 1, PATIENCE_S)
        async with ground.replica("two") as two:
            await two.stub.CancelRun(pb.CancelRunRequest(id=run_id))
            run = await ended(two, run_id)
        await asyncio.wait_for(ground.adapters.cancelled.wait(), PATIENCE_S)
    assert run.state == "cancelled"
