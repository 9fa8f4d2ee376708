"""Where the executor's parts meet."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import AsyncExitStack, aclosing, asynccontextmanager
from functools import partial

from catena.api.adapters.v1 import adapters_pb2_grpc
from catena.api.events.v1 import events_pb2
from catena.api.executor.v1.executor_pb2_grpc import add_ExecutorServiceServicer_to_server
from catena.api.features.v1 import features_pb2_grpc
from catena.api.memory.v1 import memory_pb2_grpc
from catena.executor.config import ExecutorConfig
from catena.executor.core.admission import check_drafting
from catena.executor.core.attempts import Limits
from catena.executor.core.background import Pace, work_off
from catena.executor.core.breaker import BreakerLimits
from catena.executor.core.catalogue import LOCAL, Model, check_fallbacks, problem_of
from catena.executor.core.executor import Executor
from catena.executor.core.hedging import HedgeLimits
from catena.executor.core.parts import Parts, Settings
from catena.executor.core.pipelines.examples import EXAMPLES
from catena.executor.core.ports import Provider
from catena.executor.core.routes import Routes
from catena.executor.core.steady import Care, SteadyEmbedding, SteadyPredictor
from catena.executor.core.verifiers import VERIFIERS
from catena.executor.drivers.anthropic import AnthropicProvider
from catena.executor.drivers.cache import Bounds, LruCache, MeaningCache
from catena.executor.drivers.catalogue import SqlCatalogue
from catena.executor.drivers.embedding import LocalEmbedding
from catena.executor.drivers.encoders import LocalEncoders
from catena.executor.drivers.following import follow_models
from catena.executor.drivers.gemini import GeminiProvider
from catena.executor.drivers.http import Door, open_session
from catena.executor.drivers.huggingface import HuggingFaceProvider
from catena.executor.drivers.local import LocalProvider, list_served
from catena.executor.drivers.lookups import RemoteFeatures, RemoteMemory
from catena.executor.drivers.observed import Observed, observe_routes
from catena.executor.drivers.openai import OpenAiProvider, VerifyingProvider
from catena.executor.drivers.pipelines import SqlPipelines
from catena.executor.drivers.plugins import able, load_providers
from catena.executor.drivers.records import SqlRecords, forget_daily
from catena.executor.drivers.runs import Announcements, SqlRuns
from catena.executor.drivers.tables import METADATA, MIGRATIONS
from catena.executor.drivers.templating import SandboxedTemplates
from catena.executor.drivers.tgi import TgiProvider
from catena.executor.handlers import ExecutorHandlers, wire
from catena.executor.handlers.values import plain
from catena.kit.chassis import Chassis, open_chassis
from catena.kit.clock import Clock, World
from catena.kit.config import House, ModelConfig, secret
from catena.kit.errors import Invalid
from catena.kit.event import Event
from catena.plan.build import ShapeConfig, build, read_shapes
from catena.plan.model import Role, Shape

SERVICE = "catena.api.executor.v1.ExecutorService"
FORGET_EVERY_S = 3600.0
MEGABYTE = 1 << 20
OF_RUNS = Announcements(submitted=wire.run_submitted_event, finished=wire.run_finished_event)


@asynccontextmanager
async def open_executor(house: House, config: ExecutorConfig, world: World) -> AsyncIterator[None]:
    """The executor, serving at its address until the block ends."""
    async with (
        open_chassis("executor", house, world, metadata=METADATA, migrations=MIGRATIONS) as chassis,
        AsyncExitStack() as stack,
    ):
        adapters = adapters_pb2_grpc.AdaptersServiceStub(await chassis.dial("adapters"))
        records = SqlRecords(chassis.store, world, event=wire.completed_event)
        cache, semantic = caches(config, world.clock)
        session = await stack.enter_async_context(open_session(connections=config.connections))
        door = Door(session, secret=secret, clock=world.clock, pace_s=config.coalesce_ms / 1000)
        outside = {**outside_providers(door, world.clock), **load_providers()}
        local = LocalProvider(adapters, request=wire.generate_request, piece=wire.piece_from)
        embedding = LocalEmbedding(house.embedding_folder())
        stack.callback(embedding.close)
        embed, predict = able(outside, "embed"), able(outside, "predict")
        care = Care(routes=routes(config), attempts=config.attempts, world=world)
        providers: dict[str, Provider] = {"local": local, **outside}
        bases = [model.name for model in house.models if model.provider == LOCAL]
        encoders = LocalEncoders(adapters, bases=bases, house=embedding)
        problem = partial(problem_of, providers=providers.keys(), secret=secret)
        catalogue = SqlCatalogue(
            chassis.store, lambda: list_served(adapters), lambda model, bases: problem(model, bases=bases), world.clock
        )
        await catalogue.seed(seeds(house.models, config))
        templates = await stack.enter_async_context(aclosing(SandboxedTemplates()))
        pipelines = SqlPipelines(chassis.store, world.clock)
        await pipelines.seed(EXAMPLES if config.examples else ())
        memory, features = await _lookups(chassis, config.lookup_timeout_s)
        parts = Parts(
            catalogue=catalogue,
            providers={
                name: Observed(provider, agent_types=house.telemetry.agent_types)
                for name, provider in providers.items()
            },
            embeddings={"local": encoders, **{name: SteadyEmbedding(one, care) for name, one in embed.items()}},
            predictors={"local": encoders, **{name: SteadyPredictor(one, care) for name, one in predict.items()}},
            memory=memory,
            features=features,
            pipelines=pipelines,
            records=records,
            templates=templates,
            cache=cache,
            semantic=semantic,
            world=world,
            settings=settings(config),
            shapes=sound(read_shapes(house.pipelines), catalogue.models),
            routes=care.routes,
        )
        runs = SqlRuns(chassis.store, chassis.outbox, records, world, events=OF_RUNS)
        chassis.watch(["executor.run.*"], runs.wake)
        core = Executor(parts=parts, runs=runs, archive=records)
        _background(chassis, config, catalogue, records, cache, *([semantic] if semantic else []))
        chassis.background(observe_routes(parts.routes, world.clock), "routes")
        chassis.background(follow_models(house, lambda models: catalogue.seed(seeds(models, config))), "models")
        stack.push_async_callback(_ended, asyncio.create_task(work_off(parts, runs, pace(config))))
        handlers = ExecutorHandlers(core)
        async with chassis.serve(partial(add_ExecutorServiceServicer_to_server, handlers), names=[SERVICE]):
            yield


async def _lookups(chassis: Chassis, timeout_s: float) -> tuple[RemoteMemory, RemoteFeatures]:
    memory = memory_pb2_grpc.MemoryServiceStub(await chassis.dial("memory"))
    features = features_pb2_grpc.FeaturesServiceStub(await chassis.dial("features"))
    return RemoteMemory(memory, timeout_s=timeout_s), RemoteFeatures(features, plain=plain, timeout_s=timeout_s)


def outside_providers(door: Door, clock: Clock) -> dict[str, Provider]:
    """The providers over HTTP that come with the house, by the name that models have them under."""
    return {
        "openai": VerifyingProvider(OpenAiProvider(door)),
        "anthropic": AnthropicProvider(door),
        "gemini": GeminiProvider(door),
        "huggingface": HuggingFaceProvider(door, clock),
        "tgi": TgiProvider(door),
    }


def _background(
    chassis: Chassis,
    config: ExecutorConfig,
    catalogue: SqlCatalogue,
    records: SqlRecords,
    *forgetful: LruCache | MeaningCache,
) -> None:
    chassis.background(records.run(), "records")
    chassis.background(catalogue.run(), "catalogue")
    forgetting = forget_daily(
        records, records_days=config.records_days, texts_days=config.texts_days, every_s=FORGET_EVERY_S
    )
    chassis.background(forgetting, "retention")
    # Scores may come in any order.
    chassis.consume("executor-feedback", ["learner.feedback.recorded"], _scoring(records), in_flight=16)
    chassis.watch(["adapters.adapter.*"], _forgetting(catalogue, forgetful))


async def _ended(task: asyncio.Task[None]) -> None:
    """End it before the providers close, so that what it runs is put down, not failed."""
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


def _scoring(records: SqlRecords) -> Callable[[Event], Awaitable[None]]:
    async def score(event: Event) -> None:
        told = events_pb2.FeedbackRecorded.FromString(event.data)
        if told.HasField("score"):
            await records.score(event.id, event.tenant, told.execution_id, told.score)

    return score


def _forgetting(
    catalogue: SqlCatalogue, caches: Sequence[LruCache | MeaningCache]
) -> Callable[[Event], Awaitable[None]]:
    """An adapter that came, moved or went changes the list, and makes its remembered answers stale."""

    async def forget(event: Event) -> None:
        catalogue.forget_adapters()
        if event.type == "adapters.adapter.aliased":
            moved = events_pb2.AdapterAliased.FromString(event.data)
            stale = f"{moved.base}@{moved.name}"
        elif event.type == "adapters.adapter.withdrawn":
            stale = events_pb2.AdapterWithdrawn.FromString(event.data).model.partition(":")[0]
        else:
            return
        for cache in caches:
            cache.forget(stale)

    return forget


def caches(config: ExecutorConfig, clock: Clock) -> tuple[LruCache, MeaningCache | None]:
    """The exact cache, and the one by meaning where a threshold is set. Raises Invalid (`bad_config`)."""
    told, alike = config.cache, config.cache.semantic
    exact = LruCache(size=told.size, ttl_s=told.ttl_s, clock=clock, most_bytes=int(told.megabytes * MEGABYTE))
    if not alike.threshold:
        return exact, None
    if not 0.0 < alike.threshold <= 1.0:
        wanted = f"cache.semantic.threshold {alike.threshold:g} is no cosine; give 0 (off) to 1"
        raise Invalid(wanted, code="bad_config")
    bounds = Bounds(size=alike.size, most_bytes=int(alike.megabytes * MEGABYTE), ttl_s=alike.ttl_s)
    return exact, MeaningCache(threshold=alike.threshold, bounds=bounds, clock=clock)


def settings(config: ExecutorConfig) -> Settings:
    """The core's settings. Raises Invalid for a verifier that there is not."""
    for name in config.verifiers:
        if name not in VERIFIERS:
            raise Invalid(f"unknown verifier {name!r}; use some of {', '.join(VERIFIERS)}", code="bad_config")
    wanted = config.timeouts_s
    limits = Limits(
        timeouts_s={role: getattr(wanted, role.value) for role in Role},
        run_s=config.run_s,
        attempts=config.attempts,
        critical_attempts=config.critical_attempts,
        optional_attempts=config.optional_attempts,
        first_word_share=config.first_word_share,
        stall_s=config.stall_s,
    )
    everybody, tenants = "*" in config.keep_texts, frozenset(config.keep_texts)
    return Settings(
        limits=limits,
        window_s=config.coalesce_ms / 1000,
        keeps_texts=lambda tenant: everybody or tenant in tenants,
        mask_texts=config.mask_texts,
        verifiers=tuple(config.verifiers),
        embedding_model=config.embedding_model,
    )


