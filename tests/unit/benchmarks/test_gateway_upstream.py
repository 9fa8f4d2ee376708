"""The mock in front of which gateways are measured speaks OpenAI's chat as a model does."""

import asyncio
from collections.abc import AsyncIterator

import openai
import pytest

from benchmarks.gateway.upstream import ANSWER, Upstream

pytestmark = pytest.mark.unit
ASK = [{"role": "user", "content": "x" * 1000}]


@pytest.fixture
async def client() -> AsyncIterator[openai.AsyncOpenAI]:
    server = await asyncio.get_running_loop().create_server(Upstream, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    async with openai.AsyncOpenAI(base_url=f"http://127.0.0.1:{port}/v1", api_key="none", max_retries=0) as made:
        yield made
    server.close()
    await server.wait_closed()


@pytest.mark.parametrize("model", ["mock", "mock-20ms"])
async def test_it_answers_a_kilobyte_whole_and_in_pieces(client: openai.AsyncOpenAI, model: str) -> None:
    for _ in range(2):
        whole = await client.chat.completions.create(model=model, messages=ASK)
        assert whole.choices[0].message.content == ANSWER
    stream = await client.chat.completions.create(model=model, messages=ASK, stream=True)
    chunks = [chunk async for chunk in stream]
    assert "".join(c.choices[0].delta.content or "" for c in chunks if c.choices) == ANSWER
    assert chunks[-1].usage is not None


async def test_it_streams_as_many_chunks_as_its_name_says(client: openai.AsyncOpenAI) -> None:
    stream = await client.chat.completions.create(model="mock-1ms-7", messages=ASK, stream=True)
    texts = [c.choices[0].delta.content async for c in stream if c.choices]
    assert len([text for text in texts if text]) == 7
