"""Every room and the broker die in turn under load; what was acknowledged is there, once, and nobody mends anything."""

import asyncio
import itertools
import json
import os
import signal
import sqlite3
import sys
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp
import psutil
import pytest
import pytest_asyncio

from catena.api.executor.v1 import executor_pb2, executor_pb2_grpc
from catena.api.features.v1 import features_pb2, features_pb2_grpc
from catena.api.memory.v1 import memory_pb2, memory_pb2_grpc
from catena.api.router.v1 import router_pb2, router_pb2_grpc
from catena.api.trainer.v1 import trainer_pb2, trainer_pb2_grpc
from catena.kit.caller import Caller, as_caller
from catena.kit.chassis import service_token
from catena.kit.config import ROOMS, House
from catena.kit.dial import dial
from catena.kit.errors import Missing
from catena.kit.testing import eventually
from catena.sdk.up import Platform
from demo.__main__ import CONFIG
from demo.questions import questions
from tests.system.running import running_platform

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.timeout(420)]
RATE_HZ = 20
BETWEEN_KILLS_S = 3.0
BACK_WITHIN_S = 60.0
LOST_AT_MOST = 3


@dataclass
class Ledger:
    """What the client was told is kept, and of which executions it was told that they are not."""

    feedback: dict[str, str] = field(default_factory=dict)
    lost: set[str] = field(default_factory=set)
    features: dict[str, int] = field(default_factory=dict)
    documents: set[str] = field(default_factory=set)
    failures: int = 0
    answers: int = 0


class Client:
    """Writes and asks at a steady rate, and repeats a write under the same id until it is acknowledged."""

    def __init__(self, running: Platform, http: aiohttp.ClientSession) -> None:
        self.url = running.url
        self.http = http
        self.ledger = Ledger()
        self.stopping = False

    async def load(self) -> None:
        async with asyncio.TaskGroup() as group:
            for number in itertools.count():
                if self.stopping:
                    return
                group.create_task(self.one(number))
                await asyncio.sleep(1 / RATE_HZ)

    async def one(self, number: int) -> None:
        kind = number % 4
        if kind == 0:
            told = await self.until_acknowledged(
                "/v1/features",
                {
                    "values": [{"entity_type": "user", "entity_id": f"u{number}", "feature": "n", "value": number}],
                    "request_id": f"set-{number}",
                },
            )
            self.ledger.features[f"u{number}"] = number if told else -1
        elif kind == 1:
            document = {"id": f"d{number}", "text": f"the word for {number} is zebra{number}"}
            await self.until_acknowledged("/v1/memory/documents", {"collection": "ledger", "documents": [document]})
            self.ledger.documents.add(f"d{number}")
        else:
            await self.ask_and_judge(number)

    async def ask_and_judge(self, number: int) -> None:
        body = {"model": "demo-small", "messages": [{"role": "user", "content": f"add {number % 90}+7"}]}
        try:
            answer = await self.post("/v1/chat/completions", body)
        except (aiohttp.ClientError, TimeoutError, RuntimeError):
            self.ledger.failures += 1
            return
        self.ledger.answers += 1
        execution = answer["catena"]["execution_id"]
        feedback = {"execution_id": execution, "score": 1.0, "request_id": f"judge-{number}", "task": "ledger"}
        try:
            told = await self.until_acknowledged("/v1/feedback", feedback)
        except LookupError:
            self.ledger.lost.add(execution)
        else:
            self.ledger.feedback[execution] = told["id"]

    async def until_acknowledged(self, path: str, body: dict[str, Any]) -> dict[str, Any]:
        while True:
            try:
                return await self.post(path, body)
            except (aiohttp.ClientError, TimeoutError, RuntimeError):
                self.ledger.failures += 1
                await asyncio.sleep(0.5)

    async def post(self, path: str, body: dict[str, Any]) -> dict[str, Any]:
        async with self.http.post(self.url + path, json=body, timeout=aiohttp.ClientTimeout(20)) as answer:
            told: dict[str, Any] = await answer.json()
            if answer.status >= 500 or answer.status == 429:
                raise RuntimeError(told["error"]["code"])
            if answer.status == 404 and told["error"]["code"] == "unknown_execution":
                raise LookupError(told["error"]["message"])
            assert answer.status == 200, (path, told)
            return told


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def running(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Platform]:
    async with running_platform(tmp_path_factory.mktemp("home"), split=True) as up:
        yield up


async def kill(running: Platform, name: str) -> None:
    pid = running.supervisor.pid(name)
    assert pid is not None
    starts = running.supervisor.restarts(name)
    os.kill(pid, signal.SIGKILL)
    await eventually(lambda: running.supervisor.restarts(name) > starts, timeout_s=BACK_WITHIN_S)