def routes(config: ExecutorConfig) -> Routes:
    """How outside models that fail, lag or refuse are treated. Raises Invalid for limits that make no sense."""
    breaker, hedging = config.breaker, config.hedging
    if breaker.failures < 1 or not 0 < breaker.open_s <= breaker.longest_s:
        raise Invalid(f"executor.breaker {breaker}: failures >= 1, 0 < open_s <= longest_s", code="bad_config")
    if not 0 <= hedging.share <= 1 or not 0 < hedging.quantile < 1 or hedging.burst < 1:
        raise Invalid(f"executor.hedging {hedging}: share and quantile within 0 and 1, burst >= 1", code="bad_config")
    return Routes(
        breaking=BreakerLimits(failures=breaker.failures, open_s=breaker.open_s, longest_s=breaker.longest_s),
        hedging=HedgeLimits(share=hedging.share, burst=hedging.burst, quantile=hedging.quantile),
    )


def pace(config: ExecutorConfig) -> Pace:
    """How background runs are worked off."""
    return Pace(at_once=config.runs.at_once, lease_s=config.runs.lease_s, longest_s=config.runs.longest_s)


def sound(shapes: Mapping[Shape, ShapeConfig], models: Mapping[str, Model]) -> Mapping[Shape, ShapeConfig]:
    """The same shapes. Raises Invalid where what they say to a draft would never be read."""
    speculation = shapes.get(Shape.SPECULATIVE)
    if speculation is not None and speculation.draft and speculation.main:
        check_drafting(build(Shape.SPECULATIVE, speculation), models)
    return shapes


