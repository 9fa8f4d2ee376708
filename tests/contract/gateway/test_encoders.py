"""Local encoders and models of feature vectors over HTTP: gateway, executor, adapters and engine are real."""

import asyncio
import json
import os
import sys
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
import msgspec
import pytest
import pytest_asyncio
from transformers import pipeline

from catena.adapters.app import open_adapters
from catena.adapters.config import AdaptersConfig
from catena.executor.app import open_executor
from catena.executor.config import ExecutorConfig
from catena.gateway.app import open_gateway
from catena.gateway.config import GatewayConfig
from catena.kit.clock import World
from catena.kit.config import ModelConfig, PriceConfig
from catena.kit.testing import nats_server
from tests.contract.adapters.conftest import TOKEN, new_house
from tests.contract.adapters.making_encoders import make_encoder, make_mlp, make_sentence_encoder

pytestmark = pytest.mark.asyncio(loop_scope="module")
TEXTS = ["the cat sat on a mat", "Anna in Paris with her dogs"]
LONG = "cat " * 99


@dataclass(frozen=True)
class Front:
    url: str
    key: str
    made: Path
    http: aiohttp.ClientSession

    async def ask(self, path: str, body: Any = None, *, put: bool = False) -> tuple[int, Any]:
        verb = self.http.get if body is None else self.http.put if put else self.http.post
        more = {} if body is None else {"json": body}
        async with verb(f"{self.url}{path}", headers={"Authorization": f"Bearer {self.key}"}, **more) as answer:
            return answer.status, await answer.json()

    async def predict(self, model: str, data: Any, **parameters: Any) -> Any:
        status, told = await self.ask("/v1/predict", {"model_id": model, "data": data, "parameters": parameters})
        assert status == 200, told
        return told["result"]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def front(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Front]:
    home = tmp_path_factory.mktemp("encoders")
    made = home / "made"
    models = [
        ModelConfig(
            name="mood",
            path=str(make_encoder(made / "mood", "bert", "classification")),
            type="classification",
            price=PriceConfig(input=2.0),
        ),
        ModelConfig(
            name="names", path=str(make_encoder(made / "names", "bert", "token-classification")),
            type="token-classification",
        ),
        ModelConfig(name="vectors", path=str(make_sentence_encoder(made / "vectors")), type="embedding"),
        ModelConfig(name="taste", path=str(make_mlp(made / "taste")), type="prediction"),
    ]  # fmt: skip
    house = new_house(home)
    house = msgspec.structs.replace(
        house, bus=msgspec.structs.replace(house.bus, url=""), models=[*house.models, *models]
    )
    async with (
        nats_server(home),
        open_adapters(house, AdaptersConfig(), World()),
        open_executor(house, ExecutorConfig(), World()),
        open_gateway(house, GatewayConfig(port=0), World()),
        aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=120)) as http,
    ):
        url = msgspec.json.decode((home / "run" / "gateway.json").read_bytes())["url"]
        key = (home / "keys" / "development.key").read_text().strip()
        yield Front(url, key, made, http)


async def test_v1_embeddings_takes_a_local_encoder(front: Front) -> None:
    status, told = await front.ask("/v1/embeddings", {"model": "vectors", "input": TEXTS})
    assert (status, told["model"], told["usage"]["prompt_tokens"]) == (200, "vectors", 8 + 8)
    for row in told["data"]:
        assert len(row["embedding"]) == 32
        assert sum(value**2 for value in row["embedding"]) == pytest.approx(1, abs=1e-5)
    assert await front.predict("vectors", TEXTS[0]) == pytest.approx(told["data"][0]["embedding"], abs=1e-6)

    status, refused = await front.ask("/v1/embeddings", {"model": "vectors", "input": LONG})
    assert (status, refused["error"]["code"]) == (400, "context_length_exceeded")
    status, cut = await front.ask("/v1/embeddings", {"model": "vectors", "input": LONG, "truncate": True})
    assert (status, cut["usage"]["prompt_tokens"]) == (200, 24)


async def test_v1_predict_takes_a_local_classifier(front: Front) -> None:
    reference = pipeline("text-classification", model=str(front.made / "mood"), top_k=None)
    want = {one["label"]: one["score"] for one in reference([TEXTS[0]])[0]}
    body = {"model_id": "mood", "data": TEXTS[0]}
    _, told = await front.ask("/v1/predict", body)
    assert told["result"]["scores"] == pytest.approx(want, abs=1e-5)
    assert told["result"]["label"] == max(want, key=lambda label: want[label])
    assert told["cost_usd"] == pytest.approx(8 * 2e-6)

    one, other = await front.predict("mood", TEXTS, top=1)
    assert (list(one["scores"]), list(other["scores"])) == ([one["label"]], [other["label"]])
    status, batch = await front.ask("/v1/batch_predict", {"model_id": "mood", "data": TEXTS})
    assert status == 200
    assert batch["results"][0]["result"]["scores"] == pytest.approx(want, abs=1e-5)


