from dataclasses import replace

import pytest

from catena.api.events.v1 import events_pb2
from catena.api.router.v1 import router_pb2 as pb
from catena.api.types.v1 import types_pb2
from catena.kit.errors import Invalid
from catena.plan.build import ShapeConfig, build
from catena.plan.model import Shape
from catena.plan.wire import plan_to_proto
from catena.router.core.ask import Ask
from catena.router.core.features import request_features
from catena.router.handlers.messages import TOO_LONG, ask_of, experiment_from, experiment_to, observation_from

pytestmark = pytest.mark.unit

CASCADE = build(Shape.CASCADE, ShapeConfig(fast="s", main="l"))


def result(name, role, **fields):
    usage = types_pb2.Usage(input_tokens=10, output_tokens=3)
    return types_pb2.StageResult(name=name, role=role, model=name, usage=usage, duration_ms=5.0, **fields)


def test_the_last_user_turn_is_what_is_asked_and_all_turns_are_paid_for():
    turns = [("system", "be brief"), ("user", "first"), ("assistant", "well"), ("user", "second")]
    request = types_pb2.ChatRequest(messages=[types_pb2.ChatMessage(role=r, content=c) for r, c in turns])
    context = types_pb2.RequestContext(agent_id="a", max_cost_usd=0.5, task="T")
    ask = ask_of(pb.RecommendRequest(request=request, context=context, shape=types_pb2.SHAPE_SEARCH))
    assert (ask.text, ask.chars, ask.turns) == ("second", 23, 4)
    assert (ask.shape, ask.model, ask.who, ask.max_cost_usd, ask.task) == (Shape.SEARCH, "auto", "a", 0.5, "T")
    assert ask_of(pb.RecommendRequest(request=types_pb2.ChatRequest(prompt="go on"))).text == "go on"
    with pytest.raises(Invalid):
        ask_of(pb.RecommendRequest())


def test_turns_and_attempts_of_a_stage_add_up_and_the_last_one_tells_the_end():
    plan = plan_to_proto(CASCADE)
    plan.id, plan.domain = "p1", "code"
    looks = {"answer_digest": "d", "answer_features": [1.5, 0.0]}
    event = events_pb2.ExecutionCompleted(
        execution_id="x",
        plan=plan,
        stages=[
            result("fast", types_pb2.ROLE_FAST, outcome="failed", first_token_ms=3.0, load_ms=1.5),
            result("fast", types_pb2.ROLE_FAST, outcome="rejected", confidence=0.25, first_token_ms=2.0, **looks),
            result("main", types_pb2.ROLE_MAIN, outcome="accepted", answer_digest="e"),
        ],
        outcome="succeeded",
        context=types_pb2.RequestContext(objective="cost", max_cost_usd=0.25, max_latency_ms=900.0),
    )
    one = observation_from(event)
    assert (one.objective, one.max_cost_usd, one.max_latency_ms) == ("cost", 0.25, 900.0)
    fast, main = one.stages
    assert (fast.input_tokens, fast.output_tokens, fast.duration_ms) == (20, 6, 10.0)
    assert (fast.kept, fast.failed, fast.confidence, fast.digest) == (False, False, 0.25, "d")
    assert (fast.features, main.features) == ((1.5, 0.0), ())
    assert (fast.first_token_ms, fast.load_ms, main.first_token_ms) == (5.0, 1.5, 0.0)
    assert main.kept and not main.failed
    assert (one.domain, one.routed, one.succeeded) == ("code", True, True)
    assert one.configuration_id == CASCADE.configuration_id


def test_whoever_hears_of_an_execution_knows_how_long_its_request_was():
    for chars in (0, 1, 23, 4_321, 250_000):
        ask = Ask(text="x", chars=chars)
        plan = plan_to_proto(replace(CASCADE, features=request_features(ask)))
        told = observation_from(events_pb2.ExecutionCompleted(execution_id="x", plan=plan, outcome="succeeded")).chars
        assert told == pytest.approx(chars, rel=1e-4)
    untold = events_pb2.ExecutionCompleted(execution_id="x", plan=plan_to_proto(CASCADE), outcome="succeeded")
    assert observation_from(untold).chars == 0


def test_a_task_is_the_domain_of_a_plan_that_the_router_never_saw():
    event = events_pb2.ExecutionCompleted(execution_id="x", plan=plan_to_proto(CASCADE), outcome="failed")
    assert (observation_from(event).domain, observation_from(event).routed) == ("", False)
    event.context.task = "swapcase"
    assert (observation_from(event).domain, observation_from(event).routed) == ("swapcase", True)
    assert not observation_from(event).succeeded


def test_an_execution_of_a_pipeline_teaches_no_shape():
    event = events_pb2.ExecutionCompleted(execution_id="x", plan=types_pb2.Plan(pipeline="moderate"))
    assert observation_from(event).plan.pipeline == "moderate"
    assert observation_from(events_pb2.ExecutionCompleted(execution_id="y", model="m")).plan.pipeline


def test_an_experiment_comes_back_as_it_was_put():
    arms = [pb.Arm(name="control", share=0.75), pb.Arm(name="canary", model="m@x", share=0.25)]
    asked = pb.Experiment(name="n", domain="d", arms=arms, alpha=0.01, max_outcomes=50)
    told = experiment_to(experiment_from(asked, "t"))
    assert (told.name, told.domain, told.alpha, told.max_outcomes) == ("n", "d", 0.01, 50)
    assert [(a.name, a.model, a.share) for a in told.arms] == [("control", "", 0.75), ("canary", "m@x", 0.25)]


def test_what_was_too_long_for_its_model_tells_nothing_of_it():
    plan = plan_to_proto(CASCADE)
    too_long = result("fast", types_pb2.ROLE_FAST, outcome="failed", error_code="context_length_exceeded")
    main = result("main", types_pb2.ROLE_MAIN, outcome="accepted", answer_digest="e")
    went_on = observation_from(events_pb2.ExecutionCompleted(plan=plan, stages=[too_long, main], outcome="succeeded"))
    assert ([stage.name for stage in went_on.stages], went_on.cancelled) == (["main"], False)
    ended = events_pb2.ExecutionCompleted(plan=plan, stages=[too_long], outcome="failed", error_code=TOO_LONG)
    assert (observation_from(ended).stages, observation_from(ended).cancelled) == ((), True)
    ended.error_code = "upstream_unavailable"
    assert not observation_from(ended).cancelled
