import math
from contextlib import AsyncExitStack
from functools import partial

import msgspec
import pytest

from catena.api.adapters.v1 import adapters_pb2
from catena.api.adapters.v1.adapters_pb2_grpc import AdaptersServiceServicer, add_AdaptersServiceServicer_to_server
from catena.api.events.v1 import events_pb2
from catena.api.executor.v1 import executor_pb2
from catena.api.memory.v1 import memory_pb2
from catena.api.memory.v1.memory_pb2_grpc import MemoryServiceServicer, add_MemoryServiceServicer_to_server
from catena.api.router.v1 import router_pb2 as pb
from catena.api.types.v1 import types_pb2
from catena.kit.clock import World
from catena.kit.errors import Conflict, Invalid, Missing, Unavailable
from catena.kit.event import Event
from catena.kit.serve import open_server
from catena.kit.testing import eventually, running
from catena.plan.answer import NAMES as ANSWER
from catena.plan.build import sequential
from catena.plan.wire import plan_to_proto
from catena.router.core.features import NAMES

from .conftest import CONFIG, TOKEN

pytestmark = pytest.mark.contract


def asked(text="upper: gate", model="auto", shape=0, **context):
    return pb.RecommendRequest(
        request=types_pb2.ChatRequest(messages=[types_pb2.ChatMessage(role="user", content=text)]),
        context=types_pb2.RequestContext(**context),
        model=model,
        shape=shape,
    )


def completed(number, plan, *, model="large", **fields):
    stage = types_pb2.StageResult(
        name="main",
        role=types_pb2.ROLE_MAIN,
        model=model,
        duration_ms=20.0,
        usage=types_pb2.Usage(input_tokens=15, output_tokens=5),
        outcome="accepted",
        answer_digest="d",
        confidence=0.9,
    )
    return events_pb2.ExecutionCompleted(
        execution_id=f"x{number}",
        plan=plan,
        stages=[stage],
        cost_usd=1e-5,
        duration_ms=21.0,
        outcome="succeeded",
        **fields,
    )


def event(id, type, message, tenant="acme"):
    return Event(id=id, type=type, tenant=tenant, time_s=1.0, data=message.SerializeToString())


async def stats(room, tenant="acme"):
    return await room.ask("GetStats", pb.GetStatsRequest(), tenant)


async def executions(room, count):
    async def there():
        return (await stats(room)).executions == count

    await eventually(there)


async def test_a_request_gets_a_plan_with_its_domain_and_prediction(room):
    answer = await room.ask("Recommend", asked())
    assert answer.plan.domain == "upper"
    assert answer.domains[0].domain == "upper"
    assert answer.confidence == answer.domains[0].probability >= 0.85
    assert answer.plan.shape == types_pb2.SHAPE_CASCADE
    assert answer.plan.id
    assert (
        answer.plan.prediction.cost_usd.low
        < answer.plan.prediction.cost_usd.mean
        < answer.plan.prediction.cost_usd.high
    )
    assert answer.model == "large"
    assert len(answer.plan.features) == len(NAMES)
    assert "gate" not in str(answer.plan)


async def test_a_text_like_none_of_the_examples_is_in_no_domain(room):
    answer = await room.ask("Recommend", asked("What is the capital of France?"))
    assert answer.plan.domain == ""
    assert answer.confidence < 0.85


async def test_bad_input_is_refused_with_a_code_and_a_cure(room):
    cases = [
        (asked(objective="cheap"), Invalid, "unknown_objective"),
        (asked(max_cost_usd=-1.0), Invalid, "bad_cap"),
        (asked(max_latency_ms=math.nan), Invalid, "bad_cap"),
        (asked(max_cost_usd=1e-12), Invalid, "no_plan_fits"),
        (asked(model="gpt-9", shape=types_pb2.SHAPE_SEQUENTIAL), Missing, "unknown_model"),
        (asked(model="nobody@code", shape=types_pb2.SHAPE_CASCADE), Missing, "unknown_model"),
        (pb.RecommendRequest(), Invalid, "empty_request"),
    ]
    for request, kind, code in cases:
        with pytest.raises(kind) as refused:
            await room.ask("Recommend", request)
        assert refused.value.code == code, request
    with pytest.raises(Invalid) as refused:
        await room.ask("Recommend", asked(max_cost_usd=1e-12))
    assert "max_cost_usd 1e-12" in refused.value.message and "too much" in refused.value.message


