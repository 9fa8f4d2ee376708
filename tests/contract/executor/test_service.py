"""The whole room over gRPC, with its neighbours scripted and its SQL, cache and records real."""

import asyncio
from pathlib import Path
from typing import Any

import pytest
from google.protobuf import struct_pb2

from catena.api.events.v1 import events_pb2
from catena.api.executor.v1 import executor_pb2 as pb
from catena.api.types.v1 import types_pb2
from catena.executor.handlers.values import plain, to_struct, to_value
from catena.kit.bus import open_bus
from catena.kit.config import ModelConfig
from catena.kit.errors import Conflict, Invalid, Missing, Unavailable
from catena.kit.event import Event
from catena.kit.serve import Caller, as_caller
from catena.kit.testing import eventually, nats_server, postgres
from catena.plan.build import sequential
from catena.plan.model import Plan, Role, Settings, Shape, Stage
from tests.contract.executor.rooms import Around, around, executor, finished, house_at, neighbours, request

LARGE = sequential("large")
CASCADE = Plan(
    shape=Shape.CASCADE,
    stages=(Stage(name="fast", role=Role.FAST, model="small"), Stage(name="main", role=Role.MAIN, model="large")),
    settings=Settings(min_chars=0, threshold=0.95),
)


async def test_a_run_streams_stage_events_deltas_and_an_end_that_adds_up(tmp_path: Path) -> None:
    async with around(tmp_path, coalesce_ms=0.0) as room:
        with as_caller(Caller("acme")):
            events = [event async for event in room.stub.Run(request(LARGE, stream=True))]
    kinds = [event.WhichOneof("event") for event in events]
    assert kinds[0] == "stage_started"
    assert kinds[-2:] == ["stage_finished", "finished"]
    assert "".join(event.delta.text for event in events if event.HasField("delta")) == "HELLO THERE"
    end = events[-1].finished
    assert end.choices[0].message.content == "HELLO THERE"
    assert end.cost_usd == pytest.approx((10 * 10 + 2 * 40) / 1e6)
    assert (end.stages[0].resolved_model, end.stages[0].load_ms) == ("large#sha256:1", 0.25)
    assert room.adapters.tenants == ["acme"]


async def test_a_run_has_the_identity_that_its_caller_gave_it(tmp_path: Path) -> None:
    async with around(tmp_path) as room:
        end = await finished(room.stub.Run(request(LARGE, execution_id="e-7")))
        assert end.execution_id == "e-7"

        async def recorded() -> bool:
            try:
                return bool(await room.stub.GetExecution(pb.GetExecutionRequest(id="e-7")))
            except Missing:
                return False

        await eventually(recorded)


async def test_a_cascade_climbs_and_the_record_of_it_can_be_read(tmp_path: Path) -> None:
    async with around(tmp_path, keep_texts=["acme"]) as room:
        with as_caller(Caller("acme")):
            end = await finished(room.stub.Run(request(CASCADE, "mail me at a@b.org")))
            assert [stage.outcome for stage in end.stages] == ["rejected", "accepted"]

            async def kept() -> bool:
                try:
                    await room.stub.GetExecution(pb.GetExecutionRequest(id=end.execution_id))
                except Missing:
                    return False
                return True

            await eventually(kept)
            record = (await room.stub.GetExecution(pb.GetExecutionRequest(id=end.execution_id))).execution
        assert record.outcome == "succeeded"
        assert record.prompt[0].content == "mail me at [email]"
        assert [stage.name for stage in record.stages] == ["fast", "main"]
        with as_caller(Caller("other")), pytest.raises(Missing) as caught:
            await room.stub.GetExecution(pb.GetExecutionRequest(id=end.execution_id))
        assert caught.value.code == "unknown_execution"


async def recorded(room: Around, execution_id: str) -> pb.Execution:
    """The record, which is written a moment after the answer."""

    async def found() -> bool:
        try:
            await room.stub.GetExecution(pb.GetExecutionRequest(id=execution_id))
        except Missing:
            return False
        return True

    await eventually(found)
    return (await room.stub.GetExecution(pb.GetExecutionRequest(id=execution_id))).execution


