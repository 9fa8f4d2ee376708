"""Where the gateway's parts meet."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from importlib.resources import files
from typing import Any

from google.protobuf.message import Message

from catena.api.executor.v1 import executor_pb2, executor_pb2_grpc
from catena.api.features.v1 import features_pb2, features_pb2_grpc
from catena.api.gateway.v1 import gateway_pb2_grpc
from catena.api.learner.v1 import learner_pb2_grpc
from catena.api.memory.v1 import memory_pb2, memory_pb2_grpc
from catena.api.router.v1 import router_pb2_grpc
from catena.api.types.v1 import types_pb2
from catena.gateway.config import GatewayConfig
from catena.gateway.core.figures import Figures
from catena.gateway.core.keys import Gateway
from catena.gateway.drivers.exported import export
from catena.gateway.drivers.keys import METADATA, KeyStore, development_secret, first_key
from catena.gateway.drivers.web import open_web
from catena.gateway.handlers.asking import Asking, Baseline
from catena.gateway.handlers.exchange import Reader
from catena.gateway.handlers.grpc import GatewayHandlers, by_key
from catena.gateway.handlers.http import Front
from catena.gateway.handlers.keys import KeyRoutes
from catena.gateway.handlers.models import ModelList
from catena.gateway.handlers.news import News
from catena.gateway.handlers.passage import Passage, Way
from catena.kit.chassis import Chassis, open_chassis
from catena.kit.clock import World
from catena.kit.config import House, ModelConfig
from catena.kit.errors import CatenaError
from catena.kit.event import Event

SERVICE = "catena.api.gateway.v1.GatewayService"


@asynccontextmanager
async def open_gateway(house: House, config: GatewayConfig, world: World) -> AsyncIterator[None]:
    """Serve HTTP at `config.port` and GatewayService at the room's address until the block ends."""
    async with open_chassis("gateway", house, world, metadata=METADATA) as chassis:
        keys = KeyStore(chassis.store, chassis.outbox)
        gateway = await _known(keys, house, config.admin_key, world)
        asking = await _asking(chassis, config, gateway)
        _keep_up(chassis, config, keys, asking)
        export(asking.figures, world.clock)
        reader = Reader(max_bytes=config.max_body_bytes)
        front = Front(
            asking=asking,
            models=ModelList(executor=asking.executor),
            reader=reader,
            passage=Passage(ways=await _ways(chassis, asking.executor), reader=reader),
            keys=KeyRoutes(world=world, gateway=gateway, reader=reader, save=keys.save),
            page=files("catena.gateway.drivers").joinpath("dashboard.html").read_text(),
            cors_origins=config.cors_origins,
        )
        handlers = GatewayHandlers(asking)
        async with (
            chassis.serve(
                lambda server: gateway_pb2_grpc.add_GatewayServiceServicer_to_server(handlers, server),
                names=[SERVICE],
                admit=by_key(gateway),
            ),
            open_web(
                front.application(),
                config.host,
                config.port,
                elsewhere=house.profile == "development",
                front=house.folder("run") / "gateway.json",
                drain_s=house.drain_s,
            ),
        ):
            yield


async def _known(keys: KeyStore, house: House, admin_key: str, world: World) -> Gateway:
    known, spent = await keys.load()
    firsts = {"admin": admin_key} if admin_key else {}
    if house.profile == "development":
        firsts["development"] = development_secret(house.folder("keys"))
    for name, secret in firsts.items():
        made = await first_key(keys, known, secret, name=name, world=world)
        known = [*known, made] if made else known
    return Gateway(known, spent)


async def _asking(chassis: Chassis, config: GatewayConfig, gateway: Gateway) -> Asking:
    return Asking(
        world=chassis.world,
        gateway=gateway,
        figures=Figures(),
        router=router_pb2_grpc.RouterServiceStub(await chassis.dial("router")),
        executor=executor_pb2_grpc.ExecutorServiceStub(await chassis.dial("executor")),
        learner=learner_pb2_grpc.LearnerServiceStub(await chassis.dial("learner")),
        timeout_s=config.timeout_s,
        baseline=baseline(chassis.house.models, config.baseline_model),
    )


