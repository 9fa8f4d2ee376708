"""Plans to protobuf and back, for the handlers of the rooms that exchange them. Never imported by a core."""

from dataclasses import fields

from catena.api.types.v1 import types_pb2
from catena.kit.errors import Invalid
from catena.plan.model import PLAIN, Interval, Plan, Prediction, Role, Settings, Shape, Stage

SHAPES = {shape: types_pb2.Shape.Value(f"SHAPE_{shape.name}") for shape in Shape}
ROLES = {role: types_pb2.Role.Value(f"ROLE_{role.name}") for role in Role}
SHAPE_OF = {number: shape for shape, number in SHAPES.items()}
ROLE_OF = {number: role for role, number in ROLES.items()}


def plan_to_proto(plan: Plan) -> types_pb2.Plan:
    """The message that says the same."""
    return types_pb2.Plan(
        id=plan.id,
        shape=SHAPES[plan.shape],
        stages=[stage_to_proto(stage) for stage in plan.stages],
        settings=_PLAIN if plan.settings is PLAIN else settings_to_proto(plan.settings),
        prediction=None if plan.prediction is None else prediction_to_proto(plan.prediction),
        pipeline=plan.pipeline,
        experiment_id=plan.experiment_id,
        experiment_arm=plan.experiment_arm,
        configuration_id=plan.configuration_id,
        domain=plan.domain,
        propensity=plan.propensity,
        features=plan.features,
        strangeness=plan.strangeness,
    )


def plan_from_proto(message: types_pb2.Plan) -> Plan:
    """The plan that the message means; an unset shape is sequential. Raises Invalid when a stage has no model."""
    shape = SHAPE_OF.get(message.shape, Shape.SEQUENTIAL)
    if not message.stages and not message.pipeline:
        raise Invalid("a plan needs stages or a pipeline; give one of them", code="bad_plan")
    return Plan(
        id=message.id,
        shape=shape,
        stages=tuple(stage_from_proto(stage) for stage in message.stages),
        settings=settings_from_proto(message.settings) if message.HasField("settings") else PLAIN,
        prediction=prediction_from_proto(message.prediction) if message.HasField("prediction") else None,
        pipeline=message.pipeline,
        experiment_id=message.experiment_id,
        experiment_arm=message.experiment_arm,
        domain=message.domain,
        propensity=message.propensity,
        features=tuple(message.features),
        strangeness=message.strangeness,
    )


def stage_to_proto(stage: Stage) -> types_pb2.Stage:
    """One stage as a message."""
    return types_pb2.Stage(
        name=stage.name,
        role=ROLES[stage.role],
        model=stage.model,
        instruction=stage.instruction,
        prompt=stage.prompt,
        timeout_s=stage.timeout_s,
        max_attempts=stage.max_attempts,
        optional=stage.optional,
        temperature=stage.temperature,
    )


def stage_from_proto(message: types_pb2.Stage) -> Stage:
    """One stage from its message; an unset role is main."""
    if not message.model:
        raise Invalid(f"stage {message.name!r} names no model; set stages[].model", code="bad_plan")
    role = ROLE_OF.get(message.role, Role.MAIN)
    return Stage(
        name=message.name or role,
        role=role,
        model=message.model,
        instruction=message.instruction,
        prompt=message.prompt,
        timeout_s=message.timeout_s,
        max_attempts=message.max_attempts,
        optional=message.optional,
        temperature=message.temperature if message.HasField("temperature") else None,
    )


def settings_to_proto(settings: Settings) -> types_pb2.PlanSettings:
    """Settings as a message."""
    return types_pb2.PlanSettings(**{name: getattr(settings, name) for name in _NAMES})


def settings_from_proto(message: types_pb2.PlanSettings) -> Settings:
    """Settings from their message, with the defaults that the proto gives to zero and empty."""
    if message == _PLAIN:
        return PLAIN
    return Settings(
        threshold=message.threshold,
        min_chars=message.min_chars,
        checks=tuple(message.checks) or PLAIN.checks,
        refusals=tuple(message.refusals),
        vote=message.vote or "majority",
        weights=dict(message.weights),
        draft_tokens=message.draft_tokens or 5,
        acceptance_threshold=message.acceptance_threshold or 0.8,
        max_searches=message.max_searches or 3,
        n_results=message.n_results or 3,
        collection=message.collection,
        result_format=message.result_format or "{text}",
        samples=message.samples or 3,
        answer=message.answer or "auto",
        context_tag=message.context_tag or "context",
        scorer=tuple(message.scorer),
    )


def prediction_to_proto(prediction: Prediction) -> types_pb2.Prediction:
    """A prediction as a message."""

    def interval(value: Interval) -> types_pb2.Interval:
        return types_pb2.Interval(mean=value.mean, low=value.low, high=value.high)

    return types_pb2.Prediction(
        quality=interval(prediction.quality),
        cost_usd=interval(prediction.cost_usd),
        latency_ms=interval(prediction.latency_ms),
    )


def prediction_from_proto(message: types_pb2.Prediction) -> Prediction:
    """A prediction from its message."""

    def interval(value: types_pb2.Interval) -> Interval:
        return Interval(value.mean, value.low, value.high)

    return Prediction(
        quality=interval(message.quality),
        cost_usd=interval(message.cost_usd),
        latency_ms=interval(message.latency_ms),
    )


_NAMES = tuple(part.name for part in fields(Settings))
_PLAIN = settings_to_proto(PLAIN)
