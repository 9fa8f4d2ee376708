"""Between the router's protos and its core: plain conversions."""

import math
from collections.abc import Iterable, Sequence

from catena.api.events.v1 import events_pb2
from catena.api.router.v1 import router_pb2 as pb
from catena.api.types.v1 import types_pb2
from catena.kit.errors import Invalid
from catena.plan.model import Plan, Role, Shape
from catena.plan.wire import ROLE_OF, SHAPE_OF, plan_from_proto, plan_to_proto
from catena.router.core.ask import AUTO, Ask, task_name
from catena.router.core.choice import Candidate
from catena.router.core.decision import Decision, Found
from catena.router.core.domains import Domain
from catena.router.core.evaluation import Evaluation, Worth
from catena.router.core.experiments import Arm, Experiment
from catena.router.core.features import chars_of
from catena.router.core.observation import Observation, StageOutcome
from catena.router.core.ports import Totals
from catena.router.core.steps import Adjustment, Step

TOO_LONG = "context_length_exceeded"
"""Code of what was longer than its model reads."""


def ask_of(message: pb.RecommendRequest) -> Ask:
    """The request. Raises Invalid when nothing is asked."""
    request, context = message.request, message.context
    turns = [turn.content for turn in request.messages]
    if not turns and not request.prompt:
        raise Invalid("the request has neither messages nor a prompt; send one of them", code="empty_request")
    asked = [turn.content for turn in request.messages if turn.role == "user"] or turns
    text = asked[-1] if asked else request.prompt
    return Ask(
        text=text,
        chars=sum(map(len, turns)) + len(request.prompt),
        turns=max(len(turns), 1),
        structured=bool(
            request.HasField("json_schema") or request.json_schema_text or request.regex or request.choices
        ),
        tools=bool(request.tools),
        model=message.model or AUTO,
        shape=SHAPE_OF.get(message.shape),
        objective=context.objective,
        task=context.task,
        critical=context.critical,
        max_latency_ms=context.max_latency_ms,
        max_cost_usd=context.max_cost_usd,
        max_tokens=request.sampling.max_tokens,
        collection=context.memory_collection,
        who=context.user_id or context.agent_id,
    )


def recommended_to(decision: Decision) -> pb.RecommendResponse:
    """The plan with the domains behind it."""
    return pb.RecommendResponse(
        plan=plan_to_proto(decision.plan),
        domains=scores_to(decision.found),
        confidence=decision.found.confidence,
        model=decision.plan.main_model,
    )


def scores_to(found: Found) -> list[pb.DomainScore]:
    """Every domain's score."""
    return [
        pb.DomainScore(domain=score.domain, probability=score.probability, similarity=score.similarity)
        for score in found.scores
    ]


def candidate_to(candidate: Candidate) -> pb.Candidate:
    """A plan that was weighed."""
    return pb.Candidate(
        plan=plan_to_proto(with_prediction(candidate)),
        utility=candidate.utility,
        rejected=candidate.rejected,
        observations=round(candidate.runs),
    )


def with_prediction(candidate: Candidate) -> Plan:
    """The candidate's plan, saying what is expected of it."""
    plan = candidate.plan
    return Plan(shape=plan.shape, stages=plan.stages, settings=plan.settings, prediction=candidate.prediction)


def observation_from(event: events_pb2.ExecutionCompleted) -> Observation:
    """What an execution's event teaches."""
    plan = plan_of(event)
    return Observation(
        execution_id=event.execution_id,
        time_s=event.created_s,
        configuration_id=event.plan.configuration_id or plan.configuration_id,
        plan=plan,
        domain=task_name(event.plan.domain or event.context.task),
        routed=bool(event.plan.id) or bool(event.context.task),
        chars=chars_of(plan.features),
        stages=stages_from(event.stages),
        cost_usd=event.cost_usd,
        latency_ms=event.duration_ms,
        succeeded=event.outcome == "succeeded",
        cancelled=event.outcome == "cancelled" or event.error_code == TOO_LONG,
        cached=event.cached,
        objective=event.context.objective,
        max_cost_usd=event.context.max_cost_usd,
        max_latency_ms=event.context.max_latency_ms,
    )


def plan_of(event: events_pb2.ExecutionCompleted) -> Plan:
    """The plan that ran; of one that names neither stages nor a pipeline, what the stages tell."""
    if event.plan.stages or event.plan.pipeline:
        return plan_from_proto(event.plan)
    return Plan(shape=SHAPE_OF.get(event.plan.shape, Shape.SEQUENTIAL), pipeline=f"unknown-{event.model}")


def stages_from(results: Iterable[types_pb2.StageResult]) -> tuple[StageOutcome, ...]:
    """One outcome a stage, its attempts and turns added up; how it ended is how its last call ended.

    A call that was too long for its model, and not made, is no failure of the model.
    """
    by_name: dict[str, list[types_pb2.StageResult]] = {}
    for result in results:
        if result.error_code != TOO_LONG:
            by_name.setdefault(result.name, []).append(result)
    return tuple(_stage(calls) for calls in by_name.values())


