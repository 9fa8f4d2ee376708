"""The official OpenAI client, unmodified, against a real gateway and executor: all that it can ask for."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import openai
import pydantic
import pytest

from catena.kit.testing import eventually
from tests.contract.gateway.whole import Whole, whole_gateway

pytestmark = pytest.mark.contract
ASK: Any = [{"role": "user", "content": "hello"}]
PIXEL = "data:image/png;base64,iVBORw0KGgo="


def tool(name: str) -> dict[str, Any]:
    parameters = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
    return {"type": "function", "function": {"name": name, "parameters": parameters}}


@pytest.fixture
async def whole(tmp_path: Path) -> AsyncIterator[Whole]:
    async with whole_gateway(tmp_path) as running:
        yield running


@pytest.fixture
async def client(whole: Whole) -> AsyncIterator[openai.AsyncOpenAI]:
    async with openai.AsyncOpenAI(base_url=f"{whole.url}/v1", api_key=whole.key, max_retries=0) as made:
        yield made


async def test_the_synchronous_client_asks_and_streams(whole: Whole) -> None:
    def ask() -> tuple[Any, str]:
        with openai.OpenAI(base_url=f"{whole.url}/v1", api_key=whole.key, max_retries=0) as client:
            answer = client.chat.completions.create(model="far", messages=ASK)
            chunks = client.chat.completions.create(model="far", messages=ASK, stream=True)
            return answer, "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)

    answer, streamed = await asyncio.to_thread(ask)
    assert answer.choices[0].message.content == streamed == "Hello from afar"
    assert (answer.usage.prompt_tokens, answer.usage.prompt_tokens_details.cached_tokens) == (12, 8)
    assert answer._request_id == answer.catena["trace_id"]


async def test_parallel_tools_and_the_turn_after_them(whole: Whole, client: openai.AsyncOpenAI) -> None:
    tools: Any = [tool("weather"), tool("time")]
    first = await client.chat.completions.create(model="far", messages=ASK, tools=tools, tool_choice="required")
    (choice,) = first.choices
    calls = choice.message.tool_calls or []
    assert choice.finish_reason == "tool_calls"
    assert [(call.id, call.function.name, call.function.arguments) for call in calls if call.type == "function"] == [
        ("call_0", "weather", '{"city":"Rome"}'),
        ("call_1", "time", '{"city":"Rome"}'),
    ]
    answers: Any = [{"role": "tool", "tool_call_id": call.id, "content": "fine"} for call in calls]
    turns: Any = [*ASK, choice.message, *answers]
    second = await client.chat.completions.create(model="far", messages=turns, tools=tools)
    assert second.choices[0].message.content == "Hello from afar"
    sent = whole.model.bodies[-1]["messages"]
    assert [call["id"] for call in sent[1]["tool_calls"]] == ["call_0", "call_1"]
    assert [turn["tool_call_id"] for turn in sent[2:]] == ["call_0", "call_1"]


async def test_streamed_tool_calls_keep_index_id_and_arguments(client: openai.AsyncOpenAI) -> None:
    tools: Any = [tool("weather"), tool("time")]
    async with client.chat.completions.stream(model="far", messages=ASK, tools=tools) as stream:
        final = await stream.get_final_completion()
    calls = final.choices[0].message.tool_calls or []
    assert [(call.id, call.function.name, call.function.arguments) for call in calls] == [
        ("call_0", "weather", '{"city":"Rome"}'),
        ("call_1", "time", '{"city":"Rome"}'),
    ]
    assert final.choices[0].finish_reason == "tool_calls"


async def test_no_chunk_has_two_fragments_of_a_call_which_older_clients_take_for_two_calls(
    client: openai.AsyncOpenAI,
) -> None:
    tools: Any = [tool("weather"), tool("time")]
    stream = await client.chat.completions.create(model="far", messages=ASK, tools=tools, stream=True)
    deltas = [chunk.choices[0].delta.tool_calls or [] async for chunk in stream if chunk.choices]
    places = [[call.index for call in calls] for calls in deltas]
    assert {place for row in places for place in row} == {0, 1}
    assert all(len(set(row)) == len(row) for row in places), places


async def test_one_call_at_a_time_is_told_and_is_one_call(whole: Whole, client: openai.AsyncOpenAI) -> None:
    asked: Any = {"model": "far", "messages": ASK, "tools": [tool("weather"), tool("time")]}
    plain = await client.chat.completions.create(**asked, parallel_tool_calls=False)
    async with client.chat.completions.stream(**asked, parallel_tool_calls=False) as stream:
        streamed = await stream.get_final_completion()
    for answer in (plain, streamed):
        assert [call.id for call in answer.choices[0].message.tool_calls or []] == ["call_0"]
        assert answer.choices[0].finish_reason == "tool_calls"
    assert [body["parallel_tool_calls"] for body in whole.model.bodies] == [False, False]


async def test_a_background_run_of_one_call_at_a_time_ends_with_one(client: openai.AsyncOpenAI) -> None:
    asked: Any = {"model": "far", "messages": ASK, "tools": [tool("weather"), tool("time")]}
    run = (await client.post("/runs", cast_to=dict[str, Any], body=asked | {"parallel_tool_calls": False}))["run"]

    async def ended() -> bool:
        run.update((await client.get(f"/runs/{run['id']}", cast_to=dict[str, Any]))["run"])
        return bool(run["state"] == "succeeded")

    await eventually(ended)
    (choice,) = run["result"]["choices"]
    assert [call["name"] for call in choice["message"]["tool_calls"]] == ["weather"]


async def test_parse_gives_an_object_of_the_schema(whole: Whole, client: openai.AsyncOpenAI) -> None:
    class Place(pydantic.BaseModel):
        city: str
        people: int

    answer = await client.chat.completions.parse(model="far", messages=ASK, response_format=Place)
    assert answer.choices[0].message.parsed == Place(city="Rome", people=7)
    sent = whole.model.bodies[-1]["response_format"]["json_schema"]["schema"]
    assert set(sent["properties"]) == {"city", "people"}


async def test_images_stop_seed_and_logprobs_reach_the_model(whole: Whole, client: openai.AsyncOpenAI) -> None:
    parts: Any = [{"type": "text", "text": "what is it?"}, {"type": "image_url", "image_url": {"url": PIXEL}}]
    answer = await client.chat.completions.create(
        model="far", messages=[{"role": "user", "content": parts}], stop=["END"], seed=7, logprobs=True, top_logprobs=2
    )
    sent = whole.model.bodies[-1]
    assert sent["messages"][0]["content"][1]["image_url"]["url"] == PIXEL
    assert (sent["stop"], sent["seed"], sent["top_logprobs"]) == (["END"], 7, 2)
    logprobs = answer.choices[0].logprobs
    assert logprobs is not None
    assert [token.token for token in logprobs.content or []] == ["Hello", " from", " afar"]


async def test_embeddings_and_models(client: openai.AsyncOpenAI) -> None:
    made = await client.embeddings.create(model="far-embed", input=["a", "four"])
    assert [row.embedding for row in made.data] == [[1.0, 1.0], [4.0, 1.0]]
    assert {"auto", "far", "small"} <= {model.id async for model in client.models.list()}
    assert (await client.models.retrieve("far")).owned_by == "openai"
    with pytest.raises(openai.NotFoundError):
        await client.models.retrieve("nowhere")


@pytest.mark.parametrize("number", [[1, 2], [[1, 2], [3]]])
async def test_numbers_of_tokens_are_refused_with_what_to_do(client: openai.AsyncOpenAI, number: Any) -> None:
    for ask in (client.embeddings.create(model="far-embed", input=number),
                client.completions.create(model="small", prompt=number)):  # fmt: skip
        with pytest.raises(openai.BadRequestError, match="send texts") as told:
            await ask
        assert told.value.code == "tokens_not_served"


async def test_errors_are_the_clients_own(whole: Whole, client: openai.AsyncOpenAI) -> None:
    stranger = client.with_options(api_key="ck-wrong")
    with pytest.raises(openai.AuthenticationError):
        await stranger.chat.completions.create(model="far", messages=ASK)
    with pytest.raises(openai.NotFoundError) as told:
        await client.chat.completions.create(model="nowhere", messages=ASK)
    assert told.value.code == "unknown_model"
    whole.model.hold = True
    with pytest.raises(openai.APITimeoutError):
        await client.with_options(timeout=0.3).chat.completions.create(model="far", messages=ASK)
    with pytest.raises(openai.APIStatusError) as late:
        hurry = {"X-Catena-Max-Latency": "200"}
        await client.chat.completions.create(model="far", messages=ASK, extra_headers=hurry)
    assert late.value.status_code == 504


async def test_a_limited_key_gets_429_with_when_to_come_again(whole: Whole, client: openai.AsyncOpenAI) -> None:
    body = {"tenant": "default", "requests_per_minute": 1}
    made: Any = await client.post("/keys", body=body, cast_to=object)
    mine = client.with_options(api_key=made["key"])
    await mine.chat.completions.create(model="far", messages=ASK)
    with pytest.raises(openai.RateLimitError) as told:
        await mine.chat.completions.create(model="far", messages=ASK)
    assert 0 < int(told.value.response.headers["retry-after"]) <= 60


async def test_a_stream_that_the_client_closes_is_closed_at_the_model(whole: Whole, client: openai.AsyncOpenAI) -> None:
    whole.model.hold = True
    stream = await client.chat.completions.create(model="far", messages=ASK, stream=True)
    assert (await anext(aiter(stream))).choices
    await stream.close()
    async with asyncio.timeout(30):
        await whole.model.left.wait()


async def test_a_cascades_fast_answer_streams_while_it_is_written(tmp_path: Path) -> None:
    shapes = {"cascade": {"fast": "far", "main": "large", "checks": ["schema"], "min_chars": 0}}
    step = {"name": "say", "type": "model", "config": {"shape": "cascade", "model": "large"}}
    async with (
        whole_gateway(tmp_path, shapes=shapes) as whole,
        openai.AsyncOpenAI(base_url=f"{whole.url}/v1", api_key=whole.key, max_retries=0) as client,
    ):
        await client.put("/pipelines", cast_to=dict[str, Any], body={"pipeline": {"name": "quick", "steps": [step]}})
        whole.model.hold = True
        stream = await client.chat.completions.create(model="pipeline:quick", messages=ASK, stream=True)
        async with asyncio.timeout(30):
            async for chunk in stream:
                if chunk.choices and chunk.choices[0].delta.content:
                    break
        assert chunk.choices[0].delta.content == "Hello", "its model still holds the rest back"
        await stream.close()
        await asyncio.wait_for(whole.model.left.wait(), 30)
