"""The life of an errand: cache, retrieval, strategy or pipeline, scores, record."""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import structlog

from catena.executor.core import remembering as memo
from catena.executor.core.actions import Decision, Lookup
from catena.executor.core.admission import Errand
from catena.executor.core.chat import NOTHING_USED, ChatRequest, Choice, Message, as_deltas
from catena.executor.core.driving import drive, look_up
from catena.executor.core.events import Finished, Record, Saved, StageResult
from catena.executor.core.execution import Emit, Execution, too_late
from catena.executor.core.parts import Parts, facts
from catena.executor.core.pipelining import EMBED, Billing, as_answer, embedded
from catena.executor.core.ports import Journal, NoJournal, Shelved
from catena.executor.core.prompts import with_context, with_features
from catena.executor.core.texts import masked, masked_turns
from catena.executor.core.verifiers import judge
from catena.kit.errors import CatenaError, Invalid, Missing, Unavailable
from catena.plan.model import Role, models_of

ASIDE = Billing(verb=EMBED, role=Role.JUDGE)
"""An embedding that helps to judge or to find answers and gives none itself."""
log = structlog.get_logger()

Work = Callable[[Execution], Awaitable[Finished]]


async def carry_out(parts: Parts, errand: Errand, emit: Emit, journal: Journal, execution_id: str = "") -> Finished:
    """Run the errand and emit all that happens, `Finished` last. The record is written whatever the outcome.

    `execution_id` empty: a new one. Raises the error that ended it.
    """
    execution_id = execution_id or parts.world.new_id()
    finished = _again(parts, errand, execution_id)
    if finished is None:

        async def work(run: Execution) -> Finished:
            run.streams = errand.stream
            started_s = parts.world.clock.monotonic()
            question = await _shelved(parts, errand, run)
            alike = _alike(parts, errand, run, question, execution_id, started_s) if question else None
            if alike is not None:
                for delta in as_deltas(alike.choices) if errand.stream else ():
                    await emit(delta)
                return alike
            decision = await _decide(parts, errand, run)
            if errand.stream and not decision.streamed:
                for delta in as_deltas(decision.choices):
                    await emit(delta)
            made = _finished(parts, errand, run, decision, execution_id, started_s)
            if question is not None and parts.semantic is not None:
                parts.semantic.put(question, made, _models(errand, made))
            return made

        finished = await recorded(parts, errand, execution_id, begin(parts, errand, emit, journal), work)
        _remember(parts, errand, finished)
    elif errand.stream:
        for delta in as_deltas(finished.choices):
            await emit(delta)
    await emit(finished)
    return finished


async def recorded(parts: Parts, errand: Errand, execution_id: str, run: Execution, work: Work) -> Finished:
    """What `work` gives; the execution is written down even if it fails or is cancelled."""
    clock = parts.world.clock
    created_s, started_s = clock.now(), clock.monotonic()
    outcome, code, finished = "failed", "internal", None
    try:
        finished = await work(run)
        outcome, code = "succeeded", ""
        return finished
    except asyncio.CancelledError:
        outcome, code = "cancelled", "cancelled"
        raise
    except CatenaError as error:
        code = error.code
        raise
    finally:
        took_ms = (clock.monotonic() - started_s) * 1000
        ended = Ending(outcome=outcome, code=code, created_s=created_s, duration_ms=took_ms, finished=finished)
        parts.records.add(record_of(parts, errand, run, execution_id, ended))