async def test_a_forced_shape_takes_its_configured_models_and_a_named_model_replaces_the_main_one(room):
    plain = await room.ask("Recommend", asked(shape=types_pb2.SHAPE_DRAFT_REFINE))
    assert [stage.model for stage in plain.plan.stages] == ["small", "large"]
    named = await room.ask("Recommend", asked(shape=types_pb2.SHAPE_SEARCH, model="small"))
    assert [stage.model for stage in named.plan.stages] == ["small"]


async def test_executions_and_feedback_from_the_bus_are_learned_once_each(room):
    plan = (await room.ask("Recommend", asked(model="large", shape=types_pb2.SHAPE_SEQUENTIAL))).plan
    done = event("e1", "executor.execution.completed", completed(1, plan))
    said = event("f1", "learner.feedback.recorded", events_pb2.FeedbackRecorded(execution_id="x1", score=1.0))
    for one in (said, done, said, done):
        await room.bus.publish(one)
    await executions(room, 1)

    async def judged():
        return (await stats(room)).configurations[0].judged == 1

    await eventually(judged)
    (row,) = (await stats(room)).configurations
    assert (row.domain, row.plan, row.mean_quality, row.success_rate) == ("upper", "sequential(large)", 1.0, 1.0)
    assert (await stats(room, "other")).executions == 0


async def test_answers_that_were_judged_teach_a_cascade_how_to_read_them(room):
    plan = (await room.ask("Recommend", asked(model="small", shape=types_pb2.SHAPE_SEQUENTIAL))).plan
    wrong = ANSWER.index("wrong_equations")
    for number in range(70):
        done = completed(number, plan, model="small")
        figures = [1.0] * len(ANSWER)
        figures[wrong] = float(number % 2)
        done.stages[0].confidence = 0.0
        done.stages[0].answer_features.extend(figures)
        said = events_pb2.FeedbackRecorded(execution_id=f"x{number}", score=1.0 - number % 2)
        await room.bus.publish(event(f"e{number}", "executor.execution.completed", done))
        await room.bus.publish(event(f"f{number}", "learner.feedback.recorded", said))

    async def taught():
        cascade = (await room.ask("Recommend", asked(shape=types_pb2.SHAPE_CASCADE))).plan
        return len(cascade.settings.scorer) == len(ANSWER) + 1 and cascade.settings.scorer[1 + wrong] < -1.0

    await eventually(taught, 30.0)


async def test_explain_shows_every_candidate_and_why(room):
    told = await room.ask("Explain", pb.ExplainRequest(request=asked(objective="cost")))
    assert len(told.candidates) >= 7
    assert told.reason
    assert abs(sum(told.weights.values()) - 1.0) < 1e-9
    capped = await room.ask("Explain", pb.ExplainRequest(request=asked(max_cost_usd=3e-4)))
    assert any("over max_cost_usd" in candidate.rejected for candidate in capped.candidates)


async def test_domains_are_put_used_at_once_and_deleted(room):
    examples = [f"swapcase: {word}" for word in ("heLLo", "tIn", "GaTe", "mOSs")]
    domain = pb.Domain(name="swapcase", examples=examples)
    await room.ask("PutDomain", pb.PutDomainRequest(domain=domain))
    assert (await room.ask("Recommend", asked("swapcase: rIvEr"))).plan.domain == "swapcase"
    assert (await room.ask("Recommend", asked("swapcase: rIvEr"), "other")).plan.domain == ""
    names = [d.name for d in (await room.ask("ListDomains", pb.ListDomainsRequest())).domains]
    assert names == ["add", "fact", "reverse", "swapcase", "upper"]
    await room.ask("DeleteDomain", pb.DeleteDomainRequest(name="swapcase"))
    assert (await room.ask("Recommend", asked("swapcase: rIvEr"))).plan.domain == ""
    with pytest.raises(Missing):
        await room.ask("DeleteDomain", pb.DeleteDomainRequest(name="swapcase"))
    with pytest.raises(Invalid):
        await room.ask("PutDomain", pb.PutDomainRequest(domain=pb.Domain(name="Bad Name", examples=["x"])))


