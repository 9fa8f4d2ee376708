"""Models of the configuration file, taken in again whenever it changes; what runs goes on with what it began with."""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path

import structlog

from catena.kit.config import House, ModelConfig, Section, load
from catena.kit.errors import CatenaError

LOOK_EVERY_S = 2.0
log = structlog.get_logger()


async def follow_models(
    house: House, take: Callable[[Sequence[ModelConfig]], Awaitable[None]], *, every_s: float = LOOK_EVERY_S
) -> None:
    """Hand the file's models to `take` each time they change, until cancelled; a file that is wrong changes nothing.

    A change counts once the file reads the same twice, so that one being written is left alone.
    """
    if not isinstance(house.source, str):
        return
    path, known = Path(house.source), list(house.models)
    seen = judged = b""
    while True:
        await asyncio.sleep(every_s)
        try:
            before, seen = seen, await asyncio.to_thread(path.read_bytes)
            if seen != before or seen == judged or not seen.strip():
                continue
            judged = seen
            models = (await asyncio.to_thread(load, path, "", Section))[0].models
            if models != known:
                await take(models)
                known = models
                log.info("models reloaded", path=str(path), models=len(models))
        except (OSError, CatenaError) as error:
            log.warning("models not reloaded", path=str(path), error=str(error))