def _stage(calls: Sequence[types_pb2.StageResult]) -> StageOutcome:
    last = calls[-1]
    return StageOutcome(
        name=last.name,
        role=ROLE_OF.get(last.role, Role.MAIN),
        model=last.model,
        input_tokens=sum(call.usage.input_tokens for call in calls),
        output_tokens=sum(call.usage.output_tokens for call in calls),
        duration_ms=sum(call.duration_ms for call in calls),
        kept=last.outcome in ("accepted", "cached", ""),
        failed=last.outcome in ("failed", "cancelled"),
        confidence=last.confidence,
        digest=last.answer_digest,
        features=tuple(last.answer_features),
        # Of several calls all must tell it: their times are added up.
        first_token_ms=sum(call.first_token_ms for call in calls) if all(c.first_token_ms for c in calls) else 0.0,
        load_ms=sum(call.load_ms for call in calls),
    )


def totals_to(totals: Totals) -> pb.ConfigurationStats:
    """Sums as means."""
    runs, judged = max(totals.executions, 1), max(totals.judged, 1)
    return pb.ConfigurationStats(
        configuration_id=totals.configuration_id,
        domain=totals.domain,
        plan=totals.plan,
        executions=totals.executions,
        judged=totals.judged,
        mean_quality=totals.quality / judged,
        mean_cost_usd=totals.cost_usd / runs,
        mean_latency_ms=totals.latency_ms / runs,
        success_rate=totals.successes / runs,
    )


def domain_from(message: pb.Domain, tenant: str) -> Domain:
    """A domain as put."""
    return Domain(
        name=message.name,
        tenant=tenant,
        examples=tuple(message.examples),
        specialist=message.specialist,
        needs_memory=message.needs_memory,
    )


def domain_to(domain: Domain) -> pb.Domain:
    """A domain as stored."""
    return pb.Domain(
        name=domain.name,
        examples=domain.examples,
        specialist=domain.specialist,
        updated_s=domain.updated_s,
        needs_memory=domain.needs_memory,
        aliases=domain.aliases,
        origin=domain.origin,
    )


def adjustment_to(one: Adjustment) -> pb.Adjustment:
    """A setting that moved."""
    return pb.Adjustment(setting=one.setting, before=one.before, after=one.after, reason=one.reason)


def tuning_to(step: Step) -> pb.Tuning:
    """A step of tuning."""
    return pb.Tuning(
        number=step.number,
        time_s=step.time_s,
        by=step.by,
        adjustments=[adjustment_to(one) for one in step.moved],
        judged=step.judged,
        reverts=step.reverts,
    )


def policy_of(request: pb.EvaluateRequest) -> Ask:
    """The bounds of a policy, as of a request without text."""
    return Ask(
        text="",
        chars=0,
        model=request.model or AUTO,
        shape=SHAPE_OF.get(request.shape),
        objective=request.objective,
        max_latency_ms=request.max_latency_ms,
        max_cost_usd=request.max_cost_usd,
    )


def evaluation_to(found: Evaluation) -> pb.EvaluateResponse:
    """What a policy is worth."""
    return pb.EvaluateResponse(
        quality=valuation_to(found.quality),
        cost_usd=valuation_to(found.cost_usd),
        latency_ms=valuation_to(found.latency_ms),
        requests=found.requests,
        judged=found.judged,
        matches=found.matches,
        effective=found.effective,
        refused=found.refused,
        tells=found.tells,
        verdict=found.verdict,
    )


def valuation_to(worth: Worth) -> pb.Valuation:
    """One measure of it."""
    alike = math.isfinite(worth.ips.value)
    return pb.Valuation(
        logged=worth.logged,
        expected=worth.doubly_robust.value,
        half_width=worth.doubly_robust.half_width,
        ips=worth.ips.value if alike else None,
        ips_half_width=worth.ips.half_width if alike else None,
        gained=worth.gained.value,
        gained_half_width=worth.gained.half_width,
    )


def experiment_from(message: pb.Experiment, tenant: str) -> Experiment:
    """An experiment as asked for."""
    return Experiment(
        id="",
        tenant=tenant,
        name=message.name,
        domain=message.domain,
        arms=tuple(Arm(name=arm.name, model=arm.model, share=arm.share) for arm in message.arms),
        alpha=message.alpha,
        max_outcomes=message.max_outcomes,
    )


def experiment_to(experiment: Experiment) -> pb.Experiment:
    """An experiment as it stands."""
    return pb.Experiment(
        id=experiment.id,
        name=experiment.name,
        domain=experiment.domain,
        arms=[arm_to(arm) for arm in experiment.arms],
        state=experiment.state,
        alpha=experiment.alpha,
        p_quality=experiment.p["quality"],
        p_cost=experiment.p["cost"],
        p_latency=experiment.p["latency"],
        max_outcomes=experiment.max_outcomes,
        created_s=experiment.created_s,
        reason=experiment.reason,
    )


def arm_to(arm: Arm) -> pb.Arm:
    """One side with its figures."""
    return pb.Arm(
        name=arm.name,
        model=arm.model,
        share=arm.share,
        outcomes=arm.tallies["quality"].n,
        mean_quality=arm.tallies["quality"].mean,
        mean_cost_usd=arm.tallies["cost"].mean,
        mean_latency_ms=arm.tallies["latency"].mean,
    )
