"""The gateway as clients see it: the official OpenAI client, plain HTTP and the SDK, over scripted rooms."""

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
import openai
import pytest
from prometheus_client.parser import text_string_to_metric_families

from catena.kit.errors import Denied, Missing
from catena.kit.telemetry import open_admin
from catena.kit.testing import eventually
from catena.sdk.client import AsyncCatena
from tests.contract.gateway.rooms import Behind, gateway_with_rooms


@pytest.fixture
async def behind(tmp_path: Path) -> AsyncIterator[Behind]:
    async with gateway_with_rooms(tmp_path, max_body_bytes=20_000) as running:
        yield running


def client(behind: Behind, key: str = "") -> openai.AsyncOpenAI:
    return openai.AsyncOpenAI(base_url=f"{behind.url}/v1", api_key=key or behind.key, max_retries=0)


def hello(model: str = "base") -> dict[str, Any]:
    return {"model": model, "messages": [{"role": "user", "content": "one two three"}]}


async def post(behind: Behind, path: str, body: Any, key: str = "") -> tuple[int, Any]:
    headers = {"Authorization": f"Bearer {key or behind.key}"}
    async with aiohttp.ClientSession(behind.url, headers=headers) as http, http.post(path, json=body) as answer:
        return answer.status, await answer.json()


async def figures(behind: Behind, key: str = "") -> Any:
    headers = {"Authorization": f"Bearer {key or behind.key}"}
    async with aiohttp.ClientSession(behind.url, headers=headers) as http, http.get("/dashboard/data") as told:
        return await told.json()


async def test_the_official_client_gets_an_answer_with_its_account(behind: Behind) -> None:
    raw = await client(behind).chat.completions.with_raw_response.create(**hello())
    answer = raw.parse()
    assert answer.choices[0].message.content == "one two three"
    assert answer.usage is not None
    assert (answer.usage.prompt_tokens, answer.usage.total_tokens) == (3, 6)
    told = (answer.model_extra or {})["catena"]
    assert told["plan"]["shape"] == "sequential"
    assert told["stages"][0]["model"] == "base"
    assert told["trace_id"] == raw.headers["x-catena-trace-id"]
    assert raw.headers["x-catena-execution-id"] == told["execution_id"]
    assert answer.id == f"chatcmpl-{told['execution_id']}"
    assert behind.router.asked == []
    assert behind.executor.tenants == ["default"]


async def test_what_vllm_adds_to_openai_travels_to_the_executor(behind: Behind) -> None:
    schema = {"type": "object", "properties": {"zeta": {"type": "string"}, "alpha": {"type": "integer"}}}
    format_ = {"type": "json_schema", "json_schema": {"name": "answer", "schema": schema, "strict": True}}
    more = {"top_k": 5, "min_p": 0.25, "repetition_penalty": 1.5, "ignore_eos": True, "min_tokens": 3}
    ask = client(behind).chat.completions.create
    await ask(**hello(), response_format=format_, logit_bias={"7": -50}, extra_body=more)
    await ask(**hello(), response_format={"type": "json_object"}, extra_body={"top_k": -1})
    for asked in ({"regex": "a+"}, {"choice": ["yes", "no"]}, {"json": schema}, {"json": json.dumps(schema)}):
        await client(behind).completions.create(model="base", prompt="go", extra_body={"structured_outputs": asked})

    requests = [asked.request for asked in behind.executor.asked]
    sampling = requests[0].sampling
    assert (sampling.top_k, sampling.min_p, sampling.repetition_penalty) == (5, 0.25, 1.5)
    assert (sampling.ignore_eos, sampling.min_tokens) == (True, 3)
    assert dict(sampling.logit_bias) == {7: -50.0}
    assert requests[1].sampling.top_k == 0
    assert not requests[1].sampling.HasField("repetition_penalty")
    texts = [request.json_schema_text for request in requests]
    assert [list(json.loads(text).get("properties", {})) for text in texts if text] == [
        ["zeta", "alpha"], [], ["zeta", "alpha"], ["zeta", "alpha"]
    ]  # fmt: skip
    assert (requests[2].regex, list(requests[3].choices)) == ("a+", ["yes", "no"])