def seeds(models: Sequence[ModelConfig], config: ExecutorConfig) -> Sequence[Model]:
    """The configured models, and the local embedding model. Raises Invalid for a fallback that is none of them."""
    embedding = Model(name=config.embedding_model, type="embedding")
    configured = [model_of(model) for model in models]
    named = {model.name for model in configured}
    for model in configured:
        check_fallbacks(model, named)
    return configured if embedding.name in named else [*configured, embedding]


def model_of(model: ModelConfig) -> Model:
    """A configured model as a catalogue entry."""
    return Model(
        name=model.name,
        provider=model.provider,
        type=model.type,
        price_input=model.price.input,
        price_output=model.price.output,
        context_tokens=model.context_tokens,
        capabilities=capabilities(model),
        base_url=model.base_url,
        upstream_name=model.upstream_name,
        api_key_env=model.api_key_env,
        draft_for=tuple(model.draft_for),
        price_cached_input=model.price.cached,
        price_cache_write=model.price.cache_write,
        price_reasoning=model.price.reasoning,
        version=model.version,
        fallbacks=tuple(model.fallbacks),
        requests_per_minute=model.rate.requests_per_minute,
        tokens_per_minute=model.rate.tokens_per_minute,
        at_once=model.rate.at_once,
    )


def capabilities(model: ModelConfig) -> tuple[str, ...]:
    """What a model can do beside writing text; nothing, where it writes none and nothing is configured."""
    if model.capabilities is not None:
        return tuple(model.capabilities)
    if model.type != "chat":
        return ()
    return ("tools", "json", "logprobs", "stream") if model.provider == LOCAL else ("tools", "vision", "json", "stream")