def begin(parts: Parts, errand: Errand, emit: Emit, journal: Journal) -> Execution:
    """An execution that has to end within the caller's patience and the request's cap."""
    caps = [errand.left_s]
    if errand.context.max_latency_ms:
        caps.append(errand.context.max_latency_ms / 1000)
    run = Execution(
        tenant=errand.tenant,
        context=errand.context,
        due_s=parts.world.clock.monotonic() + min(caps),
        models=parts.models,
        providers=parts.providers,
        memory=parts.memory,
        journal=journal,
        limits=parts.settings.limits,
        paces=parts.paces,
        routes=parts.routes,
        world=parts.world,
        emit=emit,
        render=parts.templates.render,
        any_model=errand.any_model,
        sleep=parts.sleep,
    )

    async def embed(texts: Sequence[str]) -> Sequence[Sequence[float]]:
        return (await embedded(parts, run, "", texts, truncate=True, billing=ASIDE)).vectors

    run.embed = embed
    return run


async def _decide(parts: Parts, errand: Errand, run: Execution) -> Decision:
    if errand.plan.pipeline:
        return await as_answer(parts, errand, run)
    request = await _informed(parts, errand, run)
    known = facts(parts, errand.context.memory_collection)
    strategy = parts.strategies[errand.plan.shape](errand.plan, request, known)
    return await drive(run, strategy)


async def _informed(parts: Parts, errand: Errand, run: Execution) -> ChatRequest:
    """The request with the feature vector and the memory that it, or its plan, asks for."""
    request = errand.request
    if errand.context.feature_vector:
        request = await _featured(parts, request, errand.context.feature_vector, run)
    collection = memo.collection_of(errand)
    if not collection:
        return request
    settings = errand.plan.settings
    words = next((turn.content for turn in reversed(request.messages) if turn.role == "user"), request.prompt)
    asked = Lookup(
        query=words, collection=collection, n_results=settings.n_results, result_format=settings.result_format
    )
    return with_context(request, await look_up(run, asked, "memory"))


async def _featured(parts: Parts, request: ChatRequest, named: str, run: Execution) -> ChatRequest:
    pieces = named.split("/")
    if len(pieces) != 3 or not all(pieces):
        raise Invalid(f"feature vector {named!r}; write entity_type/entity_id/group", code="bad_feature_vector")
    kind, entity, group = pieces

    async def read() -> dict[str, Any]:
        return dict(await parts.features.read(kind, entity, group, ()))

    try:
        async with asyncio.timeout(max(0.0, run.left_s())):
            found = await run.once("features", dict[str, Any], read)
    except TimeoutError:
        raise too_late(run) from None
    return with_features(request, f"{kind} {entity}", found.get("values", {}))