async def test_a_stream_ends_with_usage_account_and_done(behind: Behind) -> None:
    stream = await client(behind).chat.completions.create(
        **hello(), stream=True, stream_options={"include_usage": True}
    )
    chunks = [chunk async for chunk in stream]
    assert chunks[0].choices[0].delta.role == "assistant"
    assert "".join(c.choices[0].delta.content or "" for c in chunks if c.choices) == "one two three"
    assert [c.choices[0].finish_reason for c in chunks if c.choices][-1] == "stop"
    assert chunks[-1].usage is not None
    assert chunks[-1].usage.completion_tokens == 3
    assert (chunks[-1].model_extra or {})["catena"]["cost_usd"] == 0.001


async def test_a_stream_that_breaks_off_ends_with_an_error_and_no_done(behind: Behind) -> None:
    async with (
        aiohttp.ClientSession(headers={"Authorization": f"Bearer {behind.key}"}) as http,
        http.post(f"{behind.url}/v1/chat/completions", json={**hello("cut"), "stream": True}) as answer,
    ):
        body = await answer.text()
    assert answer.status == 200
    assert "stream_cut" in body
    assert "[DONE]" not in body


async def test_a_stream_that_fails_before_its_first_word_keeps_its_status(behind: Behind) -> None:
    with pytest.raises(openai.NotFoundError) as told:
        await client(behind).chat.completions.create(**hello("nothing"), stream=True)
    assert told.value.code == "unknown_model"


@pytest.mark.parametrize("stream", [False, True])
async def test_a_client_that_goes_away_before_the_first_word_cancels_the_models_too(
    behind: Behind, stream: bool
) -> None:
    asking = asyncio.create_task(client(behind).chat.completions.create(**hello("stuck"), stream=stream))
    async with asyncio.timeout(30):
        await behind.executor.began.wait()
        asking.cancel()
        await behind.executor.cancelled.wait()


async def test_a_client_that_goes_away_cancels_the_models(behind: Behind) -> None:
    stream = await client(behind).chat.completions.create(**hello("slow"), stream=True)
    async for chunk in stream:
        if chunk.choices[0].delta.content:
            break
    await stream.close()
    async with asyncio.timeout(30):
        await behind.executor.cancelled.wait()

    async def counted() -> bool:
        view = await figures(behind)
        return (view["requests"], view["cancelled"], view["failures"]) == (1, 1, 0)

    await eventually(counted)


async def test_auto_and_forced_strategies_ask_the_router_with_their_context(behind: Behind) -> None:
    headers = {"X-Pipeline-Type": "parallel-consensus", "X-Catena-Task": "sums", "X-Catena-Max-Cost": "0.5"}
    await client(behind).chat.completions.create(**hello("auto"), extra_headers=headers, metadata={"agent_id": "a7"})
    (asked,) = behind.router.asked
    assert asked.shape == 4
    assert (asked.context.task, asked.context.max_cost_usd, asked.context.agent_id) == ("sums", 0.5, "a7")


async def test_only_who_names_no_model_may_be_answered_by_any(behind: Behind) -> None:
    for model in ("auto", "base", "base@auto"):
        await client(behind).chat.completions.create(**hello(model))
    assert [run.any_model for run in behind.executor.asked] == [True, False, False]


