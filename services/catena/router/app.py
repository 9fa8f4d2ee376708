"""Puts the router's parts together."""

import asyncio
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import structlog
from numpy.typing import NDArray

from catena.api.adapters.v1.adapters_pb2_grpc import AdaptersServiceStub
from catena.api.events.v1.events_pb2 import ResidencyChanged
from catena.api.executor.v1.executor_pb2_grpc import ExecutorServiceStub
from catena.api.memory.v1.memory_pb2_grpc import MemoryServiceStub
from catena.api.router.v1.router_pb2_grpc import add_RouterServiceServicer_to_server
from catena.embed import BackgroundEmbedder, open_embedder
from catena.kit.caller import SHARED
from catena.kit.chassis import Chassis, open_chassis
from catena.kit.clock import World
from catena.kit.config import House
from catena.kit.event import Event
from catena.plan.build import read_shapes
from catena.router.config import DomainConfig, RouterConfig
from catena.router.core.ask import check_budget, check_weights
from catena.router.core.atlas import Atlas
from catena.router.core.candidates import House as Shapes
from catena.router.core.choice import Taste
from catena.router.core.decision import Curiosity
from catena.router.core.domains import Domain, check_domain
from catena.router.core.guarantee import check_promise
from catena.router.core.ports import Embed, FetchHints
from catena.router.core.router import Manner, Ports, Router
from catena.router.core.steps import ITSELF
from catena.router.core.trials import Trials
from catena.router.core.tuner import Tuner
from catena.router.core.tuning import Bounds
from catena.router.drivers.embedding import ExecutorEmbedding
from catena.router.drivers.hints import RoomHints
from catena.router.drivers.journal import SqlJournal
from catena.router.drivers.models import ExecutorModels, configured_models
from catena.router.drivers.residents import AdapterResidents
from catena.router.drivers.tables import MIGRATIONS, metadata
from catena.router.handlers.events import ADAPTERS, RESIDENCY, hearing
from catena.router.handlers.rpc import RouterHandlers

if TYPE_CHECKING:
    from catena.api.executor.v1.executor_pb2_grpc import ExecutorServiceAsyncStub

ROOM = "router"
SERVICE = "catena.api.router.v1.RouterService"
WORDS_ONLY = "none"
REFIT_SHARE = 0.05
"""Of the time, that learning may take at most: at full window it takes some 0.1 s, as others wait."""

log = structlog.get_logger()


@asynccontextmanager
async def open_router(house: House, config: RouterConfig, world: World) -> AsyncIterator[None]:
    """Serve the router until the block ends.

    Raises Invalid for settings without sense, Missing when the embedding model is absent.
    """
    manner = manner_of(config)
    shapes = Shapes(shapes=read_shapes(house.pipelines), thresholds=tuple(config.thresholds))
    async with AsyncExitStack() as stack:
        chassis = await stack.enter_async_context(
            open_chassis(ROOM, house, world, metadata=metadata, migrations=MIGRATIONS)
        )
        executor = ExecutorServiceStub(await chassis.dial("executor"))
        embed = await stack.enter_async_context(_embedding(house, config, executor))
        journal = SqlJournal(chassis.store, chassis.outbox, window=config.window)
        await journal.seed_domains([_domain(one, world) for one in config.domains])
        models = ExecutorModels(executor)
        adapters = AdaptersServiceStub(await chassis.dial("adapters"))
        router = Router(
            Ports(journal=journal, embed=embed, fetch_models=models, fetch_residents=AdapterResidents(adapters)),
            shapes,
            configured_models(house.models),
            manner,
            world,
        )
        await router.settle()
        atlas = Atlas(router, journal, world)
        tuner = Tuner(router, journal, bounds_of(config), world)
        _keep_up(chassis, router, tuner, config)
        hints = RoomHints(adapters, MemoryServiceStub(await chassis.dial("memory")))
        if config.hints_s > 0.0:
            chassis.background(_seed(router, atlas, hints, config.hints_s), "seed")
        handlers = RouterHandlers(router, atlas, tuner, Trials(router, journal, world))
        async with chassis.serve(lambda server: add_RouterServiceServicer_to_server(handlers, server), names=[SERVICE]):
            yield


