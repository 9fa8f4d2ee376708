"""Where the gateway's parts meet."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from importlib.resources import files

from catena.api.adapters.v1 import adapters_pb2_grpc
from catena.api.executor.v1 import executor_pb2_grpc
from catena.api.features.v1 import features_pb2_grpc
from catena.api.gateway.v1 import gateway_pb2_grpc
from catena.api.inference.v2 import inference_pb2_grpc
from catena.api.learner.v1 import learner_pb2_grpc
from catena.api.memory.v1 import memory_pb2_grpc
from catena.api.router.v1 import router_pb2_grpc
from catena.api.types.v1 import types_pb2
from catena.gateway.config import GatewayConfig
from catena.gateway.core.figures import Board
from catena.gateway.core.keys import Gateway
from catena.gateway.drivers.exported import Exported, export
from catena.gateway.drivers.keys import KeyStore, development_secret, first_key
from catena.gateway.drivers.posting import open_posting
from catena.gateway.drivers.tables import METADATA, MIGRATIONS, RUNS
from catena.gateway.drivers.web import open_web
from catena.gateway.drivers.webhooks import WebhookStore
from catena.gateway.handlers.asking import Asking, Baseline
from catena.gateway.handlers.background import RunRoutes
from catena.gateway.handlers.exchange import Reader
from catena.gateway.handlers.grpc import GatewayHandlers, by_key
from catena.gateway.handlers.http import Front
from catena.gateway.handlers.images import Images
from catena.gateway.handlers.inference import Inference
from catena.gateway.handlers.inference_grpc import InferenceHandlers
from catena.gateway.handlers.inferring import Inferring
from catena.gateway.handlers.keys import KeyRoutes
from catena.gateway.handlers.live import Live
from catena.gateway.handlers.lora import LoraRoutes
from catena.gateway.handlers.lora_names import LoraNames
from catena.gateway.handlers.models import ModelList
from catena.gateway.handlers.news import News
from catena.gateway.handlers.owing import Owing
from catena.gateway.handlers.passage import Passage
from catena.gateway.handlers.registry import RegistryRoutes
from catena.gateway.handlers.replicas import USED, Replicas
from catena.gateway.handlers.runs import FINISHED, Settling
from catena.gateway.handlers.tiers import Tiers
from catena.gateway.handlers.trials import Trials
from catena.gateway.handlers.ways import ways
from catena.gateway.handlers.webhooks import DURABLE, Webhooks
from catena.kit.chassis import Chassis, open_chassis
from catena.kit.clock import World
from catena.kit.config import House, ModelConfig
from catena.kit.errors import CatenaError
from catena.kit.event import Event

SERVICE, INFERENCE = "catena.api.gateway.v1.GatewayService", "inference.GRPCInferenceService"


@asynccontextmanager
async def open_gateway(house: House, config: GatewayConfig, world: World) -> AsyncIterator[None]:
    """Serve HTTP at `config.port` and GatewayService at the room's address until the block ends."""
    hooks = config.webhooks
    async with (
        open_posting(hooks.private_networks, hooks.timeout_s) as post,
        open_chassis("gateway", house, world, metadata=METADATA, migrations=MIGRATIONS) as chassis,
    ):
        keys = KeyStore(chassis.store, chassis.outbox)
        gateway = await _known(keys, house, config.admin_key, world)
        names = LoraNames(
            adapters=adapters_pb2_grpc.AdaptersServiceStub(await chassis.dial("adapters")), clock=world.clock
        )
        exported = Exported(house.telemetry.agent_types)
        asking = await _asking(chassis, config, gateway, names, exported)
        _keep_up(chassis, config, keys, asking, exported)
        webhooks = Webhooks(kept=WebhookStore(chassis.store, world.clock), post=post, world=world, config=hooks)
        chassis.consume(DURABLE, [FINISHED], webhooks.hear, in_flight=16)
        chassis.background(webhooks.run(), "webhooks")
        front = await _front(chassis, config, asking, keys, webhooks)
        handlers, inference = GatewayHandlers(asking), InferenceHandlers(Inferring(asking))
        async with (
            _settled(keys, asking, house.drain_s),
            chassis.serve(
                lambda server: gateway_pb2_grpc.add_GatewayServiceServicer_to_server(handlers, server),
                lambda server: inference_pb2_grpc.add_GRPCInferenceServiceServicer_to_server(inference, server),
                names=[SERVICE, INFERENCE],
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
            try:
                yield
            finally:
                front.live.closing.set()


async def _front(chassis: Chassis, config: GatewayConfig, asking: Asking, keys: KeyStore, webhooks: Webhooks) -> Front:
    adapters = adapters_pb2_grpc.AdaptersServiceStub(await chassis.dial("adapters"))
    reader = Reader(max_bytes=config.max_body_bytes)
    return Front(
        asking=asking,
        models=ModelList(executor=asking.executor, names=asking.names),
        reader=reader,
        passage=Passage(
            ways=ways(
                asking.executor,
                memory_pb2_grpc.MemoryServiceStub(await chassis.dial("memory")),
                features_pb2_grpc.FeaturesServiceStub(await chassis.dial("features")),
            ),
            reader=reader,
        ),
        runs=RunRoutes(asking=asking, reader=reader, webhooks=webhooks),
        keys=KeyRoutes(world=chassis.world, gateway=asking.gateway, reader=reader, save=keys.save),
        lora=LoraRoutes(adapters=adapters, executor=asking.executor, names=asking.names, reader=reader),
        live=Live(
            asking=asking,
            tiers=Tiers(adapters),
            trials=Trials(asking.router),
            page=files("catena.gateway.drivers").joinpath("dashboard.html").read_text(),
        ),
        registry=RegistryRoutes(config.registry),
        inference=Inference(inferring=Inferring(asking), adapters=adapters, reader=reader),
        cors_origins=config.cors_origins,
    )


async def _known(keys: KeyStore, house: House, admin_key: str, world: World) -> Gateway:
    known, spent = await keys.load()
    firsts = {"admin": admin_key} if admin_key else {}
    if house.profile == "development":
        firsts["development"] = development_secret(house.folder("keys"))
    for name, secret in firsts.items():
        made = await first_key(keys, known, secret, name=name, world=world)
        known = [*known, made] if made else known
    return Gateway(known, spent)


async def _asking(
    chassis: Chassis, config: GatewayConfig, gateway: Gateway, names: LoraNames, exported: Exported
) -> Asking:
    outside = frozenset(model.name for model in chassis.house.models if model.provider != "local")
    executor = executor_pb2_grpc.ExecutorServiceStub(await chassis.dial("executor"))
    return Asking(
        world=chassis.world,
        gateway=gateway,
        figures=Board(outside=outside, tell_others=exported.ended),
        router=router_pb2_grpc.RouterServiceStub(await chassis.dial("router")),
        executor=executor,
        owing=Owing(executor=executor),
        learner=learner_pb2_grpc.LearnerServiceStub(await chassis.dial("learner")),
        names=names,
        images=Images(most=config.max_images, most_bytes=config.max_image_bytes),
        timeout_s=config.timeout_s,
        baseline=baseline(chassis.house.models, config.baseline_model),
    )


def _keep_up(chassis: Chassis, config: GatewayConfig, keys: KeyStore, asking: Asking, exported: Exported) -> None:
    export(asking.figures.whole, chassis.world.clock)

    world = chassis.world
    replicas = Replicas(gateway=asking.gateway, world=world, me=world.new_id(), publish=chassis.bus.publish)

    async def reload(_: Event) -> None:
        for key in (await keys.load())[0]:
            asking.gateway.put(key)

    async def flush() -> None:
        while True:
            await asyncio.sleep(config.spend_flush_s)
            await _write_down(keys, asking.gateway)
            await replicas.tell()

    async def forget(_: Event) -> None:
        asking.names.forget()

    chassis.consume(RUNS, [FINISHED], Settling(asking=asking, spend=keys.spend_once).hear)
    chassis.watch(["gateway.key.changed"], reload)
    chassis.watch([USED], replicas.hear)
    chassis.watch(["adapters.adapter.served", "adapters.adapter.withdrawn"], forget)
    news = News(asking.figures, lost=exported.lost, decided=exported.decided, since_s=world.clock.now())
    # From the oldest that is kept, so that curves and news outlive this process.
    chassis.watch(list(News.KINDS), news.hear, since_now=False)
    chassis.background(flush(), "spending")


@asynccontextmanager
async def _settled(keys: KeyStore, asking: Asking, drain_s: float) -> AsyncIterator[None]:
    """Leave nothing owed or unwritten behind."""
    try:
        yield
    finally:
        await asking.owing.close(drain_s)
        await _write_down(keys, asking.gateway)


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