async def test_texts_are_not_kept_unless_the_tenant_asked(tmp_path: Path) -> None:
    async with around(tmp_path) as room:
        end = await finished(room.stub.Run(request(LARGE, "secret words")))
        record = await recorded(room, end.execution_id)
    assert not record.prompt
    assert not record.answer
    assert not any(b"secret" in file.read_bytes() for file in (tmp_path / "executor").iterdir())


async def test_metrics_count_executions_and_stages(tmp_path: Path) -> None:
    async with around(tmp_path) as room:
        for _ in range(3):
            await finished(room.stub.Run(request(LARGE)))
        with pytest.raises(Missing):
            await finished(room.stub.Run(request(sequential("large@gone"))))

        async def figures() -> pb.PipelineMetrics:
            told = await room.stub.GetMetrics(pb.GetMetricsRequest(pipeline="sequential"))
            return told.pipelines[0] if told.pipelines else pb.PipelineMetrics()

        async def counted() -> bool:
            return (await figures()).executions == 4

        await eventually(counted)
        found = await figures()
    assert (found.executions, found.successes) == (4, 3)
    assert found.stages[0].calls == 4
    assert found.stages[0].total_tokens == 36
    assert found.cost_usd == pytest.approx(3 * 180 / 1e6)


@pytest.mark.parametrize(
    ("asked", "kind", "code"),
    [
        (request(sequential("largo")), Missing, "unknown_model"),
        (request(sequential("largo@x")), Missing, "unknown_model"),
        (request(sequential("large@gone")), Missing, "unknown_adapter"),
        (request(Plan(shape=Shape.SEQUENTIAL, pipeline="nothing")), Missing, "unknown_pipeline"),
        (request(LARGE, "x" * 2000), Invalid, "context_length_exceeded"),
        (request(LARGE, context=types_pb2.RequestContext(max_cost_usd=-1)), Invalid, "out_of_range"),
        (request(LARGE, context=types_pb2.RequestContext(max_latency_ms=float("nan"))), Invalid, "out_of_range"),
        (request(LARGE, temperature=9.0), Invalid, "out_of_range"),
        (pb.RunRequest(), Invalid, "bad_plan"),
        (request(Plan(shape=Shape.CASCADE, stages=LARGE.stages)), Invalid, "bad_plan"),
    ],
)
async def test_bad_requests_fail_with_a_kind_a_code_and_a_cure(
    tmp_path: Path, asked: pb.RunRequest, kind: type[Exception], code: str
) -> None:
    async with around(tmp_path) as room:
        with pytest.raises(kind) as caught:
            await finished(room.stub.Run(asked))
    assert caught.value.code == code  # type: ignore[attr-defined]


async def test_an_unknown_model_is_answered_with_close_names(tmp_path: Path) -> None:
    async with around(tmp_path) as room:
        with pytest.raises(Missing, match="did you mean large"):
            await finished(room.stub.Run(request(sequential("larg"))))


async def test_a_pipeline_asked_for_as_a_model_is_named_as_it_should_be(tmp_path: Path) -> None:
    async with around(tmp_path) as room:
        for ask in (
            lambda: finished(room.stub.Run(request(sequential("sentiment")))),
            lambda: room.stub.SubmitRun(pb.SubmitRunRequest(run=request(sequential("sentiment")))),
            lambda: room.stub.Predict(pb.PredictRequest(model_id="sentiment", data=to_value("x"))),
        ):
            with pytest.raises(Missing, match="'pipeline:sentiment'") as caught:
                await ask()
            assert caught.value.code == "unknown_model"


async def test_leaving_a_run_reaches_the_model(tmp_path: Path) -> None:
    async with around(tmp_path) as room:
        room.adapters.hold.add("large")
        call = room.stub.Run(request(LARGE, stream=True))
        async for event in call:
            if event.HasField("delta"):
                break
        call.cancel()
        await asyncio.wait_for(room.adapters.cancelled.wait(), 30)


