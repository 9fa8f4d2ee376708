"""The life of an errand: cache, retrieval, strategy or pipeline, scores, record."""

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from catena.executor.core import remembering as memo
from catena.executor.core.actions import Decision, Lookup
from catena.executor.core.admission import Errand
from catena.executor.core.chat import NOTHING_USED, ChatRequest, Choice, Message, as_deltas
from catena.executor.core.driving import drive, look_up
from catena.executor.core.events import Finished, Record, StageResult
from catena.executor.core.execution import Emit, Execution
from catena.executor.core.parts import Parts, facts
from catena.executor.core.pipelining import as_answer
from catena.executor.core.ports import Journal, NoJournal
from catena.executor.core.prompts import with_context, with_features
from catena.executor.core.texts import masked, masked_turns
from catena.executor.core.verifiers import judge
from catena.kit.errors import CatenaError, Invalid
from catena.plan.model import Role, models_of

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
            decision = await _decide(parts, errand, run)
            if errand.stream and not decision.streamed:
                for delta in as_deltas(decision.choices):
                    await emit(delta)
            return _finished(parts, errand, run, decision, execution_id, started_s)

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
    return Execution(
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
        sleep=parts.sleep,
    )


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
        request = await _featured(parts, request, errand.context.feature_vector)
    collection = memo.collection_of(errand)
    if not collection:
        return request
    settings = errand.plan.settings
    words = next((turn.content for turn in reversed(request.messages) if turn.role == "user"), request.prompt)
    asked = Lookup(
        query=words, collection=collection, n_results=settings.n_results, result_format=settings.result_format
    )
    return with_context(request, await look_up(run, asked))


async def _featured(parts: Parts, request: ChatRequest, named: str) -> ChatRequest:
    pieces = named.split("/")
    if len(pieces) != 3 or not all(pieces):
        raise Invalid(f"feature vector {named!r}; write entity_type/entity_id/group", code="bad_feature_vector")
    kind, entity, group = pieces
    found = await parts.features.read(kind, entity, group, ())
    values: Mapping[str, Any] = found.get("values", {})
    return with_features(request, f"{kind} {entity}", values)


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


async def _nobody(_event: object) -> None:
    """Nobody listens."""


def _free(errand: Errand, before: Finished, execution_id: str) -> Finished:
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
    )


def _remember(parts: Parts, errand: Errand, finished: Finished) -> None:
    models = sorted({*models_of([errand.plan]), finished.model})
    if errand.request_id:
        parts.cache.put(memo.request_key(errand.tenant, errand.request_id), finished, models)
    if not errand.no_cache and memo.repeatable(errand):
        parts.cache.put(memo.cache_key(errand), finished, models)
