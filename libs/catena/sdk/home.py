"""One platform per home: two on one home would take each other's sockets, broker and logs."""

import asyncio
import fcntl
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import msgspec

from catena.kit.config import ROOMS, House
from catena.kit.errors import Conflict

LEAVING_S = 30.0


@contextmanager
def occupied(house: House) -> Iterator[None]:
    """Hold the home for this process, until the block ends or the process does, however it ends.

    Raises Conflict (`already_running`) at once where another process holds it.
    """
    with (house.folder("run") / "platform.lock").open("a") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise Conflict(
                f"a platform already runs in {house.folder()}{_where(front_file(house))}; use it, stop it with Ctrl-C "
                "where it runs, or give this one a home of its own: CATENA__HOME=FOLDER catena up",
                code="already_running",
            ) from None
        yield


async def vacated(house: House, timeout_s: float = LEAVING_S) -> None:
    """Return once no room of an earlier platform answers: of one that was killed they end a moment later.

    Raises Conflict (`address_taken`) when one still does after `timeout_s`.
    """
    for address in (house.address(room) for room in ROOMS if room not in house.addresses):
        try:
            async with asyncio.timeout(timeout_s):
                while await listens(address):  # noqa: ASYNC110 - another process's state can only be polled
                    await asyncio.sleep(0.05)
        except TimeoutError:
            raise Conflict(f"another process serves at {address}; stop it first", code="address_taken") from None


async def listens(address: str) -> bool:
    """Whether somebody accepts at a room's unix socket; of any other address the first call tells."""
    if not address.startswith("unix:"):
        return True
    try:
        _, writer = await asyncio.open_unix_connection(address.removeprefix("unix:"))
    except OSError:
        return False
    writer.close()
    return True


def front_file(house: House) -> Path:
    """Where the gateway writes down its URL."""
    return house.folder("run") / "gateway.json"


def front_url(front: Path) -> str:
    """The gateway's URL. Raises OSError or DecodeError before it has written it."""
    return str(msgspec.json.decode(front.read_bytes())["url"])


def _where(front: Path) -> str:
    try:
        return f" at {front_url(front)}"
    except (OSError, msgspec.DecodeError):
        return " and is starting"
