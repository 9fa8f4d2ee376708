"""The adapters that come with an installation: registered for everybody at the start, if they pass the gate."""

import asyncio
from pathlib import Path

import structlog

from catena.adapters.core.adapters import SHARED, Adapters
from catena.adapters.core.errors import UnknownAdapter
from catena.adapters.core.ports import Registry
from catena.adapters.core.refs import STABLE
from catena.kit.errors import CatenaError

log = structlog.get_logger()


async def register_library(folder: Path, adapters: Adapters, registry: Registry) -> None:
    """Register every adapter folder below `folder`. One whose name has no stable version yet becomes it.

    What the gate refuses is logged and left out.
    """
    for path in await asyncio.to_thread(_adapter_folders, folder):
        try:
            record = await adapters.register(SHARED, path)
            try:
                await registry.find(SHARED, record.base, record.name, STABLE)
            except UnknownAdapter:
                await registry.set_alias(SHARED, record.base, record.name, STABLE, version=record.version, expected="")
        except CatenaError as error:
            log.error("library adapter refused", folder=path.name, code=error.code, error=error.message)
        else:
            log.info("library adapter registered", adapter=record.model)


def _adapter_folders(folder: Path) -> list[Path]:
    return sorted(path.parent for path in folder.glob("**/adapter_config.json"))
