"""Runs, records, pipelines, models: messages to the core's types and back; `app` hands some of it to drivers."""

from collections.abc import Mapping
from typing import TypeVar, get_args

from catena.api.adapters.v1 import adapters_pb2
from catena.api.events.v1 import events_pb2
from catena.api.executor.v1 import executor_pb2 as pb
from catena.api.types.v1 import types_pb2
from catena.executor.core.background import RunEnd, StoredRun
from catena.executor.core.catalogue import Kind, Model, Status
from catena.executor.core.chat import Delta
from catena.executor.core.events import Finished, Record, RunEvent, Saved, StageResult, StageStarted
from catena.executor.core.figures import PipelineFigures
from catena.executor.core.ports import Ask, Ended, Piece
from catena.executor.core.steps import Pipeline, Predicted, Step
from catena.executor.handlers import chat
from catena.executor.handlers.values import plain, plain_struct, to_struct, to_value
from catena.kit.errors import Invalid
from catena.plan.wire import ROLES, plan_to_proto


def generate_request(ask: Ask) -> adapters_pb2.GenerateRequest:
    """What the adapters room is asked."""
    return adapters_pb2.GenerateRequest(
        model=ask.model.upstream,
        request=chat.chat_to(ask.request),
        draft_model=ask.draft_model,
        draft_tokens=ask.draft_tokens,
        context=chat.context_to(ask.context),
    )


def piece_from(message: adapters_pb2.GenerateResponse) -> Piece:
    """What the adapters room answers; a least probability of 0 means that it measured none."""
    deltas = tuple(chat.delta_from(delta) for delta in message.deltas)
    if not message.HasField("done"):
        return Piece(deltas=deltas)
    done = message.done
    ended = Ended(
        usage=chat.usage_from(done.usage),
        resolved_model=done.resolved_model,
        confidence=done.min_probability or None,
        drafted_tokens=done.drafted_tokens,
        accepted_tokens=done.accepted_tokens,
        draft_usage=chat.usage_from(done.draft_usage),
        remark=done.reason,
        load_ms=done.load_ms,
    )
    return Piece(deltas=deltas, ended=ended)


def run_event_to(event: RunEvent) -> pb.RunResponse:
    """Something that happened."""
    match event:
        case Delta():
            return pb.RunResponse(delta=chat.delta_to(event))
        case StageStarted():
            started = pb.StageStarted(name=event.name, model=event.model, attempt=event.attempt)
            return pb.RunResponse(stage_started=started)
        case StageResult():
            return pb.RunResponse(stage_finished=stage_to(event))
        case Finished():
            return pb.RunResponse(finished=finished_to(event))


FIGURES = (
    "name",
    "model",
    "resolved_model",
    "duration_ms",
    "first_token_ms",
    "cost_usd",
    "outcome",
    "attempt",
    "confidence",
    "accepted_tokens",
    "drafted_tokens",
    "error_code",
    "reason",
    "answer_digest",
    "answer_features",
    "load_ms",
)


def stage_to(stage: StageResult) -> types_pb2.StageResult:
    """What one attempt did."""
    figures = {name: getattr(stage, name) for name in FIGURES}
    return types_pb2.StageResult(role=ROLES[stage.role], usage=chat.usage_to(stage.usage), **figures)


def finished_to(finished: Finished) -> pb.Finished:
    """How a run ended."""
    return pb.Finished(
        execution_id=finished.execution_id,
        choices=[chat.choice_to(choice) for choice in finished.choices],
        usage=chat.usage_to(finished.usage),
        cost_usd=finished.cost_usd,
        duration_ms=finished.duration_ms,
        stages=[stage_to(stage) for stage in finished.stages],
        model=finished.model,
        cached=finished.cached,
        plan=plan_to_proto(finished.plan),
        scores=[chat.score_to(score) for score in finished.scores],
        queries=finished.queries,
        trace=finished.trace,
        lossy=finished.lossy,
        saved=saved_to(finished.saved),
    )


def saved_to(saved: Saved | None) -> pb.Saved | None:
    """What a cache spared."""
    if saved is None:
        return None
    return pb.Saved(
        usage=chat.usage_to(saved.usage),
        cost_usd=saved.cost_usd,
        execution_id=saved.execution_id,
        similarity=saved.similarity,
    )


def completed_event(record: Record) -> events_pb2.ExecutionCompleted:
    """The event of an execution: ids and figures, no instruction, no label, no text."""
    plan = plan_to_proto(record.plan)
    for stage in plan.stages:
        stage.instruction = stage.prompt = ""
    context = chat.context_to(record.context)
    context.metadata.clear()
    return events_pb2.ExecutionCompleted(
        execution_id=record.id,
        created_s=record.created_s,
        plan=plan,
        context=context,
        stages=[stage_to(stage) for stage in record.stages],
        usage=chat.usage_to(record.usage),
        cost_usd=record.cost_usd,
        duration_ms=record.duration_ms,
        outcome=record.outcome,
        error_code=record.error_code,
        scores=[chat.score_to(score) for score in record.scores],
        model=record.model,
        cached=record.cached,
    )


def run_submitted_event(run_id: str) -> events_pb2.RunSubmitted:
    """The event of a background run that waits."""
    return events_pb2.RunSubmitted(run_id=run_id)


def run_finished_event(run_id: str, end: RunEnd) -> events_pb2.RunFinished:
    """The event of a background run's end."""
    execution_id = end.record.id if end.record else ""
    return events_pb2.RunFinished(run_id=run_id, state=end.state, execution_id=execution_id, payer=end.payer)


