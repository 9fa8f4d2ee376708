"""Clients of others, unmodified, against a real gateway and executor; each from an environment of its own.

`CATENA_CLIENTS_PYTHON` names a python with `openai langchain-openai instructor litellm`, `CATENA_NODE_MODULES` a folder
in which `npm install openai` was run. curl is there or not.
"""

import asyncio
import json
import os
import shutil
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from tests.contract.gateway.whole import Whole, whole_gateway

CLIENTS, NODE = "CATENA_CLIENTS_PYTHON", "CATENA_NODE_MODULES"
SCRIPTS = Path(__file__).parent / "clients"
VECTORS = [[1.0, 1.0], [4.0, 1.0]]
pytestmark = pytest.mark.contract
python = pytest.mark.skipif(CLIENTS not in os.environ, reason=f"{CLIENTS} names no python with these clients")
node = pytest.mark.skipif(
    NODE not in os.environ or not shutil.which("node"), reason=f"{NODE} names no folder with npm's openai, or no node"
)
curl = pytest.mark.skipif(not shutil.which("curl"), reason="there is no curl")


@pytest.fixture
async def whole(tmp_path: Path) -> AsyncIterator[Whole]:
    async with whole_gateway(tmp_path) as running:
        yield running


async def run(*command: str) -> str:
    child = await asyncio.create_subprocess_exec(
        *command, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE
    )
    try:
        out, problem = await asyncio.wait_for(child.communicate(), 120)
    finally:
        if child.returncode is None:
            child.kill()
            await child.wait()
    assert child.returncode == 0, problem.decode()[-3000:]
    return out.decode()


async def said(whole: Whole, *command: str) -> dict[str, Any]:
    told: dict[str, Any] = json.loads((await run(*command, whole.url, whole.key)).splitlines()[-1])
    return told


@pytest.mark.peer
@python
async def test_langchain_asks_streams_calls_and_embeds(whole: Whole) -> None:
    told = await said(whole, os.environ[CLIENTS], str(SCRIPTS / "asks_langchain.py"))
    place = {"city": "Rome", "people": 7}
    assert told == {
        "answer": "Hello from afar",
        "usage": 16,
        "called": [["weather", {"city": "Rome"}]],
        "after": "Hello from afar",
        "streamed": "Hello from afar",
        "streamed usage": [16],
        "schema": place,
        "function": place,
        "vectors": VECTORS,
    }


@pytest.mark.peer
@python
async def test_instructor_gets_its_model_by_tools_and_by_schema(whole: Whole) -> None:
    told = await said(whole, os.environ[CLIENTS], str(SCRIPTS / "asks_instructor.py"))
    assert list(told.values()) == [{"city": "Rome", "people": 7}] * 2


@pytest.mark.peer
@python
async def test_litellm_asks_streams_calls_embeds_and_names_errors(whole: Whole) -> None:
    assert await said(whole, os.environ[CLIENTS], str(SCRIPTS / "asks_litellm.py")) == {
        "answer": "Hello from afar",
        "usage": 16,
        "called": [["a", '{"city":"Rome"}'], ["b", '{"city":"Rome"}']],
        "reason": "tool_calls",
        "streamed": "Hello from afar",
        "vectors": VECTORS,
        "missing": 404,
        "denied": 401,
    }


@pytest.mark.peer
@node
async def test_openais_client_for_node_does_what_that_for_python_does(whole: Whole) -> None:
    command = ("node", str(SCRIPTS / "asks_node.mjs"), whole.url, whole.key, os.environ[NODE])
    told = json.loads(await run(*command))
    assert {"auto", "far"} <= set(told.pop("models"))
    assert told == {
        "answer": "Hello from afar",
        "usage": 16,
        "streamed": "Hello from afar",
        "streamed usage": [16],
        "called": [["a", '{"city":"Rome"}'], ["b", '{"city":"Rome"}']],
        "parsed": {"city": "Rome"},
        "vectors": VECTORS,
        "missing": ["NotFoundError", 404],
        "denied": ["AuthenticationError", 401],
    }


@pytest.mark.peer
@curl
async def test_curl_reads_an_answer_and_a_stream(whole: Whole) -> None:
    body = {"model": "far", "messages": [{"role": "user", "content": "hello"}]}
    to = [f"{whole.url}/v1/chat/completions", "-H", f"Authorization: Bearer {whole.key}"]
    head = ["curl", "-sS", "--max-time", "60", *to, "-H", "Content-Type: application/json"]
    answer = json.loads(await run(*head, "-d", json.dumps(body)))
    assert answer["choices"][0]["message"]["content"] == "Hello from afar"
    lines = (await run(*head, "-N", "-d", json.dumps({**body, "stream": True}))).strip().split("\n\n")
    assert lines[-1] == "data: [DONE]"
    assert all(line.startswith("data: {") for line in lines[:-1])