async def test_domains_are_merged_and_their_names_go_on_meaning_what_they_became(room):
    request = pb.MergeDomainsRequest(names=["upper", "reverse"], into="case")
    told = (await room.ask("MergeDomains", request)).domain
    assert (told.name, list(told.aliases), len(told.examples)) == ("case", ["upper", "reverse"], 8)
    for text in ("upper: river", "reverse: river"):
        assert (await room.ask("Recommend", asked(text))).plan.domain == "case"
    assert (await room.ask("Recommend", asked("x", task="upper"))).plan.domain == "case"
    assert (await room.ask("Recommend", asked("upper: river"), "other")).plan.domain == "upper"
    with pytest.raises(Missing):
        await room.ask("MergeDomains", pb.MergeDomainsRequest(names=["upper", "add"], into="all"))


async def test_a_specialist_answers_its_domain_from_the_moment_it_is_put(room):
    room.catalogue.models.append(
        executor_pb2.Model(name="large@swapcase", type="chat", parent="large", status="active")
    )
    examples = [f"swapcase: {word}" for word in ("heLLo", "tIn", "GaTe", "mOSs")]
    domain = pb.Domain(name="swapcase", examples=examples, specialist="large@swapcase")
    await room.ask("PutDomain", pb.PutDomainRequest(domain=domain))
    answer = await room.ask("Recommend", asked("swapcase: rIvEr"))
    assert answer.model == "large@swapcase"
    assert (await room.ask("Recommend", asked("upper: river"))).model != "large@swapcase"


async def test_auto_never_takes_a_model_that_cannot_be_called(room):
    room.catalogue.models[0].problem = "small has no folder"
    for text in ("upper: river", "add 2+3", "what is this?"):
        told = await room.ask("Explain", pb.ExplainRequest(request=asked(text)))
        models = {stage.model for candidate in told.candidates for stage in candidate.plan.stages}
        assert models == {"large"}
    with pytest.raises(Unavailable, match="small has no folder"):
        await room.ask("Recommend", asked("upper: river", shape=types_pb2.SHAPE_CASCADE))


class Adapters(AdaptersServiceServicer):
    async def ListAdapters(self, request, context):
        told = adapters_pb2.Adapter(name="fixer", base="large", tasks=["code-repair"], status="active")
        told.aliases.append("stable")
        gone = adapters_pb2.Adapter(name="old", base="large", tasks=["withdrawn-task"], status="withdrawn")
        return adapters_pb2.ListAdaptersResponse(adapters=[told, gone])


class Procedures(MemoryServiceServicer):
    async def ListSops(self, request, context):
        sop = memory_pb2.Sop(name="Refund", category="billing", triggers=["money back", "refund an invoice"])
        return memory_pb2.ListSopsResponse(sops=[sop])


async def test_tasks_of_adapters_and_procedures_become_domains(open_room, house):
    rooms = (
        ("adapters", Adapters(), add_AdaptersServiceServicer_to_server),
        ("memory", Procedures(), add_MemoryServiceServicer_to_server),
    )
    async with AsyncExitStack() as stack:
        for name, servicer, add in rooms:
            service = f"catena.api.{name}.v1.{name.title()}Service"
            serve = partial(add, servicer)
            opened = open_server(house.address(name), [serve], names=[service], token=TOKEN, world=World())
            await stack.enter_async_context(opened)
        room = await stack.enter_async_context(open_room(msgspec.structs.replace(CONFIG, hints_s=0.2)))

        async def taken():
            domains = (await room.ask("ListDomains", pb.ListDomainsRequest())).domains
            return {d.name: d for d in domains if d.origin}

        async def both():
            return len(await taken()) == 2

        await eventually(both, 30.0)
        found = await taken()
        assert (found["code-repair"].origin, found["code-repair"].specialist) == ("adapters", "large@fixer")
        assert list(found["billing"].examples) == ["billing", "Refund", "money back", "refund an invoice"]
        assert (await room.ask("Recommend", asked("refund an invoice, money back"))).plan.domain == "billing"


async def test_any_model_of_the_catalogue_may_tell_what_texts_mean(open_room):
    async with open_room(msgspec.structs.replace(CONFIG, embedding="letters", domains=[])) as room:
        for name, words in (("one", ("anna", "adam", "arid", "ache")), ("two", ("bold", "bird", "bask", "bulb"))):
            await room.ask("PutDomain", pb.PutDomainRequest(domain=pb.Domain(name=name, examples=words)))
        told = (await room.ask("Recommend", asked("azure"))).domains
        assert (told[0].domain, told[1].domain) == ("one", "two")
        assert told[0].similarity > told[1].similarity + 0.2
    async with open_room(msgspec.structs.replace(CONFIG, embedding="elsewhere")) as room:
        assert (await room.ask("Recommend", asked("upper: gate"))).plan.domain == ""