def record_to(record: Record) -> pb.Execution:
    """An execution as kept."""
    return pb.Execution(
        id=record.id,
        created_s=record.created_s,
        plan=plan_to_proto(record.plan),
        context=chat.context_to(record.context),
        stages=[stage_to(stage) for stage in record.stages],
        usage=chat.usage_to(record.usage),
        cost_usd=record.cost_usd,
        duration_ms=record.duration_ms,
        outcome=record.outcome,
        error_code=record.error_code,
        scores=[chat.score_to(score) for score in record.scores],
        prompt=[chat.turn_to(turn) for turn in record.prompt],
        answer=record.answer,
        trace_id=record.trace_id,
    )


def stored_run_to(run: StoredRun) -> pb.Run:
    """A background run as it stands."""
    return pb.Run(
        id=run.id,
        state=run.state,
        created_s=run.created_s,
        finished_s=run.finished_s,
        stages=[stage_to(stage) for stage in run.stages],
        result=None if run.result is None else finished_to(run.result),
        error=run.error,
    )


def model_from(message: pb.Model) -> Model:
    """A catalogue entry. Raises Invalid for a type or status that there is not."""
    return Model(
        name=message.name,
        provider=message.provider or "local",
        type=_one_of(TYPES, message.type or "chat", "type"),
        price_input=message.price_input,
        price_output=message.price_output,
        context_tokens=message.context_tokens,
        capabilities=tuple(message.capabilities),
        base_url=message.base_url,
        upstream_name=message.upstream_name,
        status=_one_of(STATUSES, message.status or "active", "status"),
        api_key_env=message.api_key_env,
        draft_for=tuple(message.draft_for),
        price_cached_input=message.price_cached_input if message.HasField("price_cached_input") else None,
        price_cache_write=message.price_cache_write if message.HasField("price_cache_write") else None,
        price_reasoning=message.price_reasoning if message.HasField("price_reasoning") else None,
        version=message.version,
        fallbacks=tuple(message.fallbacks),
        requests_per_minute=message.requests_per_minute,
        tokens_per_minute=message.tokens_per_minute,
        at_once=message.at_once,
    )


Word = TypeVar("Word", bound=str)
TYPES: Mapping[str, Kind] = {kind: kind for kind in get_args(Kind)}
STATUSES: Mapping[str, Status] = {"active": "active", "disabled": "disabled"}


def _one_of(words: Mapping[str, Word], word: str, what: str) -> Word:
    if word not in words:
        raise Invalid(f"model {what} {word!r}; use one of {', '.join(words)}", code="bad_model")
    return words[word]


def model_to(model: Model) -> pb.Model:
    """A catalogue entry as a message."""
    return pb.Model(
        name=model.name,
        provider=model.provider,
        type=model.type,
        price_input=model.price_input,
        price_output=model.price_output,
        context_tokens=model.context_tokens,
        capabilities=model.capabilities,
        base_url=model.base_url,
        upstream_name=model.upstream_name,
        status=model.status,
        api_key_env=model.api_key_env,
        draft_for=model.draft_for,
        price_cached_input=model.price_cached_input,
        price_cache_write=model.price_cache_write,
        price_reasoning=model.price_reasoning,
        version=model.version,
        fallbacks=model.fallbacks,
        requests_per_minute=model.requests_per_minute,
        tokens_per_minute=model.tokens_per_minute,
        at_once=model.at_once,
        calls=model.calls,
        parent=model.parent,
        problem=model.problem,
    )


def pipeline_from(message: pb.Pipeline) -> Pipeline:
    """A pipeline to be checked and stored."""
    steps = tuple(
        Step(
            name=step.name,
            type=step.type,
            config=plain_struct(step.config),
            on_error=step.on_error or "fail",
            default_output=plain(step.default_output),
            timeout_s=step.timeout_s,
        )
        for step in message.steps
    )
    return Pipeline(name=message.name, steps=steps, description=message.description)


def pipeline_to(pipeline: Pipeline) -> pb.Pipeline:
    """A pipeline as stored."""
    steps = [
        pb.Step(
            name=step.name,
            type=step.type,
            config=to_struct(step.config),
            on_error=step.on_error,
            default_output=to_value(step.default_output),
            timeout_s=step.timeout_s,
        )
        for step in pipeline.steps
    ]
    return pb.Pipeline(
        name=pipeline.name,
        version=pipeline.version,
        steps=steps,
        description=pipeline.description,
        created_s=pipeline.created_s,
    )


def predicted_to(predicted: Predicted) -> pb.PredictResponse:
    """An output."""
    return pb.PredictResponse(
        result=to_value(predicted.result),
        duration_ms=predicted.duration_ms,
        steps=[
            pb.StepResult(name=step.name, output=to_value(step.output), duration_ms=step.duration_ms, error=step.error)
            for step in predicted.steps
        ],
        cached=predicted.cached,
        cost_usd=predicted.cost_usd,
        usage=chat.usage_to(predicted.usage),
        execution_id=predicted.execution_id,
        saved=saved_to(predicted.saved),
    )


def figures_to(figures: PipelineFigures) -> pb.PipelineMetrics:
    """Figures of a pipeline or shape."""
    return pb.PipelineMetrics(
        name=figures.name,
        executions=figures.executions,
        successes=figures.successes,
        cost_usd=figures.cost_usd,
        stages=[
            pb.StageMetrics(
                name=stage.name,
                calls=stage.calls,
                mean_duration_ms=stage.mean_duration_ms,
                total_tokens=stage.total_tokens,
            )
            for stage in figures.stages
        ],
    )