@pytest.mark.parametrize(
    ("change", "headers", "status", "code"),
    [
        ({"model": "nothing"}, {}, 404, "unknown_model"),
        ({"model": ""}, {}, 400, "missing_model"),
        ({"messages": []}, {}, 400, "missing_messages"),
        ({"messages": "hello"}, {}, 400, "bad_request"),
        ({"messages": [{"role": "wizard", "content": "x"}]}, {}, 400, "bad_role"),
        ({"temperature": 9}, {}, 400, "bad_parameter"),
        ({"max_tokens": -1}, {}, 400, "bad_parameter"),
        ({"n": 99}, {}, 400, "bad_parameter"),
        ({"top_k": -2}, {}, 400, "bad_parameter"),
        ({"min_p": 1.5}, {}, 400, "bad_parameter"),
        ({"repetition_penalty": 0}, {}, 400, "bad_parameter"),
        ({"max_tokens": 4, "min_tokens": 5}, {}, 400, "bad_parameter"),
        ({"logit_bias": {"5": -101}}, {}, 400, "bad_parameter"),
        ({"logit_bias": {"-5": 1}}, {}, 400, "bad_parameter"),
        ({"logit_bias": {"five": 1}}, {}, 400, "bad_request"),
        ({"response_format": {"type": "json_schema"}}, {}, 400, "bad_response_format"),
        ({"structured_outputs": {}}, {}, 400, "bad_structured_outputs"),
        ({"structured_outputs": {"regex": "a", "choice": ["a"]}}, {}, 400, "bad_structured_outputs"),
        ({"structured_outputs": {"grammar": "root ::= x"}}, {}, 400, "bad_request"),
        ({}, {"X-Pipeline-Type": "tree"}, 400, "unknown_pipeline_type"),
        ({}, {"X-Catena-Max-Cost": "-1"}, 400, "bad_cap"),
        ({}, {"X-Catena-Max-Latency": "nan"}, 400, "bad_cap"),
        ({}, {"X-Catena-Objective": "luck"}, 400, "unknown_objective"),
        ({"model": "busy"}, {}, 429, "queue_full"),
        ({"model": "stuck"}, {"X-Catena-Max-Latency": "50"}, 504, "deadline_exceeded"),
        ({"model": "auto"}, {"X-Catena-Max-Latency": "0.0001"}, 504, "deadline_exceeded"),
        ({}, {"Authorization": "Bearer nonsense"}, 401, "invalid_api_key"),
        ({"messages": [{"role": "user", "content": "x" * 30_000}]}, {}, 413, "body_too_large"),
    ],
)
async def test_bad_requests_get_openai_shaped_errors(
    behind: Behind, change: dict[str, Any], headers: dict[str, str], status: int, code: str
) -> None:
    sent = {"Authorization": f"Bearer {behind.key}", **headers}
    async with (
        aiohttp.ClientSession() as http,
        http.post(f"{behind.url}/v1/chat/completions", json={**hello(), **change}, headers=sent) as answer,
    ):
        told = await answer.json()
    assert (answer.status, told["error"]["code"]) == (status, code)
    assert set(told["error"]) == {"message", "type", "param", "code"}
    if code == "deadline_exceeded":
        assert f"max_latency_ms {headers['X-Catena-Max-Latency']}" in told["error"]["message"]
    if code == "queue_full":
        assert answer.headers["retry-after"] == "3"


@pytest.mark.parametrize("raw", [b"{", b"", b"[1]", b'{"model": NaN}', b"\xff\xfe", b"[" * 15_000])
async def test_what_is_no_json_request_is_refused(behind: Behind, raw: bytes) -> None:
    headers = {"Authorization": f"Bearer {behind.key}", "Content-Type": "application/json"}
    async with (
        aiohttp.ClientSession(headers=headers) as http,
        http.post(f"{behind.url}/v1/chat/completions", data=raw) as answer,
    ):
        assert answer.status == 400
        assert (await answer.json())["error"]["code"] in ("bad_json", "bad_request", "too_deep")