async def test_an_experiment_runs_from_assignment_to_its_announced_verdict(room):
    heard = []

    async def hear(one):
        heard.append(events_pb2.ExperimentDecided.FromString(one.data))

    arms = [pb.Arm(name="control", share=0.5), pb.Arm(name="canary", model="large@new:0.1.0", share=0.5)]
    wanted = pb.CreateExperimentRequest(
        experiment=pb.Experiment(name="new", domain="upper", arms=arms), request_id="r1"
    )
    started = (await room.ask("CreateExperiment", wanted)).experiment
    assert (await room.ask("CreateExperiment", wanted)).experiment.id == started.id
    wanted.request_id = "r2"
    with pytest.raises(Conflict):
        await room.ask("CreateExperiment", wanted)
    async with running(room.bus.watch(["router.experiment.decided"], hear, since_now=False)):
        seen = set()
        for number in range(60):
            plan = (await room.ask("Recommend", asked(f"upper: word{number}", user_id=f"u{number}"))).plan
            again = (await room.ask("Recommend", asked(f"upper: word{number}", user_id=f"u{number}"))).plan
            if not plan.experiment_id or not again.experiment_id:
                break
            assert (plan.experiment_id, plan.experiment_arm) == (started.id, again.experiment_arm)
            canary = plan.experiment_arm == "canary"
            assert (plan.stages[0].model == "large@new:0.1.0") == canary
            seen.add(plan.experiment_arm)
            done = completed(number, plan, model=plan.stages[0].model)
            said = events_pb2.FeedbackRecorded(execution_id=f"x{number}", score=float(canary))
            await room.bus.publish(event(f"e{number}", "executor.execution.completed", done))
            await room.bus.publish(event(f"f{number}", "learner.feedback.recorded", said))
        assert seen == {"control", "canary"}
        await eventually(lambda: bool(heard))
    assert (heard[0].experiment_id, heard[0].state, heard[0].treatment_quality) == (started.id, "won", 1.0)
    found = (await room.ask("GetExperiment", pb.GetExperimentRequest(id=started.id))).experiment
    assert found.state == "won" and found.p_quality < 0.05 / 3
    assert not (await room.ask("Recommend", asked("upper: word1", user_id="u1"))).plan.experiment_id


async def test_stopping_an_experiment_ends_its_assignment(room):
    arms = [pb.Arm(name="control"), pb.Arm(name="canary", model="small")]
    wanted = pb.CreateExperimentRequest(experiment=pb.Experiment(name="n", arms=arms))
    started = (await room.ask("CreateExperiment", wanted)).experiment
    assert (await room.ask("Recommend", asked())).plan.experiment_id == started.id
    stopped = await room.ask("StopExperiment", pb.StopExperimentRequest(id=started.id, reason="enough"))
    assert (stopped.experiment.state, stopped.experiment.reason) == ("stopped", "enough")
    assert not (await room.ask("Recommend", asked())).plan.experiment_id
    listed = await room.ask("ListExperiments", pb.ListExperimentsRequest(state="stopped"))
    assert [e.id for e in listed.experiments] == [started.id]
    with pytest.raises(Missing):
        await room.ask("GetExperiment", pb.GetExperimentRequest(id=started.id), "other")


async def explained(room):
    """What is told as soon as the room has heard its catalogue; on a busy machine that may take seconds."""
    told = []

    async def ready():
        try:
            told.append(await room.ask("Explain", pb.ExplainRequest(request=asked(objective="cost"))))
        except Unavailable as error:
            assert error.code == "catalogue_unknown"
        return bool(told)

    await eventually(ready, 30.0)
    return told[0]


async def test_a_restart_gives_the_same_decision(open_room):
    async with open_room() as room:
        for number in range(40):
            model = "small" if number % 2 else "large"
            plan = plan_to_proto(sequential(model))
            plan.domain, plan.id = "upper", f"p{number}"
            score = types_pb2.Score(value=float(model == "large" or number % 3 == 0), source="tests")
            done = completed(number, plan, model=model, scores=[score])
            await room.bus.publish(event(f"e{number}", "executor.execution.completed", done))
        await executions(room, 40)
        await room.ask("AutoTune", pb.AutoTuneRequest(freeze=True))
        first = await room.ask("Explain", pb.ExplainRequest(request=asked(objective="cost")))
    async with open_room() as room:
        second = await explained(room)
        assert [c.plan.configuration_id for c in second.candidates] == [
            c.plan.configuration_id for c in first.candidates
        ]
        assert [c.utility for c in second.candidates] == pytest.approx([c.utility for c in first.candidates], rel=1e-9)


