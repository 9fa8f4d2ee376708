"""Background work; the token that rooms show each other, made once by whichever process comes first."""

import asyncio
import gc
import threading
import warnings
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack
from pathlib import Path

from catena.kit.chassis import Chassis, _end, kept_token, service_token
from catena.kit.clock import World
from catena.kit.config import House
from catena.kit.testing import MemoryBus


async def test_work_of_a_room_that_closes_at_once_ends_without_complaint() -> None:
    async def work() -> None:
        raise AssertionError("it never begins")

    async with AsyncExitStack() as stack:
        bus, tasks = MemoryBus(), set()  # type: ignore[var-annotated]
        chassis = Chassis(room="router", house=House(), world=World(), token="", bus=bus, _stack=stack, _tasks=tasks)
        with warnings.catch_warnings(record=True) as heard:
            warnings.simplefilter("always")
            chassis.background(work(), "work")
            await _end(tasks)
            await asyncio.sleep(0)
            gc.collect()
    assert not [one for one in heard if "never awaited" in str(one.message)]
    assert not tasks


def test_whoever_sees_the_token_sees_all_of_it_while_many_processes_start(tmp_path: Path) -> None:
    """Each round is a home of its own, in which a reader watches and several rooms start at once."""
    for number in range(50):
        house = House(home=str(tmp_path / str(number)))
        (tmp_path / str(number) / "keys").mkdir(parents=True)
        path = tmp_path / str(number) / "keys" / "service.token"
        together = threading.Barrier(5)

        def first_sight(path: Path = path, together: threading.Barrier = together) -> str:
            together.wait()
            while not path.exists():
                pass
            return path.read_text()

        def start(house: House = house, together: threading.Barrier = together) -> str:
            together.wait()
            return service_token(house)

        with ThreadPoolExecutor(5) as pool:
            seen = pool.submit(first_sight)
            told = {future.result() for future in [pool.submit(start) for _ in range(4)]}
        assert told == {seen.result()} == {kept_token(house)}
        assert len(seen.result()) > 40
        assert [file.name for file in path.parent.iterdir()] == ["service.token"]
        assert path.stat().st_mode & 0o777 == 0o600
