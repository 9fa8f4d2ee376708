"""Puts the adapters' parts together."""

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import aclosing, asynccontextmanager
from pathlib import Path

import msgspec
import structlog

from catena.adapters.config import AdaptersConfig, Conduct, conduct
from catena.adapters.core.adapters import Adapters
from catena.adapters.core.manner import Manner
from catena.adapters.core.pressure import Bounds
from catena.adapters.core.resident import Budget
from catena.adapters.core.serving import Serving
from catena.adapters.core.updates import Finding, Shelves, Source, Trouble, Updates
from catena.adapters.drivers.bases import LocalBases
from catena.adapters.drivers.engine.client import ProcessEngine, open_engine
from catena.adapters.drivers.engine.frames import Settings, Ways
from catena.adapters.drivers.findings import SqlFindings
from catena.adapters.drivers.gate import ArtifactGate
from catena.adapters.drivers.known_bases import SqlKnownBases
from catena.adapters.drivers.library import Library
from catena.adapters.drivers.memory import free_memory
from catena.adapters.drivers.names import SqlNames, rooted
from catena.adapters.drivers.refusals import Refusals
from catena.adapters.drivers.registries import open_sources
from catena.adapters.drivers.registry import SqlRegistry
from catena.adapters.drivers.remote import RemoteEngine, open_remote
from catena.adapters.drivers.shipped import read_base_profiles, read_profiles, read_workflows
from catena.adapters.drivers.tables import METADATA, MIGRATIONS
from catena.adapters.handlers import AdaptersHandlers, Figures, LoraGauge, ServerMetrics
from catena.api.adapters.v1.adapters_pb2_grpc import add_AdaptersServiceServicer_to_server
from catena.artifacts.base import BaseRules
from catena.artifacts.gate import Rules
from catena.artifacts.signature import public_keys
from catena.artifacts.store import ArtifactStore
from catena.kit.chassis import Chassis, open_chassis
from catena.kit.clock import World
from catena.kit.config import House
from catena.kit.errors import CatenaError, Invalid

ROOM = "adapters"
SERVICE = "catena.api.adapters.v1.AdaptersService"
BOOKS_EVERY_S = 0.5
TIERS_EVERY_S = 5.0
TEND_EVERY_S = 1.0
LOOK_EVERY_S = 1.0
FIRST_LOOK_S = 60.0
log = structlog.get_logger()


@asynccontextmanager
async def open_adapters(house: House, config: AdaptersConfig, world: World) -> AsyncIterator[None]:
    """Serve the adapters until the block ends; the engine's process ends with it."""
    trusted = Path(config.trusted_keys) if config.trusted_keys else house.folder("keys", "trusted")

    def keys() -> Mapping[str, Path]:
        return public_keys(trusted)

    chosen, local = conduct(config, house.profile), config.engine.kind == "local"
    rules = Rules(max_rank=config.max_rank, require_signature=config.require_signature)
    async with (
        open_chassis(ROOM, house, world, metadata=METADATA, migrations=MIGRATIONS) as chassis,
        _open_engine(house, config, _speakers(house), world) as engine,
        open_sources(
            config.registries, folder=lambda name: house.folder("adapters", "fetched", name), rng=world.rng
        ) as sources,
    ):
        bases = _bases(house, config, chassis, keys)
        store, refusals = ArtifactStore(house.folder("artifacts")), Refusals(world.clock, config.unknown_ttl_s)
        gate = ArtifactGate(store, bases, keys=keys, rules=rules, refusals=refusals, hashed=local)
        registry = SqlRegistry(
            chassis.store, chassis.outbox, world, replica=world.new_id(), unknown_s=config.unknown_ttl_s
        )
        adapters = Adapters(
            engine=engine,
            registry=registry,
            bases=bases,
            gate=gate,
            world=world,
            manner=_manner(config, chosen),
            free=free_memory if local else lambda: None,
        )

        def lost() -> None:
            adapters.lost()
            if chosen.warm:
                chassis.background(_warm(adapters), "warm")

        engine.lost = lost
        figures = Figures()
        names = SqlNames(chassis.store, chassis.outbox, registry, world.clock)
        source = rooted(config.lora_root, rules.max_bytes)
        serving = Serving(adapters, registry, names, source=source, clock=world.clock)
        metrics = ServerMetrics(bases.names(), world.clock.monotonic)
        findings = SqlFindings(chassis.store, chassis.outbox)
        shelves = Shelves(registry=registry, bases=bases, findings=findings, register=adapters.register)
        updates = Updates(sources, shelves, clock=world.clock, max_rank=config.max_rank)
        handlers = AdaptersHandlers(adapters, serving, registry, engine, figures, metrics, updates)
        async with (
            aclosing(adapters),
            chassis.serve(lambda server: add_AdaptersServiceServicer_to_server(handlers, server), names=[SERVICE]),
        ):
            chassis.background(_keep_books(adapters, engine, figures), "books")
            chassis.background(_keep_tiers(adapters, figures), "tiers")
            chassis.background(_keep_gauge(adapters, names, world), "gauge")
            chassis.background(_tend(adapters), "tend")
            chassis.background(_prepare(adapters, registry, config, chosen), "prepare")
            for remote in sources:
                chassis.background(_look_for_updates(updates, remote, world), f"updates of {remote.name}")
            yield


