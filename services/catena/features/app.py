"""Puts the parts of features together."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from catena.api.events.v1.events_pb2 import ValueSet
from catena.api.features.v1.features_pb2_grpc import add_FeaturesServiceServicer_to_server
from catena.features.config import FeaturesConfig
from catena.features.core.cache import Cache
from catena.features.core.features import Features, Limits
from catena.features.drivers.shelf import EVENT, SqlShelf
from catena.features.drivers.tables import MIGRATIONS, metadata
from catena.features.handlers import FeaturesHandlers
from catena.kit.chassis import open_chassis
from catena.kit.clock import World
from catena.kit.config import House
from catena.kit.event import Event

ROOM = "features"
SERVICE = "catena.api.features.v1.FeaturesService"


@asynccontextmanager
async def open_features(house: House, config: FeaturesConfig, world: World) -> AsyncIterator[None]:
    """Serve features until the block ends."""
    async with open_chassis(ROOM, house, world, metadata=metadata, migrations=MIGRATIONS) as chassis:
        features = Features(
            shelf=SqlShelf(chassis.store, chassis.outbox, world),
            cache=Cache(keep_s=config.cache_s, entities=config.cache_entities),
            clock=world.clock,
            limits=Limits(
                definitions_s=config.definitions_s,
                max_value_bytes=config.max_value_bytes,
                max_batch=config.max_batch,
            ),
        )

        async def forget(event: Event) -> None:
            said = ValueSet.FromString(event.data)
            features.forget(event.tenant, said.entity_type, said.entity_id)

        chassis.watch([EVENT], forget)
        handlers = FeaturesHandlers(features)
        async with chassis.serve(
            lambda server: add_FeaturesServiceServicer_to_server(handlers, server), names=[SERVICE]
        ):
            yield
