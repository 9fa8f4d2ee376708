"""How a room's process ends: what it opened is closed in its own time, whatever signal asked for it."""

import asyncio
import os
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from catena.kit.config import House
from catena.kit.room import run


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_lets_what_is_open_drain(tmp_path: Path, number: signal.Signals) -> None:
    seen: list[str] = []

    @asynccontextmanager
    async def room() -> AsyncIterator[None]:
        seen.append("open")
        os.kill(os.getpid(), number)
        yield
        for _ in range(50):
            await asyncio.sleep(0)
        seen.append("drained")

    run("room", House(home=str(tmp_path)), room, admin=("127.0.0.1", 0))
    assert seen == ["open", "drained"]


def test_a_signal_ends_a_room_that_never_opens(tmp_path: Path) -> None:
    @asynccontextmanager
    async def room() -> AsyncIterator[None]:
        os.kill(os.getpid(), signal.SIGTERM)
        await asyncio.Event().wait()
        yield

    run("room", House(home=str(tmp_path)), room, admin=("127.0.0.1", 0))