def _finished(
    parts: Parts, errand: Errand, run: Execution, decision: Decision, execution_id: str, started_s: float
) -> Finished:
    return Finished(
        execution_id=execution_id,
        choices=decision.choices,
        usage=run.usage,
        cost_usd=run.spent_usd,
        duration_ms=(parts.world.clock.monotonic() - started_s) * 1000,
        stages=tuple(run.stages),
        model=decision.model,
        plan=errand.plan,
        scores=(*judge(errand.request, decision, parts.verifiers, parts.settings.verifiers), *decision.scores),
        queries=decision.queries,
        trace=decision.trace,
        lossy=decision.lossy,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Ending:
    """How an execution ended."""

    outcome: str
    code: str
    created_s: float
    duration_ms: float
    finished: Finished | None


def record_of(parts: Parts, errand: Errand, run: Execution, execution_id: str, ending: Ending) -> Record:
    """What is kept: figures always, texts only where the tenant asked for it."""
    finished = ending.finished
    choices = finished.choices if finished else ()
    prompt, answer = _texts(parts, errand, choices)
    return Record(
        id=execution_id,
        tenant=errand.tenant,
        created_s=ending.created_s,
        plan=errand.plan,
        context=errand.context,
        stages=tuple(run.stages),
        usage=run.usage,
        cost_usd=run.spent_usd,
        duration_ms=ending.duration_ms,
        outcome=ending.outcome,
        error_code=ending.code,
        scores=finished.scores if finished else (),
        model=finished.model if finished else "",
        cached=finished.cached if finished else False,
        prompt=prompt,
        answer=answer,
    )


def _texts(parts: Parts, errand: Errand, choices: tuple[Choice, ...]) -> tuple[tuple[Message, ...], str]:
    if not parts.settings.keeps_texts(errand.tenant):
        return (), ""
    turns = errand.request.messages or (Message(role="user", content=errand.request.prompt),)
    answer = choices[0].text if choices else ""
    return (masked_turns(turns), masked(answer)) if parts.settings.mask_texts else (turns, answer)


def _again(parts: Parts, errand: Errand, execution_id: str) -> Finished | None:
    """A remembered answer, free of charge; None: it has to be worked out.

    The repeat of a request that names itself is that execution once more; an equal question is a new one.
    """
    if errand.request_id:
        before: Finished | None = parts.cache.get(memo.request_key(errand.tenant, errand.request_id))
        if before is not None:
            return _free(errand, before, before.execution_id)
    if errand.no_cache or not memo.repeatable(errand):
        return None
    found: Finished | None = parts.cache.get(memo.cache_key(errand))
    if found is None:
        return None
    finished = _free(errand, found, execution_id)
    now_s = parts.world.clock.now()
    ending = Ending(outcome="succeeded", code="", created_s=now_s, duration_ms=0.0, finished=finished)
    run = begin(parts, errand, _nobody, NoJournal())
    run.stages.extend(finished.stages)
    parts.records.add(record_of(parts, errand, run, execution_id, ending))
    return finished


async def _shelved(parts: Parts, errand: Errand, run: Execution) -> Shelved | None:
    """Where the question stands in the cache by meaning; None: there is none, or it does not belong there."""
    found = memo.shelved(errand) if parts.semantic is not None and not errand.no_cache else None
    if found is None or run.embed is None:
        return None
    shelf, words = found
    try:
        vectors = await run.embed([words])
    except (Missing, Unavailable) as error:
        log.info("no vectors to find questions by", error=error.message)
        return None
    return Shelved(shelf=shelf, anchors=memo.anchors(words), vector=vectors[0])


def _alike(
    parts: Parts, errand: Errand, run: Execution, question: Shelved, execution_id: str, started_s: float
) -> Finished | None:
    """The answer to a question like this one; it cost no more than finding it."""
    found = parts.semantic.near(question) if parts.semantic is not None else None
    if found is None:
        return None
    before, similarity = found
    free = _free(errand, before, execution_id, similarity)
    run.stages.extend(free.stages)
    took_ms = (parts.world.clock.monotonic() - started_s) * 1000
    return replace(free, stages=tuple(run.stages), usage=run.usage, cost_usd=run.spent_usd, duration_ms=took_ms)


async def _nobody(_event: object) -> None:
    """Nobody listens."""


def _free(errand: Errand, before: Finished, execution_id: str, similarity: float = 0.0) -> Finished:
    """The answer once more, with what it took then as what is saved now."""
    resolved = [stage.resolved_model for stage in before.stages if stage.model == before.model]
    hit = StageResult(
        name="cache",
        role=Role.MAIN,
        model=before.model,
        resolved_model=resolved[-1] if resolved else "",
        outcome="cached",
    )
    return replace(
        before,
        execution_id=execution_id,
        usage=NOTHING_USED,
        cost_usd=0.0,
        duration_ms=0.0,
        stages=(hit,),
        plan=errand.plan,
        cached=True,
        saved=Saved(
            usage=before.usage, cost_usd=before.cost_usd, execution_id=before.execution_id, similarity=similarity
        ),
    )


def _models(errand: Errand, finished: Finished) -> list[str]:
    return sorted({*models_of([errand.plan]), finished.model})


def _remember(parts: Parts, errand: Errand, finished: Finished) -> None:
    models = _models(errand, finished)
    if errand.request_id:
        parts.cache.put(memo.request_key(errand.tenant, errand.request_id), finished, models)
    if not errand.no_cache and memo.repeatable(errand) and not finished.cached:
        parts.cache.put(memo.cache_key(errand), finished, models)