@pytest.mark.parametrize(
    ("verb", "path"),
    [("POST", "/v1/completions"), ("POST", "/v1/feedback"), ("POST", "/v1/keys"), ("PUT", "/v1/pipelines")],
)
@pytest.mark.parametrize("told", [True, False], ids=["with its length", "in chunks"])
async def test_every_route_refuses_a_body_that_is_too_long(behind: Behind, verb: str, path: str, told: bool) -> None:
    async def in_chunks() -> AsyncIterator[bytes]:
        for _ in range(30):
            yield b" " * 1000

    headers = {"Authorization": f"Bearer {behind.key}", "Content-Type": "application/json"}
    async with (
        aiohttp.ClientSession(headers=headers) as http,
        http.request(verb, f"{behind.url}{path}", data=b" " * 30_000 if told else in_chunks()) as answer,
    ):
        assert (answer.status, (await answer.json())["error"]["code"]) == (413, "body_too_large")


@pytest.mark.parametrize(("verb", "path"), [("POST", "/v1/keys"), ("PUT", "/v1/pipelines")])
@pytest.mark.parametrize(("raw", "code"), [(b"{", "bad_json"), (b"[1]", "bad_request"), (b"\xff", "bad_json")])
async def test_every_route_says_in_the_same_words_what_is_no_request(
    behind: Behind, verb: str, path: str, raw: bytes, code: str
) -> None:
    async with (
        aiohttp.ClientSession(headers={"Authorization": f"Bearer {behind.key}"}) as http,
        http.request(verb, f"{behind.url}{path}", data=raw) as answer,
    ):
        told = await answer.json()
    assert (answer.status, told["error"]["code"]) == (400, code)
    assert set(told["error"]) == {"message", "type", "param", "code"}


async def test_errors_name_their_type_as_openai_does(behind: Behind) -> None:
    _, made = await post(behind, "/v1/keys", {"tenant": "default"})
    _, denied = await post(behind, "/v1/keys", {"tenant": "default"}, made["key"])
    _, unknown = await post(behind, "/v1/keys", {"tenant": "default"}, "ck-nonsense")
    assert [told["error"]["type"] for told in (denied, unknown)] == ["permission_error", "authentication_error"]


async def test_a_field_that_does_not_fit_is_named_as_documented(behind: Behind) -> None:
    status, told = await post(behind, "/v1/memory/search", {"colection": "x"})
    assert (status, "n_results" in told["error"]["message"], "nResults" in told["error"]["message"]) == (
        400,
        True,
        False,
    )


async def test_true_is_no_number(behind: Behind) -> None:
    for body in ({"collection": "x", "n_results": True}, {"collection": "x", "nResults": False}):
        status, told = await post(behind, "/v1/memory/search", body)
        assert (status, "n_results is a number" in told["error"]["message"]) == (400, True)
    sop = {"name": "a", "triggers": ["b"], "priority": True}
    async with (
        aiohttp.ClientSession(headers={"Authorization": f"Bearer {behind.key}"}) as http,
        http.put(f"{behind.url}/v1/memory/sops", json={"sop": sop}) as answer,
    ):
        assert answer.status == 400


async def test_models_name_their_parents(behind: Behind) -> None:
    listed = {model.id: model for model in (await client(behind).models.list()).data}
    assert set(listed) == {"auto", "base", "base@code"}
    assert (listed["base@code"].model_extra or {})["parent"] == "base"


async def test_embeddings_come_in_order_as_floats_or_base64(behind: Behind) -> None:
    made = await client(behind).embeddings.create(model="minilm", input=["a", "four"])
    assert [item.embedding for item in made.data] == [[1.0, 0.5], [4.0, 0.5]]