async def test_a_stream_that_the_model_leaves_never_passes_as_whole(tmp_path: Path) -> None:
    async with around(tmp_path) as room:
        room.adapters.cut.add("large")
        with pytest.raises(Exception, match="broke off") as caught:
            await finished(room.stub.Run(request(LARGE, stream=True)))
        assert caught.value.code == "stream_cut"  # type: ignore[attr-defined]
        assert len(room.adapters.asked) == 1, "words had reached the client: not repeated"
        with pytest.raises(Exception, match="broke off"):
            await finished(room.stub.Run(request(LARGE)))
        assert len(room.adapters.asked) == 3, "nothing had reached the client: tried twice"


async def test_for_who_named_no_model_another_answers_once_for_one_that_is_away(tmp_path: Path) -> None:
    dead = ModelConfig(name="dead", provider="openai", base_url="http://127.0.0.1:9/v1")
    plan = sequential("dead")
    async with around(tmp_path, house=house_at(tmp_path, models=[dead])) as room:
        with pytest.raises(Unavailable):
            await finished(room.stub.Run(request(plan)))
        end = await finished(room.stub.Run(request(plan, any_model=True)))
        asked = pb.SubmitRunRequest(run=request(plan, any_model=True))
        later = (await ended(room.stub, (await room.stub.SubmitRun(asked)).run.id)).result
    for told in (end, later):
        assert (told.model, told.choices[0].message.content) == ("small", "HELLO THERE")
        assert told.stages[-1].reason.startswith("instead of dead (")


async def test_lossless_speculation_is_asked_of_the_adapters_and_bills_both(tmp_path: Path) -> None:
    plan = Plan(
        shape=Shape.SPECULATIVE,
        stages=(Stage(name="draft", role=Role.DRAFT, model="small"), Stage(name="main", role=Role.MAIN, model="large")),
    )
    async with around(tmp_path) as room:
        end = await finished(room.stub.Run(request(plan)))
    assert room.adapters.asked[0].draft_model == "small"
    assert end.cost_usd == pytest.approx((10 * 10 + 2 * 40 + 10 * 1 + 20 * 4) / 1e6)
    assert (end.stages[1].drafted_tokens, end.stages[1].accepted_tokens) == (20, 15)


async def test_a_repeated_request_id_is_the_same_execution(tmp_path: Path) -> None:
    async with around(tmp_path) as room:
        first = await finished(room.stub.Run(request(LARGE, request_id="r-1")))
        again = await finished(room.stub.Run(request(LARGE, request_id="r-1")))
    assert again.execution_id == first.execution_id
    assert len(room.adapters.asked) == 1


def step(step_name: str, type_: str, /, **config: Any) -> pb.Step:
    return pb.Step(name=step_name, type=type_, config=to_struct(config))


async def test_a_pipeline_reads_features_and_memory_and_changes_with_them(tmp_path: Path) -> None:
    steps = [
        step("who", "feature", entity_type="user", entity_id="{data.user}", group="profile"),
        step("known", "memory", collection="docs", query="{data.text}"),
        step("say", "model", model="large", prompt="{who.values.tier} {known.text}"),
        step("done", "postprocess", operations=["lower", {"metadata": {"from": "test"}}]),
    ]
    async with around(tmp_path) as room:
        stored = await room.stub.PutPipeline(pb.PutPipelineRequest(pipeline=pb.Pipeline(name="greet", steps=steps)))
        assert stored.pipeline.version == 1
        asked = pb.PredictRequest(model_id="pipeline:greet", data=to_value({"user": "7", "text": "tea"}))
        first = await room.stub.Predict(asked)
        room.features.values["tier"] = "iron"
        second = await room.stub.Predict(asked)
        assert plain(first.result) == {"value": "gold about tea", "metadata": {"from": "test"}}
        assert plain(second.result)["value"] == "iron about tea"
        assert [one.name for one in first.steps] == ["who", "known", "say", "done"]
        assert first.cost_usd > 0


async def test_a_pipeline_answers_a_conversation(tmp_path: Path) -> None:
    ask = request(Plan(shape=Shape.SEQUENTIAL, pipeline="quiet"), stream=True)
    ask.context.user_id = "Ada"
    steps = [
        step("say", "model", shape="cascade", prompt="{input} {data.context.user_id}"),
        step("neat", "postprocess", operations=["lower"]),
    ]
    async with around(tmp_path) as room:
        await room.stub.PutPipeline(pb.PutPipelineRequest(pipeline=pb.Pipeline(name="quiet", steps=steps)))
        events = [event async for event in room.stub.Run(ask)]
    assert "".join(event.delta.text for event in events if event.HasField("delta")) == "hello there ada"
    assert [stage.name for stage in events[-1].finished.stages] == ["say/fast"]


