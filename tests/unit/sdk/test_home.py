"""Who holds a home: one platform at a time, and never one that is gone."""

import asyncio
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from catena.kit.config import House
from catena.kit.errors import Conflict
from catena.sdk.home import occupied, vacated
from catena.sdk.up import platform

pytestmark = pytest.mark.unit
HOLDER = """
import sys, time
from catena.kit.config import House
from catena.sdk.home import occupied
with occupied(House(home=sys.argv[1])):
    print("held", flush=True)
    time.sleep(60)
"""


@pytest.fixture
def house(tmp_path):
    return House(home=str(tmp_path / "home"))


async def test_a_second_platform_is_told_where_the_first_one_is_and_touches_nothing(house):
    front = house.folder("run") / "gateway.json"
    front.write_text('{"url": "http://127.0.0.1:8080", "pid": 1}')
    with occupied(house):
        before = sorted(path.name for path in house.folder().rglob("*"))
        with pytest.raises(Conflict) as told:
            async with platform(house, None):
                raise AssertionError("started")
        assert sorted(path.name for path in house.folder().rglob("*")) == before
    assert told.value.code == "already_running"
    assert f"a platform already runs in {house.home} at http://127.0.0.1:8080; " in told.value.message
    assert "CATENA__HOME=" in told.value.message


def test_one_that_is_still_starting_is_told_of_without_an_address(house):
    told = r"already runs in .*/home and is starting; "
    with occupied(house), pytest.raises(Conflict, match=told), occupied(house):
        pass


def test_a_home_is_free_again_after_a_platform_ended_or_was_killed_even_while_its_children_linger(house):
    with occupied(house):
        lingering = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"], close_fds=False)
    killed = subprocess.Popen([sys.executable, "-c", HOLDER, house.home], stdout=subprocess.PIPE)
    try:
        assert killed.stdout.readline() == b"held\n"
        with pytest.raises(Conflict), occupied(house):
            pass
        killed.send_signal(signal.SIGKILL)
        killed.wait()
        with occupied(house):
            pass
    finally:
        for process in (lingering, killed):
            process.kill()
            process.wait()
        killed.stdout.close()


async def test_a_start_waits_for_the_rooms_that_a_killed_platform_leaves(house):
    path = house.address("router").removeprefix("unix:")
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    lingering = await asyncio.start_unix_server(lambda _, writer: writer.close(), path)
    with pytest.raises(Conflict, match=r"another process serves at unix:.*router.sock; stop it first"):
        await vacated(house, timeout_s=0.01)
    waiting = asyncio.create_task(vacated(house, timeout_s=30))
    lingering.close()
    await waiting
