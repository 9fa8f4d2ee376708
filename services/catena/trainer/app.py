"""Puts the trainer's parts together."""

import asyncio
import os
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from catena.api.trainer.v1.trainer_pb2_grpc import add_TrainerServiceServicer_to_server
from catena.kit.chassis import open_chassis
from catena.kit.clock import World
from catena.kit.config import House
from catena.kit.serve import Limits
from catena.trainer.config import TrainerConfig
from catena.trainer.core.trainer import Ports, Settings, Trainer
from catena.trainer.drivers.bases import FolderBases
from catena.trainer.drivers.files import DataFiles
from catena.trainer.drivers.jobs import SqlJobs
from catena.trainer.drivers.registry import AdaptersRegistry, signing_key
from catena.trainer.drivers.tables import MIGRATIONS, metadata
from catena.trainer.drivers.workers import ProcessWorkers
from catena.trainer.handlers import TrainerHandlers

ROOM = "trainer"
SERVICE = "catena.api.trainer.v1.TrainerService"
GRACE_S = 2.0
"""For calls under way at the end: a watcher of a long job would hold the room up for as long as it may."""


@asynccontextmanager
async def open_trainer(house: House, config: TrainerConfig, world: World) -> AsyncIterator[None]:
    """Serve the trainer and run its jobs until the block ends; jobs under way are handed back, to be gone on with."""
    async with open_chassis(ROOM, house, world, metadata=metadata, migrations=MIGRATIONS) as chassis:
        holder = f"{socket.gethostname()} {house.address(ROOM)}"
        jobs = SqlJobs(chassis.store, chassis.outbox, world, holder=holder, lease_s=config.lease_s)
        workers = ProcessWorkers(house.folder(ROOM, "jobs"))
        key = await asyncio.to_thread(signing_key, house.folder("keys"), house.folder("keys", "trusted"))
        data = Path(config.data_folder) if config.data_folder else house.folder("data")
        ports = Ports(
            jobs=jobs,
            workers=workers,
            bases=FolderBases(house),
            files=DataFiles(data, config.max_data_bytes),
            registry=AdaptersRegistry(await chassis.dial("adapters"), workers, key),
        )
        trainer = Trainer(ports, settings=settings_of(config), world=world)
        handlers = TrainerHandlers(trainer)
        async with chassis.serve(
            lambda server: add_TrainerServiceServicer_to_server(handlers, server),
            names=[SERVICE],
            limits=Limits(grace_s=GRACE_S),
        ):
            # Only now: whoever serves at this address is the only one of this name.
            await jobs.take_back()
            chassis.background(trainer.run(), "jobs")
            yield


def settings_of(config: TrainerConfig) -> Settings:
    """The core's settings; `threads` 0 becomes half of the cores."""
    return Settings(
        concurrency=config.concurrency,
        threads=config.threads or max(1, (os.cpu_count() or 2) // 2),
        device=config.device,
        lease_s=config.lease_s,
        max_stalled=config.max_stalled,
        point_s=config.point_s,
        event_s=config.event_s,
        eval_rows=config.eval_rows,
        keep_folders=config.keep_folders,
    )