async def test_pipelines_are_versioned_listed_and_deleted_per_tenant(tmp_path: Path) -> None:
    async with around(tmp_path, examples=False) as room:
        body = pb.Pipeline(name="tidy", steps=[step("a", "preprocess", operations=["strip"])])
        await room.stub.PutPipeline(pb.PutPipelineRequest(pipeline=body))
        with as_caller(Caller("acme")):
            for _ in range(2):
                await room.stub.PutPipeline(pb.PutPipelineRequest(pipeline=body))
            await room.stub.PutPipeline(pb.PutPipelineRequest(pipeline=pb.Pipeline(name="also", steps=body.steps)))
            page = await room.stub.ListPipelines(pb.ListPipelinesRequest(page_size=1))
            rest = await room.stub.ListPipelines(pb.ListPipelinesRequest(page_token=page.next_page_token))
            assert [(one.name, one.version) for one in (*page.pipelines, *rest.pipelines)] == [("also", 1), ("tidy", 2)]
            old = await room.stub.GetPipeline(pb.GetPipelineRequest(name="tidy", version=1))
            assert old.pipeline.version == 1
            await room.stub.DeletePipeline(pb.DeletePipelineRequest(name="tidy"))
            shared = await room.stub.GetPipeline(pb.GetPipelineRequest(name="tidy"))
            assert shared.pipeline.version == 1
            with pytest.raises(Missing):
                await room.stub.DeletePipeline(pb.DeletePipelineRequest(name="tidy"))


async def test_an_unsound_pipeline_is_not_stored(tmp_path: Path) -> None:
    async with around(tmp_path) as room:
        bad = pb.Pipeline(name="bad", steps=[step("a", "model", model="large", prompt="{nobody}")])
        with pytest.raises(Invalid, match="nobody"):
            await room.stub.PutPipeline(pb.PutPipelineRequest(pipeline=bad))
        circle = pb.Pipeline(name="self", steps=[step("a", "pipeline", name="self")])
        with pytest.raises((Invalid, Missing)):
            await room.stub.PutPipeline(pb.PutPipelineRequest(pipeline=circle))


async def test_a_batch_comes_back_in_order(tmp_path: Path) -> None:
    async with around(tmp_path) as room:
        data = [to_value(f"text {number}") for number in range(25)]
        found = await room.stub.BatchPredict(pb.BatchPredictRequest(model_id="small", data=data, concurrency=5))
    assert [one.result.string_value for one in found.results] == [f"TEXT {number}" for number in range(25)]


async def test_embeddings_come_from_the_local_model_and_batch(tmp_path: Path, minilm: Path) -> None:
    async with around(tmp_path, house=house_at(tmp_path, embedding=str(minilm))) as room:
        found = await room.stub.Embed(pb.EmbedRequest(texts=["cat", "kitten", "motorway"]))
        assert found.model == "all-minilm-l6-v2"
        near, far = (
            sum(a * b for a, b in zip(found.vectors[0].values, found.vectors[n].values, strict=True)) for n in (1, 2)
        )
        assert near > far
        steps = [
            step(
                "mood",
                "model",
                kind="classification",
                input="{data}",
                labels={"glad": ["I love it", "wonderful"], "sad": ["I hate it", "terrible"]},
            )
        ]
        await room.stub.PutPipeline(pb.PutPipelineRequest(pipeline=pb.Pipeline(name="mood", steps=steps)))
        mood = await room.stub.Predict(
            pb.PredictRequest(model_id="pipeline:mood", data=to_value("this is a great, lovely day"))
        )
        assert plain(mood.result)["label"] == "glad"
        many = await room.stub.BatchPredict(
            pb.BatchPredictRequest(model_id="all-minilm-l6-v2", data=[to_value("a"), to_value("b")])
        )
        assert len(many.results[1].result.list_value.values) == 384