async def chosen(room, count):
    """Requests as a router would log them that asks either model as often: what the large one says is wrong."""
    for number in range(count):
        model = "small" if number % 2 else "large"
        plan = plan_to_proto(sequential(model))
        plan.domain, plan.id, plan.propensity = "upper", f"p{number}", 0.5
        score = types_pb2.Score(value=float(model == "small"), source="tests")
        done = completed(number, plan, model=model, scores=[score])
        await room.bus.publish(event(f"c{number}", "executor.execution.completed", done))
    await executions(room, count)


async def test_what_was_chosen_with_its_propensity_values_another_policy(room):
    plan = (await room.ask("Recommend", asked(objective="cost"))).plan
    assert 0.0 < plan.propensity <= 1.0
    with pytest.raises(Invalid) as refused:
        await room.ask("Evaluate", pb.EvaluateRequest())
    assert refused.value.code == "nothing_logged"
    await chosen(room, 200)
    told = await room.ask("Evaluate", pb.EvaluateRequest(model="small"))
    assert (told.requests, told.judged) == (200, 200)
    assert told.tells and told.effective >= 20.0, told.verdict
    assert told.quality.expected > 0.9 > told.quality.logged
    assert told.quality.gained > told.quality.gained_half_width > 0.0
    assert told.verdict.startswith("better than what ran")
    assert (await room.ask("Evaluate", pb.EvaluateRequest(model="large"))).quality.expected < 0.5
    for bad, code in (
        (pb.EvaluateRequest(objective="cheap"), "unknown_objective"),
        (pb.EvaluateRequest(weights={"quality": math.nan}), "bad_weights"),
        (pb.EvaluateRequest(max_cost_usd=1e-12), "no_plan_fits"),
    ):
        with pytest.raises(Invalid) as refused:
            await room.ask("Evaluate", bad)
        assert refused.value.code == code


async def test_a_tuning_is_listed_survives_a_restart_and_is_taken_back(open_room):
    async with open_room() as room:
        for number in range(60):
            plan = (await room.ask("Recommend", asked(f"upper: w{number}", shape=types_pb2.SHAPE_CASCADE))).plan
            done = completed(number, plan, model="small")
            done.stages[0].name, done.stages[0].role = "fast", types_pb2.ROLE_FAST
            done.stages[0].confidence = 0.55 if number % 2 else 0.95
            done.scores.add(value=1.0 - number % 2, source="tests")
            await room.bus.publish(event(f"e{number}", "executor.execution.completed", done))
        await executions(room, 60)
        told = await room.ask("AutoTune", pb.AutoTuneRequest())
        assert told.number == 1 and told.adjustments[0].after > 0.5, told
    async with open_room() as room:
        listed = await room.ask("ListTunings", pb.ListTuningsRequest())
        (step,) = listed.tunings
        assert (step.number, step.by, step.judged) == (1, "operator", 60)
        assert list(step.adjustments) == list(told.adjustments)
        assert listed.settings["cascade.threshold"] == told.adjustments[0].after
        cascade = asked("upper: x", shape=types_pb2.SHAPE_CASCADE)
        assert (await room.ask("Recommend", cascade)).plan.settings.threshold == told.adjustments[0].after
        back = (await room.ask("RevertTuning", pb.RevertTuningRequest(number=1))).tuning
        assert (back.number, back.reverts, back.adjustments[0].after) == (2, 1, 0.5)
        assert (await room.ask("Recommend", cascade)).plan.settings.threshold == 0.5
        assert (await room.ask("ListTunings", pb.ListTuningsRequest())).waits_for == 60
        with pytest.raises(Missing):
            await room.ask("RevertTuning", pb.RevertTuningRequest(number=9))


async def test_runs_made_elsewhere_count_and_bad_ones_are_refused(room):
    run = pb.RecordExecutionRequest(
        execution_id="y1", configuration_id="theirs", text="upper: gate", latency_ms=5.0, quality=1.0, success=True
    )
    for _ in range(2):
        await room.ask("RecordExecution", run)
    (row,) = (await stats(room)).configurations
    assert (row.configuration_id, row.domain, row.executions, row.mean_quality) == ("theirs", "upper", 1, 1.0)
    with pytest.raises(Invalid):
        await room.ask("RecordExecution", pb.RecordExecutionRequest(configuration_id="theirs"))