def _bases(
    house: House, config: AdaptersConfig, chassis: Chassis, keys: Callable[[], Mapping[str, Path]]
) -> LocalBases:
    return LocalBases(
        house.models,
        keys=keys,
        rules=BaseRules(require_signature=config.require_base_signature),
        hub=config.hub,
        known=SqlKnownBases(chassis.store, chassis.world.clock),
        accepted=config.accepted_bases,
        refusals=Refusals(chassis.world.clock, config.unknown_ttl_s),
    )


@asynccontextmanager
async def _open_engine(
    house: House, config: AdaptersConfig, bases: Sequence[str], world: World
) -> AsyncIterator[ProcessEngine | RemoteEngine]:
    if unknown := sorted(config.quantization.keys() - set(bases)):
        raise Invalid(
            f"adapters.quantization names {', '.join(unknown)}; the bases are {', '.join(bases)}", code="bad_config"
        )
    if config.engine.kind == "local":
        async with open_engine(_settings(house, config), house.folder("run")) as engine:
            yield engine
        return
    if config.quantization:
        raise Invalid(
            f"adapters.quantization is of the local engine; start the {config.engine.kind} server with a quantisation",
            code="bad_config",
        )
    artifacts = str(house.folder("artifacts"))
    most = config.max_batch + config.queue
    async with open_remote(config.engine, world, bases=bases, artifacts=artifacts, most=most) as remote:
        yield remote


def _speakers(house: House) -> list[str]:
    """The local models that generate: what an engine elsewhere can run."""
    return [model.name for model in house.models if model.provider == "local" and model.type == "chat"]


def _manner(config: AdaptersConfig, chosen: Conduct) -> Manner:
    return Manner(
        budget=Budget(bytes=config.budget_bytes, count=config.max_resident),
        # What other servers hold is theirs to bound.
        base_budget_bytes=config.base_budget_bytes if config.engine.kind == "local" else 0,
        eviction=config.eviction,
        half_life_s=config.reuse_half_life_s,
        host_bytes=config.host_bytes if config.engine.kind == "local" else 0,
        # On a CPU the adapters live in the machine's memory; another device's is the budget's matter alone.
        unified=config.device == "cpu",
        bounds=Bounds(**msgspec.structs.asdict(config.pressure)),
        preload=chosen.preload,
        workflows=read_workflows(config.workflows),
        profiles=read_profiles(config.profiles),
        base_profiles=read_base_profiles(config.base_profiles),
    )


def _settings(house: House, config: AdaptersConfig) -> Settings:
    return Settings(
        socket=house.address("adapters-engine").removeprefix("unix:"),
        device=config.device,
        dtype=config.dtype,
        quantization=config.quantization,
        threads=config.threads,
        ways=Ways(kv=config.kv, lora=config.lora, graphs=config.graphs, kernels=config.kernels),
        max_batch=config.max_batch,
        queue=config.queue,
        kv_bytes=config.kv_bytes,
        prefix_bytes=config.prefix_bytes,
        prefill_tokens=config.prefill_tokens,
        lookup_tokens=config.lookup_tokens,
        encoders=any(model.provider == "local" and model.type not in ("chat", "prediction") for model in house.models),
        encode_tokens=config.encode_tokens,
        encode_queue=config.encode_queue,
        coalesce_s=config.coalesce_ms / 1000,
    )