@pytest.mark.parametrize(
    ("text", "allowed", "kind"),
    [("Could you tell me the opening hours?", True, "fine"), ("Shut up, you stupid idiot!", False, "harassment")],
)
async def test_the_shipped_moderation_judges_by_nearness(
    tmp_path: Path, minilm: Path, text: str, allowed: bool, kind: str
) -> None:
    async with around(tmp_path, house=house_at(tmp_path, embedding=str(minilm))) as room:
        asked = pb.PredictRequest(model_id="pipeline:content-moderation", data=to_value(text))
        found = await room.stub.Predict(asked)
    assert plain(found.result) == {"allowed": allowed, "kind": kind}


async def test_the_shipped_recommendation_reads_the_feature_vector(tmp_path: Path) -> None:
    async with around(tmp_path) as room:
        asked = pb.PredictRequest(
            model_id="pipeline:recommend", data=to_value({"user_id": "7"}), parameters=to_struct({"model": "small"})
        )
        assert plain((await room.stub.Predict(asked)).result) == '{"TIER":"GOLD"}'
        with pytest.raises(Invalid, match="nothing at 'model'"):
            await room.stub.Predict(pb.PredictRequest(model_id=asked.model_id, data=asked.data))


async def test_events_carry_figures_without_texts_and_feedback_scores_the_record(tmp_path: Path) -> None:
    async with nats_server(tmp_path) as url, around(tmp_path, house=house_at(tmp_path, bus_url=url)) as room:
        heard: list[Event] = []

        async def hear(event: Event) -> None:
            heard.append(event)

        async with open_bus(url, name="outsider") as bus, asyncio.TaskGroup() as tasks:
            watching = tasks.create_task(bus.watch(["executor.*.*"], hear, since_now=False))
            instructed = Plan(
                shape=Shape.SEQUENTIAL,
                stages=(Stage(name="main", role=Role.MAIN, model="large", instruction="hush"),),
            )
            context = types_pb2.RequestContext(task="greeting", metadata={"label": "private"})
            with as_caller(Caller("acme")):
                end = await finished(room.stub.Run(request(instructed, "whisper this", context=context)))
            await eventually(lambda: bool(heard))
            assert heard[0].type == "executor.execution.completed"
            assert heard[0].tenant == "acme"
            for word in (b"hush", b"whisper", b"WHISPER", b"private"):
                assert word not in heard[0].data
            told = events_pb2.ExecutionCompleted.FromString(heard[0].data)
            assert told.execution_id == end.execution_id
            assert told.context.task == "greeting"
            assert told.plan.configuration_id == instructed.configuration_id
            unheard = events_pb2.FeedbackRecorded(feedback_id="u", execution_id="never run", score=1.0)
            said = events_pb2.FeedbackRecorded(feedback_id="f", execution_id=end.execution_id, score=0.25)
            far_s = 4e9  # told in the future, it is waited for all along
            for id_, body, time_s in (("u", unheard, far_s), ("f", said, 1.0), ("f", said, 1.0)):
                event = Event(
                    id=id_,
                    type="learner.feedback.recorded",
                    tenant="acme",
                    time_s=time_s,
                    data=body.SerializeToString(),
                )
                await bus.publish(event)

            async def scored() -> bool:
                with as_caller(Caller("acme")):
                    found = await room.stub.GetExecution(pb.GetExecutionRequest(id=end.execution_id))
                return [(score.source, score.value) for score in found.execution.scores] == [("feedback", 0.25)]

            await eventually(scored)
            watching.cancel()


async def ended(stub: Any, run_id: str) -> pb.Run:
    async for change in stub.WatchRun(pb.WatchRunRequest(id=run_id)):
        last = change.run
    return last


async def test_a_request_id_stands_for_what_was_asked_and_nothing_else(tmp_path: Path) -> None:
    async with around(tmp_path) as room:

        async def submit(**fields: Any) -> str:
            return str((await room.stub.SubmitRun(pb.SubmitRunRequest(**fields))).run.id)

        first = await submit(run=request(LARGE, request_id="a"))
        assert await submit(run=request(LARGE, request_id="a")) == first
        with pytest.raises(Conflict) as caught:
            await submit(run=request(LARGE, "good morning", request_id="a"))
        assert caught.value.code == "request_id_reused"
        planned = await submit(run=request(LARGE, request_id="b"), asked="auto")
        assert await submit(run=request(CASCADE, request_id="b"), asked="auto") == planned
        with pytest.raises(Conflict):
            await submit(run=request(LARGE, request_id="b"), asked="another")


