"""Puts memory's parts together."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from catena.api.memory.v1.memory_pb2_grpc import add_MemoryServiceServicer_to_server
from catena.embed import BackgroundEmbedder, open_embedder
from catena.kit.caller import SHARED
from catena.kit.chassis import open_chassis
from catena.kit.clock import World
from catena.kit.config import House
from catena.kit.supervise import Supervisor
from catena.memory.config import MemoryConfig
from catena.memory.core.memory import Memory, Settings
from catena.memory.drivers.edge import Shape
from catena.memory.drivers.edge_client import open_edge
from catena.memory.drivers.library import SqlLibrary
from catena.memory.drivers.mirror import Mirror
from catena.memory.drivers.procedures import read_sops
from catena.memory.drivers.tables import MIGRATIONS, metadata
from catena.memory.handlers import MemoryHandlers

ROOM = "memory"
SERVICE = "catena.api.memory.v1.MemoryService"


@asynccontextmanager
async def open_memory(house: House, config: MemoryConfig, world: World) -> AsyncIterator[None]:
    """Serve memory until the block ends; its index process ends with it.

    Raises Missing when the embedding model is absent.
    """
    embedder = await asyncio.to_thread(open_embedder, house.embedding_folder())
    embed = BackgroundEmbedder(embedder)
    shape = Shape(dimension=embedder.dimension, language=config.language)
    socket = Path(house.address("index").removeprefix("unix:"))
    async with (
        open_chassis(ROOM, house, world, metadata=metadata, migrations=MIGRATIONS) as chassis,
        Supervisor(house.folder("run")) as supervisor,
        open_edge(house.folder("index"), socket, shape, supervisor) as index,
    ):
        library = SqlLibrary(chassis.store, chassis.outbox, world, model=embedder.card.digest)
        mirror = Mirror(library, index)
        index.on_open = mirror.distrust
        chassis.background(mirror.run(), "mirror")
        memory = Memory(library=library, index=index, follow=mirror.follow, embed=embed, settings=_settings(config))
        for sop in read_sops(config.sops):
            await memory.put_sop(SHARED, sop)
        chassis.background(_refresh(memory, library), "refresh")
        handlers = MemoryHandlers(memory, world.clock)
        async with chassis.serve(lambda server: add_MemoryServiceServicer_to_server(handlers, server), names=[SERVICE]):
            yield
    embed.close()


async def _refresh(memory: Memory, library: SqlLibrary) -> None:
    """Embed again what another model embedded."""
    for scope in await library.outdated():
        await memory.rebuild(scope)


def _settings(config: MemoryConfig) -> Settings:
    return Settings(
        candidates=config.candidates,
        text_fusion=config.text_fusion,
        code_fusion=config.code_fusion,
        chunk_characters=config.chunk_characters,
        max_document_bytes=config.max_document_bytes,
    )