async def test_several_prompts_are_answered_in_order_as_one_completion(behind: Behind) -> None:
    asked: Any = {"model": "base", "prompt": ["one two", "three"]}
    answer = await client(behind).completions.create(**asked)
    assert [(choice.index, choice.text) for choice in answer.choices] == [(0, "one two"), (1, "three")]
    assert answer.usage is not None
    assert answer.usage.prompt_tokens == 3
    assert (answer.model_extra or {})["catena"]["cost_usd"] == pytest.approx(0.002)
    texts = {0: "", 1: ""}
    async for chunk in await client(behind).completions.create(**asked, stream=True):
        for choice in chunk.choices:
            texts[choice.index] += choice.text
    assert texts == {0: "one two", 1: "three"}
    assert (await figures(behind))["cost_usd"] == pytest.approx(0.004)


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/embeddings", {"input": "a", "dimensions": 10}),
        ("/v1/embeddings", {"input": "a", "encoding_format": "xyz"}),
        ("/v1/completions", {"model": "base", "prompt": "a", "echo": True}),
        ("/v1/completions", {"model": "base", "prompt": "a", "best_of": 3}),
        ("/v1/completions", {"model": "base", "prompt": "a", "suffix": "b"}),
        ("/v1/completions", {"model": "base", "prompt": []}),
        ("/v1/completions", {"model": "base", "prompt": ["a"] * 129}),
    ],
)
async def test_what_is_not_served_is_refused_rather_than_passed_over(behind: Behind, path: str, body: Any) -> None:
    assert (await post(behind, path, body))[0] == 400


async def test_dimensions_that_the_model_has_are_no_mistake(behind: Behind) -> None:
    assert (await post(behind, "/v1/embeddings", {"input": "a", "dimensions": 2}))[0] == 200


async def test_feedback_on_an_answers_id_reaches_the_learner(behind: Behind) -> None:
    answer = await client(behind).chat.completions.create(**hello())
    async with aiohttp.ClientSession(headers={"Authorization": f"Bearer {behind.key}"}) as http:
        body = {"id": answer.id, "thumbs": "down", "correction": "right"}
        async with http.post(f"{behind.url}/v1/feedback", json=body) as told:
            assert (await told.json())["id"] == "f-1"
    (execution_id,) = behind.executor.records
    assert (behind.learner.heard[0].execution_id, behind.learner.heard[0].thumbs) == (execution_id, -1)


@pytest.mark.parametrize("chat", [True, False])
async def test_feedback_on_a_streams_id_reaches_its_execution(behind: Behind, chat: bool) -> None:
    ask = client(behind)
    if chat:
        ids = {chunk.id async for chunk in await ask.chat.completions.create(**hello(), stream=True)}
    else:
        ids = {chunk.id async for chunk in await ask.completions.create(model="base", prompt="one two", stream=True)}
    (id_,) = ids
    assert id_.startswith("chatcmpl-" if chat else "cmpl-")
    assert (await post(behind, "/v1/feedback", {"id": id_, "thumbs": 1}))[0] == 200
    assert [heard.execution_id for heard in behind.learner.heard] == list(behind.executor.records)


@pytest.mark.parametrize("id_", ["chatcmpl-0198c0de", "nonsense", "theirs"])
async def test_feedback_on_what_the_tenant_never_ran_is_refused(behind: Behind, id_: str) -> None:
    behind.executor.records["theirs"] = "another"
    status, told = await post(behind, "/v1/feedback", {"id": id_, "thumbs": 1})
    assert (status, told["error"]["code"]) == (404, "unknown_execution")
    assert behind.learner.heard == []


async def test_feedback_may_overtake_the_record_of_its_execution(behind: Behind) -> None:
    judging = asyncio.create_task(post(behind, "/v1/feedback", {"execution_id": "soon", "thumbs": 1}))
    async with asyncio.timeout(30):
        await behind.executor.looked.wait()
    behind.executor.records["soon"] = "default"
    assert (await judging)[0] == 200


async def test_predict_answers_result_and_latency(behind: Behind) -> None:
    async with (
        aiohttp.ClientSession(headers={"Authorization": f"Bearer {behind.key}"}) as http,
        http.post(f"{behind.url}/api/predict", json={"model_id": "pipeline:p", "data": [1, "x"]}) as told,
    ):
        answer = await told.json()
    assert (answer["result"], answer["latency"]) == ([1, "x"], 2.5)