def manner_of(config: RouterConfig) -> Manner:
    """How the router decides and learns, as configured. Raises Invalid for weights without sense."""
    weights = {"cost": config.weights.cost, "latency": config.weights.latency, "quality": config.weights.quality}
    return Manner(
        taste=Taste(
            objective=config.objective, weights=check_weights(weights), margin=config.margin, caution=config.caution
        ),
        curiosity=Curiosity(start=config.exploration, floor=config.exploration_floor, min_judged=config.min_judged),
        threshold=config.threshold,
        half_life=config.half_life,
        window=config.window,
        catalogue_s=config.catalogue_s,
        budget_usd=check_budget(config.budget_usd),
    )


def bounds_of(config: RouterConfig) -> Bounds:
    """How far tuning may go, as configured. Raises Invalid for a promise without sense."""
    return Bounds(
        margin=config.margin,
        max_step=config.max_threshold_step,
        min_judged=config.min_judged,
        promise=check_promise(config.max_loss, config.certainty),
        weight_step=config.max_weight_step,
        weight_range=config.weight_range,
    )


@asynccontextmanager
async def _embedding(house: House, config: RouterConfig, executor: "ExecutorServiceAsyncStub") -> AsyncIterator[Embed]:
    told = config.embedding
    if told == WORDS_ONLY:
        yield _no_meaning
        return
    if told and not told.startswith(("/", ".")):
        yield ExecutorEmbedding(executor, told)
        return
    folder = Path(told) if told else house.embedding_folder()
    embed = BackgroundEmbedder(await asyncio.to_thread(open_embedder, folder))
    try:
        yield embed
    finally:
        embed.close()


async def _no_meaning(texts: Sequence[str]) -> NDArray[np.float32]:
    return np.empty((len(texts), 0), np.float32)


def _keep_up(chassis: Chassis, router: Router, tuner: Tuner, config: RouterConfig) -> None:
    """Listen to what teaches, and tend the estimates meanwhile."""
    for event_type, handle in hearing(router).items():
        chassis.consume_together(f"router-{event_type.split('.')[1]}", [event_type], handle)

    async def renewed(event: Event) -> None:
        await router.refetch(event.tenant)

    async def moved(event: Event) -> None:
        told = ResidencyChanged.FromString(event.data)
        router.present.residents.moved(told.model, told.tier)

    chassis.watch([ADAPTERS], renewed)
    chassis.watch([RESIDENCY], moved)
    chassis.background(_tend(router, config), "tend")
    if config.auto_tune_s > 0.0:
        chassis.background(_tune(router, tuner, config.auto_tune_s), "tune")


async def _tend(router: Router, config: RouterConfig) -> None:
    took_s = 0.0
    while True:
        await asyncio.sleep(max(config.refit_s, took_s / REFIT_SHARE))
        began_s = time.monotonic()
        try:
            await router.tend()
        except Exception:
            log.warning("upkeep failed", exc_info=True)
        took_s = time.monotonic() - began_s


async def _seed(router: Router, atlas: Atlas, hints: FetchHints, every_s: float) -> None:
    while True:
        for tenant in dict.fromkeys([SHARED, *router.tenants()]):
            try:
                await atlas.seed(tenant, await hints(tenant))
            except Exception:
                log.warning("taking over domains failed", exc_info=True)
        await asyncio.sleep(every_s)


async def _tune(router: Router, tuner: Tuner, every_s: float) -> None:
    while True:
        await asyncio.sleep(every_s)
        for tenant in router.tenants():
            try:
                told = await tuner.tune(tenant, by=ITSELF)
            except Exception:
                log.warning("tuning failed", exc_info=True)
                continue
            for moved in told.moved:
                log.info("setting moved", setting=moved.setting, before=moved.before, after=moved.after, step=told.step)


def _domain(one: DomainConfig, world: World) -> Domain:
    return check_domain(
        Domain(
            name=one.name,
            tenant=SHARED,
            examples=tuple(one.examples),
            specialist=one.specialist,
            needs_memory=one.needs_memory,
            updated_s=world.clock.now(),
        )
    )
