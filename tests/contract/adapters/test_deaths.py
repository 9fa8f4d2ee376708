"""What becomes of the room when its engine, or it itself, is killed under mixed load."""

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import msgspec
import psutil
import pytest

from catena.api.adapters.v1 import adapters_pb2 as pb
from catena.api.adapters.v1.adapters_pb2_grpc import AdaptersServiceStub
from catena.kit.config import House
from catena.kit.dial import dial
from catena.kit.errors import CatenaError, Unavailable
from catena.kit.testing import eventually
from tests.contract.adapters.conftest import TOKEN, Room, new_adapter, open_room
from tests.contract.adapters.test_room import question, register, text_of

NAMES = [f"demo-large@{name}:1" for name in "abc"]
MODELS = ["demo-large", *NAMES, "demo-small"]


async def furnish(room: Room) -> dict[str, str]:
    """Register three adapters; what every model says."""
    for seed, name in enumerate("abc"):
        await register(room, new_adapter(room.house, name, seed=seed + 1, r=4 << seed))
    return {model: text_of(await room.stream(long(model))) for model in MODELS}


def long(model: str) -> pb.GenerateRequest:
    asked = question(model, max_tokens=80)
    asked.request.sampling.ignore_eos = True
    return asked


async def exact(room: Room) -> bool:
    """Whether nothing is in use, and the bytes used are those of what is on the device, to the byte."""
    told = await room.ask("GetResidency", pb.GetResidencyRequest())
    held = [each for each in told.residents if each.tier == "device"]
    sizes = {each.model: (await room.ask("Load", pb.LoadRequest(model=each.model))).bytes for each in held}
    return (
        not any(each.users for each in told.residents)
        and all(each.bytes == sizes[each.model] for each in held)
        and told.used_bytes == sum(sizes.values())
    )


def engine_of(house: House) -> list[psutil.Process]:
    """The engine's processes of this house, whoever is their parent."""
    found, line_of_its_own = [], house.address("adapters-engine").removeprefix("unix:")
    for process in psutil.process_iter():
        try:
            line = " ".join(process.cmdline())
        except psutil.Error:
            continue
        if "catena.adapters.drivers.engine.worker" in line and line_of_its_own in line:
            found.append(process)
    return found


async def under_load(room: Room, count: int) -> list[asyncio.Task[list[pb.GenerateResponse]]]:
    """Answers of all models, some of them being written now."""
    tasks = [asyncio.create_task(room.stream(long(MODELS[number % len(MODELS)]))) for number in range(count)]
    first = room.begin(long(MODELS[0]))
    await first.read()
    first.cancel()
    return tasks


async def ended(tasks: list[asyncio.Task[list[pb.GenerateResponse]]], wanted: dict[str, str]) -> int:
    """How many failed: each with a clear error, and every other one is right."""
    failed = 0
    for number, outcome in enumerate(await asyncio.gather(*tasks, return_exceptions=True)):
        if isinstance(outcome, BaseException):
            assert isinstance(outcome, Unavailable), outcome
            assert outcome.code in ("engine_lost", "not_resident", "unavailable"), outcome.code
            failed += 1
        else:
            assert text_of(outcome) == wanted[MODELS[number % len(MODELS)]]
    return failed


@pytest.mark.parametrize("resident", [10, 2], ids=["all at once", "more than fit"])
async def test_a_killed_engine_costs_what_ran_a_clear_error_and_nothing_after(house: House, resident: int) -> None:
    async with open_room(house, max_resident=resident, max_batch=8) as room:
        wanted = await furnish(room)
        for _ in range(2):
            tasks = await under_load(room, 20)
            await eventually(lambda: len(engine_of(house)) == 1)
            (engine,) = engine_of(house)
            os.kill(engine.pid, signal.SIGKILL)

            assert await ended(tasks, wanted) > 0

            after = await asyncio.gather(*(room.stream(long(model)) for model in MODELS))
            assert [text_of(answer) for answer in after] == [wanted[model] for model in MODELS]
            await eventually(lambda: exact(room))


async def test_a_killed_room_leaves_no_engine_and_serves_on_from_what_it_had_acknowledged(house: House) -> None:
    async with started(house) as (room, process):
        wanted = await furnish(room)
        await room.ask("SetAlias", pb.SetAliasRequest(base="demo-large", name="a", alias="stable", version="1"))
        await room.ask("Pin", pb.PinRequest(model=NAMES[1], pinned=True))
        tasks = await under_load(room, 20)
        engines = engine_of(house)
        process.kill()
        process.wait()

        assert await ended(tasks, wanted) > 0
        await eventually(lambda: not any(engine.is_running() for engine in engines))
    async with started(house) as (room, process):
        after = await asyncio.gather(*(room.stream(long(model)) for model in MODELS))
        assert [text_of(answer) for answer in after] == [wanted[model] for model in MODELS]
        stable = await room.stream(long("demo-large@a"))
        assert stable[-1].done.resolved_model.startswith("demo-large@a:1#")
        told = await room.ask("GetResidency", pb.GetResidencyRequest())
        assert {each.model: each.pinned for each in told.residents} == dict(
            zip(NAMES, (False, True, False), strict=True)
        )
        await eventually(lambda: exact(room))
        process.terminate()
        assert process.wait(30) == 0
    assert not engine_of(house)


def start(home: Path) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "catena.adapters", "--config", str(home / "catena.yaml")]
    with (home / "room.log").open("ab") as output:
        return subprocess.Popen(command, stdout=output, stderr=output)


@asynccontextmanager
async def started(house: House) -> AsyncIterator[tuple[Room, subprocess.Popen[bytes]]]:
    """The room as a process of its own, once it answers."""
    home = house.folder()
    settings = {
        "home": str(home),
        "auth": {"service_token": TOKEN},
        "bus": {"url": house.bus.url},
        "models": [{"name": model.name, "path": model.path} for model in house.models],
    }
    (home / "catena.yaml").write_bytes(msgspec.yaml.encode(settings))
    process = start(home)
    try:
        async with dial(house.address("adapters"), token=TOKEN) as channel:
            room = Room(house, AdaptersServiceStub(channel))

            async def answers() -> bool:
                try:
                    await room.ask("ListBases", pb.ListBasesRequest())
                except CatenaError:
                    return False
                return True

            await eventually(answers, 60)
            yield room, process
    finally:
        process.kill()
        process.wait()
