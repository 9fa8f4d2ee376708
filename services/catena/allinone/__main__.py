"""Every room in one process, calling each other through their servers' doors; what `catena up` runs on a laptop."""

import asyncio
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path

from catena.adapters.app import open_adapters
from catena.adapters.config import AdaptersConfig
from catena.executor.app import open_executor
from catena.executor.config import ExecutorConfig
from catena.features.app import open_features
from catena.features.config import FeaturesConfig
from catena.gateway.app import open_gateway
from catena.gateway.config import GatewayConfig
from catena.kit.clock import World
from catena.kit.config import House, Room, load
from catena.kit.errors import CatenaError
from catena.kit.leash import exit_with_parent
from catena.kit.room import Opener, arguments, run
from catena.learner.app import open_learner
from catena.learner.config import LearnerConfig
from catena.memory.app import open_memory
from catena.memory.config import MemoryConfig
from catena.router.app import open_router
from catena.router.config import RouterConfig
from catena.trainer.app import open_trainer
from catena.trainer.config import TrainerConfig

Ready = Callable[[House, World], AbstractAsyncContextManager[None]]


def rooms(config: Path | None) -> tuple[House, list[Ready]]:
    """The house and its rooms, configured, in the order in which they are opened."""

    def ready(room: str, kind: type[Room], opener: Opener[Room]) -> Ready:
        section = load(config, room, kind)[1]
        return lambda house, world: opener(house, section, world)

    openers = [
        ready("adapters", AdaptersConfig, open_adapters),
        ready("memory", MemoryConfig, open_memory),
        ready("features", FeaturesConfig, open_features),
        ready("executor", ExecutorConfig, open_executor),
        ready("router", RouterConfig, open_router),
        ready("trainer", TrainerConfig, open_trainer),
        ready("learner", LearnerConfig, open_learner),
        ready("gateway", GatewayConfig, open_gateway),
    ]
    return load(config, "gateway", GatewayConfig)[0], openers


@asynccontextmanager
async def open_all(house: House, openers: list[Ready]) -> AsyncIterator[None]:
    """Open all rooms at once, each in a task of its own, and close them in reverse order."""
    stops = [asyncio.Event() for _ in openers]
    opened = [asyncio.Event() for _ in openers]

    async def keep(number: int) -> None:
        async with openers[number](house, World()):
            opened[number].set()
            await stops[number].wait()

    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(keep(number)) for number in range(len(openers))]
        for event in opened:
            await event.wait()
        try:
            yield
        finally:
            for stop, task in reversed(list(zip(stops, tasks, strict=True))):
                stop.set()
                await asyncio.wait([task])


def main() -> None:
    """Run the house until SIGTERM or SIGINT."""
    exit_with_parent()
    asked = arguments("allinone")
    told: list[str] = []
    try:
        house, openers = rooms(asked.config)
        run("allinone", house, lambda: open_all(house, openers), admin=(asked.admin_host, asked.admin_port))
    except* CatenaError as errors:
        told = flat(errors)
    if told:  # not from within `except*`, which before Python 3.11.4 wraps even an exit into a group
        sys.exit("\n".join(f"allinone: {error}" for error in dict.fromkeys(told)))


def flat(errors: BaseExceptionGroup[CatenaError]) -> list[str]:
    """The messages of a group, inner groups included; rooms that miss the same thing say the same."""
    told: list[str] = []
    for error in errors.exceptions:
        told += flat(error) if isinstance(error, BaseExceptionGroup) else [error.message]
    return told


if __name__ == "__main__":
    main()
