"""How a room runs as a process of its own: what every `__main__` calls."""

import argparse
import asyncio
import contextlib
import gc
import signal
import sys
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from pathlib import Path

import structlog
import uvloop

from catena.kit.clock import World
from catena.kit.config import House, Room, load, redacted
from catena.kit.errors import CatenaError
from catena.kit.leash import exit_with_parent
from catena.kit.telemetry import open_admin, setup

YOUNG = 10_000
"""Objects made between two looks at the youngest; Python's own 700 is reached within two requests."""

SWITCH_S = 0.001
Opener = Callable[[House, Room, World], AbstractAsyncContextManager[None]]
log = structlog.get_logger()


def main(room: str, kind: type[Room], opener: Opener[Room]) -> None:
    """Read the configuration, open the room, and keep it until SIGTERM or SIGINT; exit code 1 when it cannot open."""
    exit_with_parent()
    asked = arguments(room)
    try:
        house, section = load(asked.config, room, kind)
        run(room, house, lambda: opener(house, section, World()), admin=(asked.admin_host, asked.admin_port))
    except CatenaError as error:
        sys.exit(f"{room}: {error.message}")


def arguments(room: str) -> argparse.Namespace:
    """The command line that every room takes."""
    parser = argparse.ArgumentParser(prog=f"catena serve {room}", description=f"Run Catena's {room} until stopped.")
    parser.add_argument("--config", type=Path, help="configuration file (default: all defaults)")
    parser.add_argument("--admin-host", default="127.0.0.1", help="where /metrics and /healthz listen")
    parser.add_argument("--admin-port", type=int, default=0, help="their port; 0 picks a free one (default)")
    return parser.parse_args()


def run(
    name: str, house: House, opener: Callable[[], AbstractAsyncContextManager[None]], *, admin: tuple[str, int]
) -> None:
    """Open what `opener` gives, keep it until a signal, and close it; telemetry is on for the whole time."""
    with setup(name, house):
        log.info("configuration", process=name, **redacted(house))
        uvloop.run(_until_stopped(name, opener, admin))


async def _until_stopped(
    name: str, opener: Callable[[], AbstractAsyncContextManager[None]], admin: tuple[str, int]
) -> None:
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    parts = {name: False}
    opened = asyncio.Event()
    async with open_admin(admin[1], lambda: parts, host=admin[0]) as port:
        log.info("admin port open", process=name, port=port)
        kept = asyncio.create_task(_keep(opener, parts, name, opened, stop))
        stopped = asyncio.create_task(stop.wait())
        await asyncio.wait({kept, stopped}, return_when=asyncio.FIRST_COMPLETED)
        stopped.cancel()
        if not opened.is_set():
            kept.cancel()  # what opened must not be cancelled: it drains
        with contextlib.suppress(asyncio.CancelledError):
            await kept


async def _keep(
    opener: Callable[[], AbstractAsyncContextManager[None]],
    parts: dict[str, bool],
    name: str,
    opened: asyncio.Event,
    stop: asyncio.Event,
) -> None:
    async with opener():
        parts[name] = True
        opened.set()
        _settle_down()
        await stop.wait()
        parts[name] = False


def _settle_down() -> None:
    """Spare the collector what stays for the room's whole life, let it come less often, and let calls go first.

    A thread that computes (the router learning, say) holds the interpreter's lock for `SWITCH_S` against the loop.
    """
    sys.setswitchinterval(SWITCH_S)
    gc.collect()
    gc.freeze()
    gc.set_threshold(YOUNG)