async def test_what_was_acknowledged_survives_kill_minus_nine_of_every_part(running: Platform) -> None:
    headers = {"Authorization": f"Bearer {running.key}"}
    async with aiohttp.ClientSession(headers=headers) as http:
        client = Client(running, http)
        load = asyncio.create_task(client.load())
        await asyncio.sleep(2)
        for name in (*ROOMS, "nats"):
            await kill(running, name)
            await asyncio.sleep(BETWEEN_KILLS_S)
        client.stopping = True
        async with asyncio.timeout(BACK_WITHIN_S * 2):
            await load
    ledger = client.ledger
    assert ledger.answers > 20
    assert ledger.feedback
    assert ledger.features
    assert ledger.documents
    token = service_token(running.house)

    with as_caller(Caller("default")):
        await features_hold(running, token, ledger)
        await documents_hold(running, token, ledger)
        await feedback_holds(running, token, ledger)


async def features_hold(running: Platform, token: str, ledger: Ledger) -> None:
    async with dial(running.house.address("features"), token=token) as channel:
        features = features_pb2_grpc.FeaturesServiceStub(channel)
        for entity, number in ledger.features.items():
            row = await features.Get(features_pb2.GetRequest(entity_type="user", entity_id=entity, features=["n"]))
            (value,) = row.row.values
            assert (value.value.number_value, value.version) == (number, 1), entity


async def documents_hold(running: Platform, token: str, ledger: Ledger) -> None:
    async with dial(running.house.address("memory"), token=token) as channel:
        memory = memory_pb2_grpc.MemoryServiceStub(channel)
        for document in ledger.documents:
            query = memory_pb2.SearchRequest(
                collection="ledger", query=f"zebra{document[1:]}", engine="bm25", n_results=3
            )
            hits = [hit.chunk.document_id for hit in (await memory.Search(query)).hits]
            assert hits.count(document) == 1, (document, hits)


async def feedback_holds(running: Platform, token: str, ledger: Ledger) -> None:
    """The learner keeps every piece; a record may go with the last 50 ms of an executor, and its judgement with it."""
    lost: set[str] = set()
    kept = sqlite3.connect(running.home / "learner" / "learner.db")
    ids = {id_ for (id_,) in kept.execute("select id from feedback")}
    assert set(ledger.feedback.values()) <= ids
    assert len(ids) == kept.execute("select count(distinct request_id) from feedback").fetchone()[0]
    kept.close()
    async with dial(running.house.address("executor"), token=token) as channel:
        executor = executor_pb2_grpc.ExecutorServiceStub(channel)

        async def judged_once(execution: str) -> bool:
            try:
                told = await executor.GetExecution(executor_pb2.GetExecutionRequest(id=execution))
            except Missing:
                lost.add(execution)
                return True
            scores = [score for score in told.execution.scores if score.source == "feedback"]
            assert len(scores) <= 1, execution
            return len(scores) == 1

        for execution in ledger.feedback:
            await eventually(lambda execution=execution: judged_once(execution), timeout_s=BACK_WITHIN_S)
    assert len(lost | ledger.lost) <= LOST_AT_MOST
    async with dial(running.house.address("router"), token=token) as channel:
        router = router_pb2_grpc.RouterServiceStub(channel)

        async def all_judged() -> bool:
            stats = await router.GetStats(router_pb2.GetStatsRequest())
            return sum(c.judged for c in stats.configurations) == len(ledger.feedback) - len(lost)

        await eventually(all_judged, timeout_s=BACK_WITHIN_S)


async def test_nothing_stays_behind_when_the_parent_is_killed_during_training(tmp_path: Path) -> None:
    env = {**os.environ, "CATENA__HOME": str(tmp_path), "CATENA__GATEWAY__PORT": "0"}
    parent = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "catena.sdk.command", "--config", str(CONFIG), "up", env=env
    )
    try:
        await eventually(lambda: (tmp_path / "run" / "gateway.json").exists(), timeout_s=BACK_WITHIN_S)
        await start_training(tmp_path)
        mine = psutil.Process(parent.pid).children(recursive=True)
        assert any("trainer" in " ".join(child.cmdline()) for child in mine)
    finally:
        parent.kill()
        await parent.wait()
    await eventually(lambda: not any(alive(child) for child in mine), timeout_s=60)


def alive(process: psutil.Process) -> bool:
    return process.is_running() and process.status() != psutil.STATUS_ZOMBIE


async def start_training(home: Path) -> None:
    """A job long enough to be interrupted; returns once it has taken a step."""
    rows = "".join(
        json.dumps({"prompt": q.text, "completion": q.answer}) + "\n" for q in questions(60, 5, skills=["upper"])
    )
    spec = trainer_pb2.JobSpec(
        adapter="long",
        base="demo-large",
        sources=[trainer_pb2.DataSource(name="rows", jsonl=rows.encode())],
        training=trainer_pb2.TrainingSpec(max_steps=5000, batch_size=8, accumulation=1),
    )
    house = House(home=str(home))
    async with dial(house.address("trainer"), token=service_token(house)) as channel:
        trainer = trainer_pb2_grpc.TrainerServiceStub(channel)
        job = (await trainer.CreateJob(trainer_pb2.CreateJobRequest(spec=spec))).job

        async def stepping() -> bool:
            told = await trainer.GetJob(trainer_pb2.GetJobRequest(id=job.id))
            return told.job.progress.step > 0

        await eventually(stepping, timeout_s=BACK_WITHIN_S)