async def _prepare(adapters: Adapters, registry: SqlRegistry, config: AdaptersConfig, chosen: Conduct) -> None:
    """Load and register what is wanted from the start, and then what changes."""
    if chosen.warm:
        await _warm(adapters)
    if not config.library:
        return
    library = Library(
        Path(config.library),
        adapters,
        registry,
        watched=chosen.hot_reload,
        reseal=not config.require_signature,
    )
    await library.register_all()
    while chosen.hot_reload:
        await asyncio.sleep(LOOK_EVERY_S)
        await library.turn()


async def _warm(adapters: Adapters) -> None:
    """Load; a base that is refused stops neither the others nor the room."""
    for failure in await adapters.warm():
        log.error("not warmed", code=failure.code, error=failure.message)


async def _tend(adapters: Adapters) -> None:
    while True:
        await adapters.preloading.rest(TEND_EVERY_S)
        try:
            for ahead in await adapters.tend():
                log.debug("loaded ahead", adapter=ahead.model, resident=ahead.resident, reason=ahead.reason)
        except CatenaError as error:
            # The engine is away for a moment; the next turn looks again.
            log.warning("not tended", code=error.code, error=error.message)


async def _look_for_updates(updates: Updates, source: Source, world: World) -> None:
    """Ask a registry from time to time; the first time soon, and never all replicas at once."""
    if not source.every_s:
        return
    wait_s, failing = world.rng.uniform(0.0, min(FIRST_LOOK_S, source.every_s)), ""
    while True:
        await asyncio.sleep(wait_s)
        wait_s = source.every_s * world.rng.uniform(0.9, 1.1)
        error = await _look_once(updates, source)
        failed = error.code if error is not None else ""
        if error is not None and failed != failing:
            # Once, until it is another failure or all was well in between.
            log.warning("registry failed", registry=source.name, code=failed, error=error.message)
        failing = failed


async def _look_once(updates: Updates, source: Source) -> CatenaError | None:
    """Look through a registry; the last failure, if any."""
    failure = None
    try:
        async with aclosing(updates.look_at(source)) as told:
            async for one in told:
                if isinstance(one, Finding) and one.state != "current":
                    model = f"{one.base}@{one.name}:{one.version}"
                    log.info("update", registry=source.name, adapter=model, state=one.state, reason=one.reason)
                elif isinstance(one, Trouble):
                    failure = one.error
    except CatenaError as error:
        # The database is away for a moment; the next look asks again.
        return error
    return failure


async def _keep_gauge(adapters: Adapters, names: SqlNames, world: World) -> None:
    gauge, residency = LoraGauge(), adapters.residency
    while True:
        try:
            told = await names.of_models()
        except CatenaError as error:
            log.warning("names not read", error=error.message)
        else:
            now_s = world.clock.now()
            gauge.mirror(residency.residents(), told, max_lora=residency.device.budget.count, now_s=now_s)
        await asyncio.sleep(BOOKS_EVERY_S)


async def _keep_tiers(adapters: Adapters, figures: Figures) -> None:
    while True:
        try:
            figures.tiers(await adapters.tiers())
        except (CatenaError, OSError) as error:
            # A folder that goes while it is measured; the next turn looks again.
            log.warning("tiers not read", error=str(error))
        await asyncio.sleep(TIERS_EVERY_S)


async def _keep_books(adapters: Adapters, engine: ProcessEngine | RemoteEngine, figures: Figures) -> None:
    while True:
        await asyncio.sleep(BOOKS_EVERY_S)
        try:
            await adapters.write_books()
            figures.loads(adapters.residency)
            if engine.connected:
                figures.engine(await engine.counters(), adapters.pressure)
        except CatenaError as error:
            # The database or the engine is away for a moment; what was counted is kept for the next time.
            log.warning("books not written", error=error.message)
