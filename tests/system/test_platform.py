"""The platform as its users meet it, in one process and split over PostgreSQL."""

import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import jsonschema
import nats
import openai
import pytest
import pytest_asyncio
from rich.console import Console
from rich.progress import Progress

from catena.api.events.v1 import events_pb2
from catena.kit.testing import eventually, postgres
from catena.sdk.up import Platform
from demo import knowledge, strategies, tracing
from demo.desk import Desk, Row
from demo.questions import Question, questions
from tests.system.running import running_platform

pytestmark = pytest.mark.asyncio(loop_scope="module")
QUIET = Console(quiet=True)
REVERSE = Question("reverse", "reverse: stone", "enots")


@pytest_asyncio.fixture(scope="module", loop_scope="module", params=["one process", "split over PostgreSQL"])
async def running(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Platform]:
    home = tmp_path_factory.mktemp("home")
    if request.param == "one process":
        async with running_platform(home) as up:
            yield up
        return
    async with postgres() as url, running_platform(home, split=True, sql=url) as up:
        yield up


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def desk(running: Platform) -> AsyncIterator[Desk]:
    async with Desk(running.url, running.key) as opened:
        await strategies.remember_facts(opened)
        yield opened


@pytest.mark.parametrize("row", strategies.FIXED, ids=lambda row: row.name)
async def test_every_strategy_answers_with_an_account_that_adds_up(desk: Desk, row: Row) -> None:
    for question in questions(6, 31):
        asked = await desk.ask(question, row)
        assert not asked.error
        assert asked.cost_usd == pytest.approx(sum(float(stage["cost_usd"]) for stage in asked.stages))
        assert asked.tokens > 0
        assert asked.execution_id


async def test_auto_answers_and_says_which_plan_ran(desk: Desk) -> None:
    asked = await desk.ask(REVERSE, strategies.AUTO)
    assert not asked.error
    assert asked.told["plan"]["stages"]


async def test_a_stream_says_what_the_whole_answer_says(desk: Desk) -> None:
    whole = await desk.ask(REVERSE, Row(name="large", model="demo-large"))
    stream = await desk.openai.chat.completions.create(
        model="demo-large",
        messages=[{"role": "user", "content": REVERSE.text}],
        temperature=0,
        stream=True,
        stream_options={"include_usage": True},
    )
    chunks = [chunk async for chunk in stream]
    assert "".join(c.choices[0].delta.content or "" for c in chunks if c.choices) == whole.text
    assert chunks[-1].usage is not None
    assert chunks[-1].usage.completion_tokens > 0


@pytest.mark.parametrize(
    ("model", "headers", "status", "code"),
    [
        ("demo-huge", {}, 404, "unknown_model"),
        ("demo-large@nothing", {}, 404, "unknown_adapter"),
        ("demo-large@nothing:7", {}, 404, "unknown_adapter"),
        ("pipeline:nothing", {}, 404, "unknown_pipeline"),
        ("auto", {"X-Pipeline-Type": "tree"}, 400, "unknown_pipeline_type"),
        ("auto", {"X-Catena-Max-Cost": "-3"}, 400, "bad_cap"),
        ("auto", {"X-Catena-Max-Cost": "NaN"}, 400, "bad_cap"),
    ],
)
async def test_what_does_not_exist_is_an_error_and_never_the_bases_answer(
    desk: Desk, model: str, headers: dict[str, str], status: int, code: str
) -> None:
    with pytest.raises(openai.APIStatusError) as told:
        await desk.openai.chat.completions.create(
            model=model, messages=[{"role": "user", "content": "upper: tin"}], extra_headers=headers
        )
    assert (told.value.status_code, told.value.code) == (status, code)


async def test_an_over_long_prompt_says_what_fits(desk: Desk) -> None:
    with pytest.raises(openai.BadRequestError) as told:
        await desk.openai.chat.completions.create(
            model="demo-large", messages=[{"role": "user", "content": "upper: " + "tin " * 2000}]
        )
    assert told.value.code == "context_length_exceeded"