async def test_v1_predict_finds_spans_and_reads_features(front: Front) -> None:
    found = await front.predict("names", TEXTS[1], aggregation="first")
    assert found
    for span in found:
        assert span["text"] == TEXTS[1][int(span["start"]) : int(span["end"])]
    by_name = await front.predict("taste", {"f0": 0.1, "f1": 2, "f2": -1})
    assert by_name == await front.predict("taste", [0.1, 2, -1])
    assert sum(by_name["scores"].values()) == pytest.approx(1)


def step(name: str, **config: Any) -> dict[str, Any]:
    return {"name": name, "type": "model", "config": config}


async def test_pipeline_steps_take_local_encoders(front: Front) -> None:
    steps = [
        step("mood", kind="classification", model="mood", input="{data.text}", top=1),
        step("names", kind="token-classification", model="names", input="{data.text}", aggregation="first"),
        step("vector", kind="embedding", model="vectors", input="{data.text}"),
        step("taste", kind="prediction", model="taste", input="{data.features}", top=1),
        {
            "name": "all",
            "type": "transform",
            "config": {"value": {"mood": "{mood.label}", "taste": "{taste.label}", "names": "{names}"}},
        },
    ]
    status, stored = await front.ask("/v1/pipelines", {"pipeline": {"name": "everything", "steps": steps}}, put=True)
    assert status == 200, stored
    result = await front.predict("pipeline:everything", {"text": TEXTS[1], "features": [0.1, 2, -1]})
    assert result == {
        "mood": (await front.predict("mood", TEXTS[1]))["label"],
        "taste": (await front.predict("taste", [0.1, 2, -1]))["label"],
        "names": await front.predict("names", TEXTS[1], aggregation="first"),
    }


@pytest.mark.parametrize(
    ("path", "body", "code", "told"),
    [
        ("/v1/chat/completions", {"model": "mood", "messages": [{"role": "user", "content": "hi"}]},
         "wrong_model_type", "name a chat model"),
        ("/v1/embeddings", {"model": "mood", "input": "a"}, "wrong_model_type", "of type embedding"),
        ("/v1/embeddings", {"model": "demo-small", "input": "a"}, "wrong_model_type", "of type embedding"),
        ("/v1/predict", {"model_id": "taste", "data": "words"}, "bad_input", "mapping of numbers"),
        ("/v1/predict", {"model_id": "taste", "data": {"f0": 1}}, "bad_features", "needs feature 'f1'"),
        ("/v1/predict", {"model_id": "mood", "data": "a", "parameters": {"top": "x"}}, "bad_parameters", "top"),
        ("/v1/predict", {"model_id": "mood", "data": LONG}, "context_length_exceeded", "truncate"),
    ],
)  # fmt: skip
async def test_the_wrong_question_has_a_code(front: Front, path: str, body: Any, code: str, told: str) -> None:
    status, refused = await front.ask(path, body)
    assert (status, refused["error"]["code"]) == (400, code)
    assert told in refused["error"]["message"]


async def test_models_that_do_not_generate_are_listed(front: Front) -> None:
    status, told = await front.ask("/v1/models")
    assert status == 200
    assert {"mood", "names", "vectors", "taste", "demo-small"} <= {model["id"] for model in told["data"]}


async def test_the_command_predicts_texts_and_json(front: Front) -> None:
    async def run(*words: str) -> tuple[int | None, Any]:
        environment = os.environ | {"CATENA__HOME": str(front.made.parent), "CATENA__AUTH__SERVICE_TOKEN": TOKEN}
        child = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "catena.sdk.command", "predict", *words, env=environment,
            stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
        )  # fmt: skip
        said, failed = await child.communicate()
        return child.returncode, json.loads(said) if said else failed.decode()

    status, told = await run("mood", TEXTS[0], "-p", "top=1")
    assert status == 0, told
    assert len(told["scores"]) == 1
    status, told = await run("taste", "[0.1, 2, -1]")
    assert (status, told) == (0, await front.predict("taste", [0.1, 2, -1]))
    status, told = await run("taste", "words")
    assert status == 1
    assert "bad_input" in told