async def test_the_dashboard_counts_the_requests_that_were_sent(behind: Behind) -> None:
    for _ in range(3):
        await client(behind).chat.completions.create(**hello())
    with pytest.raises(openai.NotFoundError):
        await client(behind).chat.completions.create(**hello("nothing"))
    async with (
        aiohttp.ClientSession(headers={"Authorization": f"Bearer {behind.key}"}) as http,
        http.get(f"{behind.url}/dashboard/data") as told,
    ):
        view = await told.json()
        async with http.get(f"{behind.url}/dashboard") as page:
            assert "<title>Catena</title>" in await page.text()
    assert (view["requests"], view["failures"], view["refused"]) == (4, 0, 1)
    assert view["tiers"] == [{"tier": "host", "adapters": 3, "bytes": 42, "budget_bytes": 100, "evictions": 7}]
    assert view["by_model"] == {"base": 3}
    assert view["saved_percent"] == 0.0


async def test_prometheus_reads_what_was_saved_under_both_names(behind: Behind) -> None:
    for _ in range(2):
        await client(behind).chat.completions.create(**hello())
    async with (
        open_admin(0, dict) as port,
        aiohttp.ClientSession() as http,
        http.get(f"http://127.0.0.1:{port}/metrics") as told,
    ):
        families = {family.name: family for family in text_string_to_metric_families(await told.text())}
    saved_usd = 2 * (3 * (1.0 + 4.0) / 1e6 - 0.001)  # three tokens in and out at the base's price, less the cost told
    for name in ("alora_cost_savings_usd", "catena_gateway_cost_savings_usd"):
        told_usd = {sample.labels["time_window"]: sample.value for sample in families[name].samples}
        assert told_usd == {"1h": pytest.approx(saved_usd), "total": pytest.approx(saved_usd)}


async def test_a_new_key_has_its_tenant_and_limits_until_it_is_revoked(behind: Behind) -> None:
    async with aiohttp.ClientSession(headers={"Authorization": f"Bearer {behind.key}"}) as http:
        body = {"tenant": "default", "requests_per_minute": 1}
        async with http.post(f"{behind.url}/v1/keys", json=body) as told:
            made = await told.json()
        mine = client(behind, made["key"])
        await mine.chat.completions.create(**hello())
        with pytest.raises(openai.RateLimitError):
            await mine.chat.completions.create(**hello())
        with pytest.raises(openai.PermissionDeniedError):
            await mine.get("/keys", cast_to=object)
        async with http.delete(f"{behind.url}/v1/keys/{made['id']}"):
            pass
    with pytest.raises(openai.AuthenticationError):
        await mine.chat.completions.create(**hello())


async def test_the_sdk_asks_over_grpc_with_the_same_key(behind: Behind) -> None:
    async with AsyncCatena(behind.grpc, key=behind.key) as catena:
        answer = await catena.chat("one two", model="base", task="sums")
        assert (answer.text, [answer.execution_id]) == ("one two", list(behind.executor.records))
        assert await catena.feedback(answer.execution_id, thumbs=1) == "f-1"
        with pytest.raises(Missing):
            await catena.feedback("e-2", thumbs=1)
        assert await catena.embed(["abc"]) == [[3.0, 0.5]]
    assert behind.executor.asked[-1].context.task == "sums"
    async with AsyncCatena(behind.grpc, key="ck-wrong") as stranger:
        with pytest.raises(Denied):
            await stranger.chat("one", model="base")


async def test_spending_survives_a_restart(tmp_path: Path) -> None:
    async with gateway_with_rooms(tmp_path, spend_flush_s=0.05) as behind:
        await client(behind).chat.completions.create(**hello())
        headers = {"Authorization": f"Bearer {behind.key}"}
        await asyncio.sleep(0.2)
    async with gateway_with_rooms(tmp_path) as behind, aiohttp.ClientSession(headers=headers) as http:

        async def spent() -> bool:
            async with http.get(f"{behind.url}/v1/keys") as told:
                return bool((await told.json())["data"][0]["spent_usd"] == 0.001)

        await eventually(spent)
