"""What is told of how an answer came about: the field `catena` of the body, and the same in short as headers."""

from typing import Any

from catena.api.executor.v1 import executor_pb2
from catena.api.types.v1 import types_pb2

Json = dict[str, Any]
OF_PLAN = (
    "id",
    "pipeline",
    "experiment_id",
    "experiment_arm",
    "configuration_id",
    "domain",
    "propensity",
    "strangeness",
)
OF_CALL = ("name", "model", "instruction", "timeout_s", "max_attempts", "optional", "prompt")
OF_STAGE = tuple(
    field.name
    for field in types_pb2.StageResult.DESCRIPTOR.fields
    if field.name not in ("role", "usage", "answer_features")
)
OF_USAGE = tuple(field.name for field in types_pb2.Usage.DESCRIPTOR.fields)
BOUNDS = ("quality", "cost_usd", "latency_ms")


def told_json(finished: executor_pb2.Finished, trace: str) -> Json:
    """The field `catena`: plan, stages, time, tokens, cost, experiment, trace.

    Written out: protobuf's own JSON takes five times as long, for every answer.
    """
    return {
        "execution_id": finished.execution_id,
        "plan": plan_json(finished.plan),
        "stages": [stage_json(stage) for stage in finished.stages],
        "model": finished.model,
        "duration_ms": round(finished.duration_ms, 3),
        "tokens": finished.usage.input_tokens + finished.usage.output_tokens,
        "cost_usd": finished.cost_usd,
        "experiment": {"id": finished.plan.experiment_id, "arm": finished.plan.experiment_arm},
        "cached": finished.cached,
        "saved_usd": finished.saved.cost_usd,
        "lossy": finished.lossy,
        "queries": list(finished.queries),
        "trace_id": trace,
    }


def plan_json(plan: types_pb2.Plan) -> Json:
    """A plan without its settings, and without what it does not say."""
    told = {"shape": shape_name(plan), **_said(plan, OF_PLAN)}
    if plan.stages:
        told["stages"] = [_call_json(stage) for stage in plan.stages]
    if plan.HasField("prediction"):
        told["prediction"] = {name: _interval_json(getattr(plan.prediction, name)) for name in BOUNDS}
    if plan.features:
        told["features"] = list(plan.features)
    return told


def stage_json(stage: types_pb2.StageResult) -> Json:
    """A stage's account, whole."""
    told = {name: getattr(stage, name) for name in OF_STAGE}
    told["role"] = types_pb2.Role.Name(stage.role)
    told["usage"] = {name: getattr(stage.usage, name) for name in OF_USAGE}
    told["answer_features"] = list(stage.answer_features)
    return told


def told_headers(finished: executor_pb2.Finished, trace: str) -> dict[str, str]:
    """The same in short, as headers."""
    return {
        "x-catena-execution-id": finished.execution_id,
        "x-catena-plan": shape_name(finished.plan),
        "x-catena-model": finished.model,
        "x-catena-stages": ",".join(f"{s.name}={s.model}" for s in finished.stages),
        "x-catena-duration-ms": f"{finished.duration_ms:.3f}",
        "x-catena-tokens": str(finished.usage.input_tokens + finished.usage.output_tokens),
        "x-catena-cost-usd": f"{finished.cost_usd:.9f}",
        "x-catena-experiment": "/".join(filter(None, (finished.plan.experiment_id, finished.plan.experiment_arm))),
        "x-catena-trace-id": trace,
    }


def shape_name(plan: types_pb2.Plan) -> str:
    """`cascade`, or `pipeline:<name>`."""
    if plan.pipeline:
        return f"pipeline:{plan.pipeline}"
    return types_pb2.Shape.Name(plan.shape).removeprefix("SHAPE_").lower().replace("_", "-")


def _call_json(stage: types_pb2.Stage) -> Json:
    told = _said(stage, OF_CALL)
    if stage.role:
        told["role"] = types_pb2.Role.Name(stage.role)
    if stage.HasField("temperature"):
        told["temperature"] = stage.temperature
    return told


def _interval_json(interval: types_pb2.Interval) -> Json:
    return {"mean": interval.mean, "low": interval.low, "high": interval.high}


def _said(message: types_pb2.Plan | types_pb2.Stage, names: tuple[str, ...]) -> Json:
    return {name: value for name in names if (value := getattr(message, name))}
