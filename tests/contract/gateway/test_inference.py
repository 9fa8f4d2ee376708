"""The Open Inference Protocol over a real gateway and executor: as JSON, and by Triton's own client."""

import asyncio
import json
import os
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from tests.contract.gateway.whole import Whole, whole_gateway

pytestmark = pytest.mark.contract
TRITON = "CATENA_TRITON_PYTHON"
TEXTS = {"name": "input", "datatype": "BYTES", "shape": [2], "data": ["hello there", "good day"]}


@pytest.fixture
async def whole(tmp_path: Path) -> AsyncIterator[Whole]:
    async with whole_gateway(tmp_path) as running:
        yield running


@pytest.fixture
async def http(whole: Whole) -> AsyncIterator[aiohttp.ClientSession]:
    async with aiohttp.ClientSession(whole.url, headers={"Authorization": f"Bearer {whole.key}"}) as session:
        yield session


async def infer(http: aiohttp.ClientSession, model: str, *inputs: Any, **more: Any) -> tuple[int, Any]:
    async with http.post(f"/v2/models/{model}/infer", json={"inputs": inputs, **more}) as answer:
        return answer.status, await answer.json()


async def test_it_says_that_it_lives_without_a_key(whole: Whole) -> None:
    async with aiohttp.ClientSession(whole.url) as http:
        for path in ("/v2/health/live", "/v2/health/ready"):
            async with http.get(path) as answer:
                assert answer.status == 200
        async with http.get("/v2") as answer:
            assert (answer.status, list(await answer.json())) == (401, ["error"])


async def test_a_row_of_texts_is_a_question_each(http: aiohttp.ClientSession) -> None:
    status, told = await infer(http, "large", TEXTS, id="q7")
    assert (status, told["id"], told["model_name"]) == (200, "q7", "large")
    assert told["outputs"] == [
        {"name": "output", "datatype": "BYTES", "shape": [2], "data": ["HELLO THERE", "GOOD DAY"]}
    ]


async def test_an_embedding_model_gives_a_matrix(http: aiohttp.ClientSession) -> None:
    status, told = await infer(http, "far-embed", TEXTS)
    assert status == 200
    assert told["outputs"] == [
        {"name": "embedding", "datatype": "FP32", "shape": [2, 2], "data": [11.0, 1.0, 8.0, 1.0]}
    ]


async def test_a_pipeline_is_a_model_too(http: aiohttp.ClientSession) -> None:
    step = {"name": "clean", "type": "preprocess", "config": {"operations": ["remove_html"]}}
    async with http.put("/v1/pipelines", json={"pipeline": {"name": "tidy", "steps": [step]}}) as put:
        assert put.status == 200
    status, told = await infer(http, "pipeline:tidy", {**TEXTS, "shape": [1], "data": ["<b>hi</b>"]})
    assert (status, told["outputs"][0]["data"]) == (200, ["hi"])
    async with http.post("/v2/repository/index") as index:
        states = {one["name"]: one["state"] for one in await index.json()}
    assert (states["pipeline:tidy"], states["far"]) == ("READY", "READY")


async def test_models_are_described_and_unknown_ones_are_not(http: aiohttp.ClientSession) -> None:
    async with http.get("/v2/models/far-embed") as answer:
        assert (await answer.json())["outputs"][0]["name"] == "embedding"
    async with http.get("/v2/models/far/ready") as answer:
        assert answer.status == 200
    for path in ("/v2/models/nowhere", "/v2/models/nowhere/ready"):
        async with http.get(path) as answer:
            assert (answer.status, "nowhere" in (await answer.json())["error"]) == (404, True)


@pytest.mark.parametrize(
    ("change", "more", "told"),
    [
        ({"shape": [3]}, {}, "shape"),
        ({"datatype": "FP99"}, {}, "FP99"),
        ({"data": [1, 2]}, {}, "BYTES"),
        ({"parameters": {"binary_data_size": 9}}, {}, "binary_data_size"),
        ({}, {"outputs": [{"name": "logits"}]}, "'output'"),
    ],
)
async def test_what_cannot_be_read_is_refused_in_one_text(
    http: aiohttp.ClientSession, change: dict[str, Any], more: dict[str, Any], told: str
) -> None:
    status, answer = await infer(http, "large", {**TEXTS, **change}, **more)
    assert status == 400
    assert told in answer["error"]


async def test_what_is_served_elsewhere_is_not_loaded_here(http: aiohttp.ClientSession) -> None:
    async with http.post("/v2/repository/models/far/load") as answer:
        assert (answer.status, "elsewhere" in (await answer.json())["error"]) == (400, True)


SCRIPT = """
import json, sys
import numpy as np
import tritonclient.http as triton
url, key = sys.argv[1:]
client = triton.InferenceServerClient(url.removeprefix("http://"))

def head():  # the client writes into what it is given
    return {"Authorization": f"Bearer {key}"}

def texts(binary):
    tensor = triton.InferInput("input", [2], "BYTES")
    tensor.set_data_from_numpy(np.array(["hello there", "gr\\u00fc\\u00df"], dtype=object), binary_data=binary)
    return tensor

def answers(binary):
    found = client.infer("large", [texts(binary)], headers=head()).as_numpy("output").tolist()
    return [one if isinstance(one, str) else one.decode() for one in found]

def refusal(call, *args):
    try:
        call(*args, headers=head())
    except triton.InferenceServerException as error:
        return [error.status(), error.message()]

wanted = triton.InferRequestedOutput("embedding")
told = {
    "live": client.is_server_live(),
    "ready": client.is_server_ready(),
    "model": client.is_model_ready("large", headers=head()),
    "gone": client.is_model_ready("nowhere", headers=head()),
    "index": [one["name"] for one in client.get_model_repository_index(headers=head())],
    "outputs": client.get_model_metadata("large", headers=head())["outputs"],
    "binary": answers(True),
    "json": answers(False),
    "matrix": client.infer("far-embed", [texts(True)], outputs=[wanted], headers=head()).as_numpy("embedding").tolist(),
    "error": refusal(client.infer, "nowhere", [texts(True)]),
    "load": refusal(client.load_model, "far"),
}
print(json.dumps(told))
"""


@pytest.mark.peer
@pytest.mark.skipif(TRITON not in os.environ, reason=f"{TRITON} names no python with tritonclient[http]")
async def test_tritons_client_infers_lists_and_is_told_what_is_wrong(whole: Whole) -> None:
    child = await asyncio.create_subprocess_exec(
        os.environ[TRITON], "-c", SCRIPT, whole.url, whole.key, stdout=asyncio.subprocess.PIPE
    )
    out, _ = await asyncio.wait_for(child.communicate(), 60)
    told = json.loads(out)
    assert (told["live"], told["ready"], told["model"], told["gone"]) == (True, True, True, False)
    assert {"large", "far"} <= set(told["index"])
    assert told["binary"] == told["json"] == ["HELLO THERE", "GRÜSS"]
    assert told["matrix"] == [[11.0, 1.0], [4.0, 1.0]]
    assert told["error"][0] == "404"
    assert "nowhere" in told["error"][1]
    assert "elsewhere" in told["load"][1]
