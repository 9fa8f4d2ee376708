"""Background runs over HTTP: submitted, polled and cancelled at a real gateway over scripted rooms."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from catena.api.gateway.v1 import gateway_pb2
from catena.api.types.v1 import types_pb2
from catena.sdk.client import AsyncCatena, Catena
from tests.contract.gateway.rooms import Behind, gateway_with_rooms

pytestmark = pytest.mark.contract


@pytest.fixture
async def behind(tmp_path: Path) -> AsyncIterator[Behind]:
    async with gateway_with_rooms(tmp_path) as running:
        yield running


@pytest.fixture
async def http(behind: Behind) -> AsyncIterator[aiohttp.ClientSession]:
    async with aiohttp.ClientSession(behind.url, headers={"Authorization": f"Bearer {behind.key}"}) as session:
        yield session


def body(model: str = "base", **more: Any) -> dict[str, Any]:
    return {"model": model, "messages": [{"role": "user", "content": "one two"}], **more}


async def test_a_chat_is_accepted_for_the_background_then_polled_and_cancelled(
    behind: Behind, http: aiohttp.ClientSession
) -> None:
    sent = body(temperature=0.5, metadata={"task": "sums"})
    async with http.post("/v1/runs", json=sent, headers={"X-Catena-Max-Cost": "0.5"}) as answer:
        accepted = await answer.json()
    assert (answer.status, accepted["run"]["state"]) == (202, "queued")
    assert answer.headers["location"] == f"/v1/runs/{accepted['run']['id']}"
    (asked,) = behind.executor.asked
    assert [stage.model for stage in asked.plan.stages] == ["base"]
    assert (asked.request.messages[0].content, asked.request.sampling.temperature) == ("one two", 0.5)
    assert (asked.context.task, asked.context.max_cost_usd) == ("sums", 0.5)
    assert behind.executor.tenants == ["default"]
    async with http.get(answer.headers["location"]) as polled:
        assert await polled.json() == accepted
    async with http.delete(answer.headers["location"]) as ended:
        assert (await ended.json())["run"]["state"] == "cancelled"


async def test_the_router_plans_a_run_and_a_pipeline_needs_no_plan(behind: Behind, http: aiohttp.ClientSession) -> None:
    for model in ("auto", "pipeline:moderation"):
        async with http.post("/v1/runs", json=body(model)) as answer:
            assert answer.status == 202
    assert [asked.model for asked in behind.router.asked] == ["auto"]
    first, second = behind.executor.asked
    assert [stage.model for stage in first.plan.stages] == ["base"]
    assert second.plan.pipeline == "moderation"


async def test_a_repeat_under_its_idempotency_key_is_the_same_run(behind: Behind, http: aiohttp.ClientSession) -> None:
    ids = []
    for key in ("once", "once", ""):
        async with http.post("/v1/runs", json=body(), headers={"Idempotency-Key": key}) as answer:
            ids.append((await answer.json())["run"]["id"])
    assert ids[0] == ids[1] != ids[2]


async def test_over_grpc_a_run_is_the_same_run(behind: Behind, http: aiohttp.ClientSession) -> None:
    asked = types_pb2.ChatRequest(messages=[types_pb2.ChatMessage(role="user", content="one")])
    wanted = gateway_pb2.SubmitRunRequest(
        chat=gateway_pb2.ChatRequest(model="base", request=asked, no_cache=True), request_id="once"
    )
    async with AsyncCatena(behind.grpc, key=behind.key) as catena:
        run = (await catena.gateway.SubmitRun(wanted)).run
    assert behind.executor.asked[0].no_cache
    async with http.get(f"/v1/runs/{run.id}") as polled:
        assert (await polled.json())["run"]["state"] == "queued"


async def test_the_sdk_submits_watches_and_cancels(behind: Behind) -> None:
    async with AsyncCatena(behind.grpc, key=behind.key) as catena:
        run = await catena.submit("one two", model="base", task="sums", request_id="once", no_cache=True)
        assert (await catena.run(run.id)).state == run.state == "queued"
        states = []
        async for seen in catena.watch(run.id):
            if not states:
                await catena.cancel(run.id)
            states.append(seen.state)
    assert (states[0], states[-1]) == ("queued", "cancelled")
    (asked,) = behind.executor.asked
    assert (asked.context.task, asked.no_cache, asked.request.messages[0].content) == ("sums", True, "one two")


async def test_so_does_the_sdk_without_a_loop(behind: Behind) -> None:
    def work() -> list[str]:
        with Catena(behind.grpc, key=behind.key) as catena:
            run = catena.submit("one two", model="base")
            states = []
            for seen in catena.watch(run.id):
                states.append(seen.state)
                catena.cancel(run.id)
            return [*states, catena.run(run.id).state]

    states = await asyncio.to_thread(work)
    assert (states[0], states[-1]) == ("queued", "cancelled")


@pytest.mark.parametrize(
    ("sent", "status", "code"),
    [
        (body("pipeline:nothing"), 404, "unknown_pipeline"),
        (body(""), 400, "missing_model"),
        (body(stream=True), 400, "bad_parameter"),
        ({"model": "base"}, 400, "bad_request"),
    ],
)
async def test_what_cannot_run_is_refused_before_it_is_accepted(
    behind: Behind, http: aiohttp.ClientSession, sent: dict[str, Any], status: int, code: str
) -> None:
    async with http.post("/v1/runs", json=sent) as answer:
        assert (answer.status, (await answer.json())["error"]["code"]) == (status, code)
    assert behind.executor.runs == {}


async def test_a_run_counts_against_its_keys_requests(behind: Behind, http: aiohttp.ClientSession) -> None:
    async with http.post("/v1/keys", json={"tenant": "default", "requests_per_minute": 1}) as told:
        limited = {"Authorization": f"Bearer {(await told.json())['key']}"}
    statuses = []
    for _ in range(2):
        async with http.post("/v1/runs", json=body(), headers=limited) as answer:
            statuses.append(answer.status)
    assert statuses == [202, 429]