async def test_answers_look_as_the_official_client_asked(desk: Desk) -> None:
    schema = {
        "type": "object",
        "properties": {"word": {"type": "string", "maxLength": 8}, "length": {"type": "integer", "maximum": 99}},
        "required": ["word", "length"],
        "additionalProperties": False,
    }
    format_ = {"type": "json_schema", "json_schema": {"name": "word", "schema": schema, "strict": True}}
    turns = [{"role": "user", "content": "reverse: stone"}]
    ask = desk.openai.chat.completions.create
    for model in ("demo-small", "demo-large"):
        answer = await ask(model=model, messages=turns, response_format=format_)
        assert answer.choices[0].finish_reason == "stop"
        jsonschema.validate(json.loads(answer.choices[0].message.content), schema)
    chosen = await ask(
        model="demo-large", messages=turns, extra_body={"structured_outputs": {"choice": ["enots", "other"]}}
    )
    assert chosen.choices[0].message.content == "enots"

    format_["json_schema"]["schema"] = {"type": "array", "uniqueItems": True}
    with pytest.raises(openai.BadRequestError) as told:
        await ask(model="demo-large", messages=turns, response_format=format_)
    assert told.value.code == "bad_schema"


async def test_a_cap_that_no_plan_meets_says_by_how_much(desk: Desk) -> None:
    asked = await desk.ask(REVERSE, Row(name="auto"), max_cost="0.000000000001")
    assert asked.error == "no_plan_fits"


async def test_the_source_is_answered_from_memory_and_style_from_features(desk: Desk) -> None:
    with Progress(console=QUIET) as progress:
        found = await knowledge.ask_source(desk, progress)
    styles = await knowledge.change_style(desk)
    assert knowledge.failures(found, styles) == []


async def test_one_request_leaves_one_tree_of_spans_over_every_room(desk: Desk, running: Platform) -> None:
    spans = await tracing.follow_one(desk, running.home)
    assert tracing.failures(spans) == []
    ids = {span.span_id for span in spans}
    assert len([span for span in spans if span.parent_id not in ids]) == 1


async def test_an_outsider_hears_the_events_of_a_request_without_its_words(desk: Desk, running: Platform) -> None:
    client = await nats.connect((running.home / "run" / "nats.url").read_text().strip())
    heard: list[Any] = []

    async def keep(message: Any) -> None:
        heard.append(message)

    await client.subscribe("catena.*.executor.execution.completed.v1", cb=keep)
    await client.subscribe("catena.*.learner.feedback.recorded.v1", cb=keep)
    await client.flush()
    asked = await desk.ask(REVERSE, Row(name="large", model="demo-large"))
    await desk.feedback(asked, thumbs=1)
    await eventually(lambda: len(heard) >= 2, timeout_s=30)
    await client.drain()
    completed = next(m for m in heard if m.headers["ce-type"] == "executor.execution.completed")
    body = events_pb2.ExecutionCompleted.FromString(completed.data)
    assert body.execution_id == asked.execution_id
    assert b"stone" not in completed.data
    assert b"enots" not in completed.data
    recorded = next(m for m in heard if m.headers["ce-type"] == "learner.feedback.recorded")
    assert events_pb2.FeedbackRecorded.FromString(recorded.data).score == 1.0


async def test_the_dashboard_counts_what_was_sent(desk: Desk) -> None:
    before = await desk.call("GET", "/dashboard/data")
    for question in questions(5, 33):
        await desk.ask(question, Row(name="small", model="demo-small"))
    after = await desk.call("GET", "/dashboard/data")
    assert after["requests"] == before["requests"] + 5


async def test_prompts_and_secrets_stay_out_of_logs(desk: Desk, running: Platform) -> None:
    await desk.ask(Question("upper", "upper: quixotic", "QUIXOTIC"), Row(name="large", model="demo-large"))
    logs = "".join(path.read_text(errors="replace") for path in Path(running.home / "run").glob("*.log*"))
    assert "quixotic" not in logs.lower()
    assert running.key not in logs
    assert (running.home / "keys" / "service.token").read_text() not in logs


async def test_a_run_submitted_over_http_ends_in_the_background_with_its_answer(desk: Desk) -> None:
    whole = await desk.ask(REVERSE, Row(name="large", model="demo-large"))
    body = {"model": "demo-large", "messages": [{"role": "user", "content": REVERSE.text}], "temperature": 0}
    run = (await desk.call("POST", "/v1/runs", body))["run"]

    async def ended() -> bool:
        run.update((await desk.call("GET", f"/v1/runs/{run['id']}"))["run"])
        return run["state"] not in ("queued", "running")

    await eventually(ended, timeout_s=60)
    assert run["state"] == "succeeded"
    assert run["result"]["choices"][0]["message"]["content"] == whole.text


async def test_the_platform_lists_bases_as_models(desk: Desk) -> None:
    listed = {model.id for model in (await desk.openai.models.list()).data}
    assert {"auto", "demo-small", "demo-large"} <= listed
