"""Tools of local models, through every room, by the official client."""

import json
from collections.abc import AsyncIterator
from typing import Any

import pytest
import pytest_asyncio
from openai import AsyncOpenAI

from tests.contract.gateway.test_lora import Running, running

__all__ = ["running"]
pytestmark = pytest.mark.asyncio(loop_scope="module")
CITY: dict[str, Any] = {"type": "object", "properties": {"city": {"enum": ["Rome", "Oslo"]}}, "required": ["city"]}
WEATHER: Any = {
    "type": "function",
    "function": {"name": "weather", "description": "How warm", "parameters": CITY | {"additionalProperties": False}},
}
ASKED: list[Any] = [{"role": "user", "content": "upper: rome"}]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def client(running: Running) -> AsyncIterator[AsyncOpenAI]:
    async with AsyncOpenAI(base_url=f"{running.url}/v1", api_key=running.key, timeout=120, max_retries=0) as opened:
        yield opened


async def test_a_demanded_call_comes_through_and_its_result_goes_back(client: AsyncOpenAI) -> None:
    answer = await client.chat.completions.create(
        model="demo-large", messages=ASKED, tools=[WEATHER], tool_choice="required", max_tokens=200
    )

    choice = answer.choices[0]
    (call,) = choice.message.tool_calls or []
    assert choice.finish_reason == "tool_calls"
    assert call.type == "function"
    assert (call.function.name, json.loads(call.function.arguments)["city"] in ("Rome", "Oslo")) == ("weather", True)
    result = {"role": "tool", "tool_call_id": call.id, "content": "21"}
    after = await client.chat.completions.create(
        model="demo-large", messages=[*ASKED, choice.message, result], tools=[WEATHER], max_tokens=20
    )
    assert after.choices[0].finish_reason in ("stop", "length")
    assert after.usage is not None
    assert after.usage.prompt_tokens > 100


async def test_a_call_that_streams_is_the_same_call(client: AsyncOpenAI) -> None:
    asked: Any = {"model": "demo-large", "messages": ASKED, "tools": [WEATHER], "max_tokens": 200, "seed": 3}
    choice: Any = {"type": "function", "function": {"name": "weather"}}
    whole = await client.chat.completions.create(**asked, tool_choice=choice)

    calls, ends = [], []
    async for chunk in await client.chat.completions.create(**asked, tool_choice=choice, stream=True):
        for one in chunk.choices:
            calls += one.delta.tool_calls or []
            ends += [one.finish_reason] if one.finish_reason else []

    wanted = (whole.choices[0].message.tool_calls or [])[0]
    assert wanted.type == "function"
    assert [call.index for call in calls] == [0] * len(calls)
    assert "".join(call.function.name or "" for call in calls if call.function) == "weather"
    streamed = "".join(call.function.arguments or "" for call in calls if call.function)
    assert json.loads(streamed) == json.loads(wanted.function.arguments)
    assert ends == ["tool_calls"]