def _keep_up(chassis: Chassis, config: GatewayConfig, keys: KeyStore, asking: Asking) -> None:
    async def reload(_: Event) -> None:
        for key in (await keys.load())[0]:
            asking.gateway.put(key)

    async def flush() -> None:
        while True:
            await asyncio.sleep(config.spend_flush_s)
            await _write_down(keys, asking.gateway)

    chassis.watch(["gateway.key.changed"], reload)
    chassis.watch(list(News.KINDS), News(asking.figures).hear)
    chassis.background(flush(), "spending")


async def _write_down(keys: KeyStore, gateway: Gateway) -> None:
    amounts = gateway.take_unsaved()
    try:
        if amounts:
            await keys.spend(amounts)
    except CatenaError:
        gateway.charge_back(amounts)


def baseline(models: list[ModelConfig], name: str) -> Baseline:
    """Prices tokens on the named model, or on the dearest one."""
    named = [model for model in models if model.name == name]
    dearest = sorted(models, key=lambda model: model.price.output)
    price = (named or dearest[-1:] or [ModelConfig(name="")])[0].price

    def cost(usage: types_pb2.Usage) -> float:
        return (usage.input_tokens * price.input + usage.output_tokens * price.output) / 1e6

    return cost


async def _ways(chassis: Chassis, executor: "executor_pb2_grpc.ExecutorServiceAsyncStub") -> list[Way]:
    memory = memory_pb2_grpc.MemoryServiceStub(await chassis.dial("memory"))
    features = features_pb2_grpc.FeaturesServiceStub(await chassis.dial("features"))
    table: list[tuple[str, str, type[Message], Callable[[Any], Awaitable[Message]]]] = [
        ("PUT", "/v1/pipelines", executor_pb2.PutPipelineRequest, executor.PutPipeline),
        ("GET", "/v1/pipelines", executor_pb2.ListPipelinesRequest, executor.ListPipelines),
        ("GET", "/v1/pipelines/{name}", executor_pb2.GetPipelineRequest, executor.GetPipeline),
        ("DELETE", "/v1/pipelines/{name}", executor_pb2.DeletePipelineRequest, executor.DeletePipeline),
        ("GET", "/v1/executions/{id}", executor_pb2.GetExecutionRequest, executor.GetExecution),
        ("GET", "/v1/runs/{id}", executor_pb2.GetRunRequest, executor.GetRun),
        ("DELETE", "/v1/runs/{id}", executor_pb2.CancelRunRequest, executor.CancelRun),
        ("POST", "/v1/batch_predict", executor_pb2.BatchPredictRequest, executor.BatchPredict),
        ("POST", "/v1/memory/documents", memory_pb2.PutDocumentsRequest, memory.PutDocuments),
        ("POST", "/v1/memory/delete", memory_pb2.DeleteDocumentsRequest, memory.DeleteDocuments),
        ("POST", "/v1/memory/search", memory_pb2.SearchRequest, memory.Search),
        ("PUT", "/v1/memory/sops", memory_pb2.PutSopRequest, memory.PutSop),
        ("POST", "/v1/memory/sops/match", memory_pb2.MatchSopsRequest, memory.MatchSops),
        ("POST", "/v1/features", features_pb2.SetRequest, features.Set),
        ("POST", "/v1/features/get", features_pb2.GetRequest, features.Get),
        ("POST", "/v1/features/batch", features_pb2.BatchGetRequest, features.BatchGet),
        ("PUT", "/v1/features/definitions", features_pb2.PutDefinitionRequest, features.PutDefinition),
        ("PUT", "/v1/features/groups", features_pb2.PutGroupRequest, features.PutGroup),
    ]
    return [Way(verb=verb, path=path, request=kind, call=call) for verb, path, kind, call in table]
