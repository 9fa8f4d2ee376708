"""The gateway's routes without what stands behind them."""

from types import SimpleNamespace
from typing import Any

import grpc

from catena.api.executor.v1 import executor_pb2_grpc
from catena.api.features.v1 import features_pb2_grpc
from catena.api.memory.v1 import memory_pb2_grpc
from catena.gateway.core.keys import Gateway, Key
from catena.gateway.handlers.background import RunRoutes
from catena.gateway.handlers.exchange import Reader
from catena.gateway.handlers.http import Front
from catena.gateway.handlers.inference import Inference
from catena.gateway.handlers.inferring import Inferring
from catena.gateway.handlers.keys import KeyRoutes
from catena.gateway.handlers.live import Live
from catena.gateway.handlers.lora import LoraRoutes
from catena.gateway.handlers.passage import Passage
from catena.gateway.handlers.registry import RegistryRoutes
from catena.gateway.handlers.routes import Entry
from catena.gateway.handlers.ways import ways
from catena.kit.clock import still_world


def front(*keys: Key) -> Front:
    """Routes that are asked for what they are, or that fail before they ask anybody."""
    nobody: Any = None
    channel, reader = grpc.insecure_channel("localhost:9"), Reader(max_bytes=1000)
    executor = executor_pb2_grpc.ExecutorServiceStub(channel)
    passing = ways(executor, memory_pb2_grpc.MemoryServiceStub(channel), features_pb2_grpc.FeaturesServiceStub(channel))
    gateway = Gateway(keys, {})
    asking: Any = SimpleNamespace(gateway=gateway, executor=executor, world=still_world())
    return Front(
        asking=asking,
        reader=reader,
        models=nobody,
        passage=Passage(ways=passing, reader=reader),
        runs=RunRoutes(asking=asking, reader=reader, webhooks=nobody),
        keys=KeyRoutes(world=still_world(), gateway=gateway, reader=reader, save=nobody),
        lora=LoraRoutes(adapters=nobody, executor=nobody, names=nobody, reader=reader),
        live=Live(asking=asking, tiers=nobody, trials=nobody, page=""),
        registry=RegistryRoutes(""),
        inference=Inference(inferring=Inferring(asking), adapters=nobody, reader=reader),
        cors_origins=[],
    )


def entries() -> list[Entry]:
    """Everything that is served."""
    return front().entries()