async def test_a_background_run_is_submitted_watched_and_announced(tmp_path: Path) -> None:
    async with around(tmp_path) as room:
        asked = pb.SubmitRunRequest(run=request(CASCADE, request_id="once"))
        run = (await room.stub.SubmitRun(asked)).run
        same = (await room.stub.SubmitRun(asked)).run
        assert run.state == "queued"
        assert same.id == run.id
        end = await ended(room.stub, run.id)
        assert end.state == "succeeded"
        assert [stage.name for stage in end.stages] == ["fast", "main"]
        assert end.result.choices[0].message.content == "HELLO THERE"
        record = await room.stub.GetExecution(pb.GetExecutionRequest(id=end.result.execution_id))
        assert record.execution.outcome == "succeeded"
        with as_caller(Caller("other")), pytest.raises(Missing):
            await room.stub.GetRun(pb.GetRunRequest(id=run.id))
        with pytest.raises(Missing):
            await room.stub.SubmitRun(pb.SubmitRunRequest(run=request(sequential("nothing"))))


async def test_a_background_run_is_cancelled_down_to_the_model(tmp_path: Path) -> None:
    async with around(tmp_path) as room:
        room.adapters.hold.add("large")
        run = (await room.stub.SubmitRun(pb.SubmitRunRequest(run=request(LARGE)))).run
        await eventually(lambda: bool(room.adapters.asked))
        await room.stub.CancelRun(pb.CancelRunRequest(id=run.id))
        end = await ended(room.stub, run.id)
        assert end.state == "cancelled"
        await asyncio.wait_for(room.adapters.cancelled.wait(), 30)


async def test_a_run_goes_on_after_a_restart_without_calling_a_finished_stage_again(tmp_path: Path) -> None:
    house = house_at(tmp_path)
    async with neighbours(house) as (adapters, _, _):
        adapters.hold.add("large")
        async with executor(house) as stub:
            run = (await stub.SubmitRun(pb.SubmitRunRequest(run=request(CASCADE)))).run
            await eventually(lambda: [one.model for one in adapters.asked] == ["small", "large"])
        adapters.released.set()
        async with executor(house) as stub:
            end = await ended(stub, run.id)
            assert end.state == "succeeded"
            figures = (await stub.GetMetrics(pb.GetMetricsRequest())).pipelines
        assert [one.model for one in adapters.asked] == ["small", "large", "large"]
        assert [stage.name for stage in end.result.stages] == ["fast", "main"]
        assert figures[0].executions == 1, "the attempt that was put down left no record of its own"


@pytest.mark.parametrize("kind", ["executions", "pipelines and runs"])
async def test_the_same_on_postgresql(tmp_path: Path, kind: str) -> None:
    async with postgres() as url, around(tmp_path, house=house_at(tmp_path, sql_url=url), examples=False) as room:
        if kind == "executions":
            end = await finished(room.stub.Run(request(LARGE)))
            await asyncio.sleep(0.2)
            record = await room.stub.GetExecution(pb.GetExecutionRequest(id=end.execution_id))
            assert record.execution.usage.output_tokens == 2
            assert (await room.stub.GetMetrics(pb.GetMetricsRequest())).pipelines[0].executions == 1
            return
        body = pb.Pipeline(name="tidy", steps=[step("a", "preprocess", operations=["strip"])])
        await room.stub.PutPipeline(pb.PutPipelineRequest(pipeline=body))
        assert len((await room.stub.ListPipelines(pb.ListPipelinesRequest())).pipelines) == 1
        run = (await room.stub.SubmitRun(pb.SubmitRunRequest(run=request(CASCADE)))).run
        assert (await ended(room.stub, run.id)).state == "succeeded"


def test_values_survive_the_wire() -> None:
    data = {"a": [1, 2.5, "x", None, True], "b": {"c": -3}}
    assert plain(to_value(data)) == data
    assert isinstance(plain(struct_pb2.Value(number_value=3)), int)
