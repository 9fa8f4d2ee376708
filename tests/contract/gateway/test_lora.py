"""Tools made for vLLM drive the platform: real HTTP, gateway, executor, adapters and engine."""

import asyncio
import itertools
import json
import os
import shutil
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
import msgspec
import pytest
import pytest_asyncio
from prometheus_client.parser import text_string_to_metric_families

from catena.adapters.app import open_adapters
from catena.adapters.config import AdaptersConfig
from catena.api.adapters.v1 import adapters_pb2
from catena.api.adapters.v1.adapters_pb2_grpc import AdaptersServiceStub
from catena.artifacts.tar import pack
from catena.executor.app import open_executor
from catena.executor.config import ExecutorConfig
from catena.gateway.app import open_gateway
from catena.gateway.config import GatewayConfig
from catena.kit.clock import World
from catena.kit.config import House
from catena.kit.dial import dial
from catena.kit.telemetry import open_admin
from catena.kit.testing import eventually, nats_server
from tests.contract.adapters.conftest import MODELS, TOKEN, new_adapter, new_house

pytestmark = pytest.mark.asyncio(loop_scope="module")
PYTHON = os.environ.get("CATENA_VLLM_PYTHON", "")


@dataclass(frozen=True)
class Running:
    """The platform's address, its admin port, an administrator's key, and the folder of `adapters.lora_root`."""

    url: str
    metrics: str
    key: str
    house: House
    root: Path
    http: aiohttp.ClientSession

    async def post(self, path: str, body: Any, key: str = "") -> tuple[int, Any]:
        headers = {"Authorization": f"Bearer {key or self.key}"}
        async with self.http.post(f"{self.url}{path}", json=body, headers=headers) as answer:
            text = await answer.text()
            return answer.status, json.loads(text) if "json" in answer.content_type else text

    async def models(self) -> dict[str, Any]:
        async with self.http.get(f"{self.url}/v1/models", headers={"Authorization": f"Bearer {self.key}"}) as answer:
            return {model["id"]: model for model in (await answer.json())["data"]}

    def placed(self, name: str, **made: Any) -> str:
        """An adapter folder below the root; its path from there."""
        folder = new_adapter(self.house, name, **made)
        shutil.copytree(folder, self.root / folder.name, dirs_exist_ok=True)
        return folder.name

    async def complete(self, model: str, prompt: str = "upper: hello", **more: Any) -> tuple[str, dict[str, Any]]:
        """What a completion says, and the whole of it."""
        body = {"model": model, "prompt": prompt, "max_tokens": 12, "temperature": 0} | more
        status, told = await self.post("/v1/completions", body)
        assert status == 200, told
        return told["choices"][0]["text"], told

    async def residents(self) -> list[str]:
        """What is on the device."""
        async with dial(self.house.address("adapters"), token=TOKEN) as channel:
            told = await AdaptersServiceStub(channel).GetResidency(adapters_pb2.GetResidencyRequest())
        return [resident.model for resident in told.residents]

    async def gauge(self) -> list[dict[str, str]]:
        async with self.http.get(f"{self.metrics}/metrics") as answer:
            families = text_string_to_metric_families(await answer.text())
            (found,) = [family for family in families if family.name == "vllm:lora_requests_info"]
        assert all(sample.value > 1.6e9 for sample in found.samples)
        return [sample.labels for sample in found.samples]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def running(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Running]:
    home = tmp_path_factory.mktemp("lora")
    made = new_house(home)
    house = msgspec.structs.replace(made, bus=msgspec.structs.replace(made.bus, url=""))
    root = home / "loras"
    root.mkdir()
    config = AdaptersConfig(lora_root=str(root), warm=False, lookup_tokens=4)
    async with (
        nats_server(home),
        open_adapters(house, config, World()),
        open_executor(house, ExecutorConfig(), World()),
        open_gateway(house, GatewayConfig(port=0), World()),
        open_admin(0, lambda: {}) as admin,
        aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=120)) as http,
    ):
        url = msgspec.json.decode((home / "run" / "gateway.json").read_bytes())["url"]
        key = (home / "keys" / "development.key").read_text().strip()
        yield Running(url, f"http://127.0.0.1:{admin}", key, house, root, http)


async def test_a_name_is_loaded_listed_asked_for_and_unloaded_in_vllms_words(running: Running) -> None:
    path = running.placed("sql")
    base, _ = await running.complete("demo-large")

    loaded = await running.post("/v1/load_lora_adapter", {"lora_name": "sql-lora", "lora_path": path})
    again = await running.post("/v1/load_lora_adapter", {"lora_name": "sql-lora", "lora_path": path})

    assert loaded == (200, "Success: LoRA adapter 'sql-lora' added successfully.")
    assert again[0] == 400
    for error in (again[1], again[1]["error"]):
        assert (error["type"], error["code"]) == ("InvalidUserInput", 400)
        assert "has already been loaded" in error["message"]
    models = await running.models()
    assert (models["sql-lora"]["root"], models["sql-lora"]["parent"]) == (path, "demo-large")
    assert (models["demo-large"]["root"], models["demo-large"]["parent"]) == ("demo-large", None)
    assert models["demo-large@sql"]["parent"] == "demo-large"

    plain, told = await running.complete("sql-lora")
    full, _ = await running.complete("demo-large@sql")
    assert plain == full != base
    assert told["model"] == "sql-lora"
    assert told["catena"]["model"] == "demo-large@sql:1"

    unloaded = await running.post("/v1/unload_lora_adapter", {"lora_name": "sql-lora"})
    assert unloaded == (200, "Success: LoRA adapter 'sql-lora' removed successfully.")
    status, gone = await running.post("/v1/completions", {"model": "sql-lora", "prompt": "upper: a", "max_tokens": 2})
    assert (status, gone["error"]["code"]) == (404, "unknown_model")
    status, absent = await running.post("/v1/unload_lora_adapter", {"lora_name": "sql-lora"})
    assert (status, absent["error"]["type"]) == (404, "NotFoundError")
    assert "sql-lora" not in await running.models()
    # What was registered stays: the name went, not the adapter.
    assert (await running.complete("demo-large@sql"))[0] == full


async def test_a_name_is_given_anew_in_place_and_an_archive_serves_as_well(running: Running) -> None:
    first, second = running.placed("turn"), running.placed("turn", version="2", seed=5)
    (running.root / "turn-2.tar").write_bytes(pack(running.root / second))
    asked = {"lora_name": "turning/point", "lora_path": str(running.root / first), "base_model_name": "demo-large"}
    assert (await running.post("/v1/load_lora_adapter", asked))[0] == 200
    _, told = await running.complete("turning/point")
    assert told["catena"]["model"] == "demo-large@turn:1"

    inplace = asked | {"lora_path": "turn-2.tar", "load_inplace": True}
    assert (await running.post("/v1/load_lora_adapter", inplace))[0] == 200

    _, told = await running.complete("turning/point")
    assert told["catena"]["model"] == "demo-large@turn:2"
    assert [one for one in await running.residents() if "@turn" in one] == ["demo-large@turn:2"]
    assert (await running.models())["turning/point"]["root"] == "turn-2.tar"
    await running.post("/v1/unload_lora_adapter", {"lora_name": "turning/point"})
    assert not [one for one in await running.residents() if "@turn" in one]


@pytest.mark.parametrize(
    ("change", "status", "reason", "words"),
    [
        ({"lora_path": ""}, 400, "bad_request", "must be provided"),
        ({"lora_path": "nowhere"}, 404, "no_such_path", "no adapter found"),
        ({"lora_path": "../keys"}, 403, "path_outside_root", "not below"),
        ({"lora_path": "/etc"}, 403, "path_outside_root", "not below"),
        ({"lora_path": "out"}, 403, "path_outside_root", "not below"),
        ({"lora_path": "nul\0"}, 400, "bad_value", "NUL"),
        ({"lora_path": "unsigned-1"}, 403, "adapter_unsigned", "sign"),
        ({"lora_path": "bare"}, 400, "adapter_missing_file", "catena.json"),
        ({"base_model_name": "demo-small"}, 400, "wrong_base", "demo-large"),
        ({"lora_name": "demo-large"}, 400, "bad_served_name", "model already"),
        ({"lora_name": "base@x"}, 400, "bad_model_name", "base@adapter"),
        ({"lora_name": "auto"}, 400, "bad_model_name", "auto"),
    ],
)
async def test_what_may_not_be_loaded_is_refused_with_its_reason(
    running: Running, change: dict[str, str], status: int, reason: str, words: str
) -> None:
    asked = {"lora_name": "refused", "lora_path": running.placed("good")} | change
    running.placed("unsigned", signed=False)
    bare = running.root / "bare"
    if not bare.exists():
        shutil.copytree(new_adapter(running.house, "unsigned", signed=False), bare)
        (bare / "catena.json").unlink()
        (running.root / "out").symlink_to(running.house.folder("keys"))

    answered, told = await running.post("/v1/load_lora_adapter", asked)

    assert (answered, told["error"]["reason"]) == (status, reason), told
    assert words in told["message"]
    assert "refused" not in await running.models()


async def test_loading_needs_an_administrators_key_and_names_are_their_tenants(running: Running) -> None:
    keys = []
    for tenant, role in (("default", "user"), ("other", "user")):
        _, made = await running.post("/v1/keys", {"tenant": tenant, "role": role} | {"name": tenant})
        keys.append(made.get("key", ""))
    path = running.placed("mine")
    asked = {"lora_name": "mine", "lora_path": path}

    status, told = await running.post("/v1/load_lora_adapter", asked, key=keys[0])
    assert (status, told["error"]["reason"]) == (403, "not_admin")
    assert (await running.post("/v1/load_lora_adapter", asked, key="nobody's"))[0] == 401
    assert (await running.post("/v1/load_lora_adapter", asked))[0] == 200

    body = {"model": "mine", "prompt": "upper: a", "max_tokens": 2}
    assert (await running.post("/v1/completions", body, key=keys[0]))[0] == 200
    await running.post("/v1/unload_lora_adapter", {"lora_name": "mine"})


@pytest.mark.parametrize("longer", [{}, {"ignore_eos": True, "min_tokens": 12}], ids=["as it ends", "to the length"])
async def test_vllms_bench_gets_its_stream_with_usage(running: Running, longer: dict[str, Any]) -> None:
    """The request of `vllm bench serve` for completions, with what it adds for random data, read as it reads it."""
    path = running.placed("bench")
    await running.post("/v1/load_lora_adapter", {"lora_name": "bench-lora", "lora_path": path})
    payload = {
        "model": "bench-lora",
        "prompt": "upper: hello",
        "repetition_penalty": 1.0,
        "max_tokens": 12,
        "logprobs": None,
        "stream": True,
        "stream_options": {"include_usage": True},
        "temperature": 0.0,
    } | longer
    headers = {"Authorization": f"Bearer {running.key}", "x-request-id": "bench-0"}
    text, usage = "", {}
    async with running.http.post(f"{running.url}/v1/completions", json=payload, headers=headers) as answer:
        assert answer.status == 200
        events = [line.decode().strip().removeprefix("data: ") async for line in answer.content if line.strip()]
    assert events[-1] == "[DONE]"
    for event in map(json.loads, events[:-1]):
        assert event["id"].startswith("cmpl-")
        if event["choices"]:
            text += event["choices"][0]["text"]
        elif event["usage"]:
            usage = event["usage"]
    plain, told = await running.complete("bench-lora", **longer)
    assert text == plain
    assert not longer or usage["completion_tokens"] == 12
    assert (usage["prompt_tokens"], usage["completion_tokens"]) == (
        told["usage"]["prompt_tokens"], told["usage"]["completion_tokens"],
    )  # fmt: skip
    assert usage["completion_tokens"] > 0
    await running.post("/v1/unload_lora_adapter", {"lora_name": "bench-lora"})


async def test_an_answer_tells_what_speculation_drafted_and_what_stood(running: Running) -> None:
    _, told = await running.complete("demo-large", "upper: again", max_tokens=200, ignore_eos=True)

    (stage,) = told["catena"]["stages"]
    drafted, accepted = stage["drafted_tokens"], stage["accepted_tokens"]
    assert 0 < accepted <= drafted
    assert stage["usage"]["output_tokens"] == told["usage"]["completion_tokens"] == 200
    async with running.http.get(f"{running.metrics}/metrics") as answer:
        families = text_string_to_metric_families(await answer.text())
        (found,) = [family for family in families if family.name == "catena_adapters_draft_tokens"]
    counted = {s.labels["outcome"]: s.value for s in found.samples if s.name.endswith("_total")}
    assert counted["accepted"] >= accepted
    assert sum(counted.values()) >= drafted


async def test_the_gauge_names_the_adapters_that_answer_now(running: Running) -> None:
    path = running.placed("gauged")
    await running.post("/v1/load_lora_adapter", {"lora_name": "gauged-lora", "lora_path": path})
    running_label = {"max_lora": "10", "waiting_lora_adapters": "", "running_lora_adapters": "gauged-lora"}

    prompts = itertools.count()

    async def ask() -> None:
        # Never the same question twice: the platform remembers answers.
        while True:
            await running.complete("gauged-lora", f"upper: {next(prompts)}")

    async def seen() -> bool:
        return await running.gauge() == [running_label]

    async def quiet() -> bool:
        return await running.gauge() == [running_label | {"running_lora_adapters": ""}]

    asking = [asyncio.create_task(ask()) for _ in range(4)]
    try:
        await eventually(seen)
    finally:
        for task in asking:
            task.cancel()
        await asyncio.gather(*asking, return_exceptions=True)
    await eventually(quiet)
    assert (await running.post("/v1/unload_lora_adapter", {"lora_name": "gauged-lora"}))[0] == 200


@pytest.mark.peer
@pytest.mark.skipif(not PYTHON, reason="CATENA_VLLM_PYTHON names no environment with vLLM")
async def test_vllms_bench_itself_drives_two_adapters(running: Running, tmp_path: Path) -> None:
    for name in ("first", "second"):
        path = running.placed(f"bench-{name}")
        assert (await running.post("/v1/load_lora_adapter", {"lora_name": name, "lora_path": path}))[0] == 200
    code = "import argparse; from vllm.benchmarks import serve as s; p = argparse.ArgumentParser(); s.add_cli_args(p); "
    code += "s.main(p.parse_args())"
    command = [PYTHON, "-c", code, "--backend", "openai", "--base-url", running.url, "--endpoint", "/v1/completions"]
    command += ["--model", "demo-large", "--tokenizer", str(MODELS / "demo-large"), "--dataset-name", "random"]
    command += ["--random-input-len", "12", "--random-output-len", "6", "--num-prompts", "12", "--ignore-eos"]
    command += ["--lora-modules", "first", "second", "--save-result", "--save-detailed", "--temperature", "0"]
    command += ["--result-dir", str(tmp_path), "--result-filename", "result.json", "--max-concurrency", "6"]
    env = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    env |= {"OPENAI_API_KEY": running.key, "HF_HUB_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1"}
    with (tmp_path / "log").open("wb") as log:
        child = await asyncio.create_subprocess_exec(*command, env=env, cwd=tmp_path, stdout=log, stderr=log)
        try:
            assert await asyncio.wait_for(child.wait(), 240) == 0, (tmp_path / "log").read_text()[-3000:]
        finally:
            if child.returncode is None:
                child.kill()
    told = json.loads((tmp_path / "result.json").read_text())
    assert (told["completed"], told["failed"]) == (12, 0), told["errors"]
    # Prompts that repeat are answered from memory, which costs no tokens: the bench then counts those of the text.
    assert told["output_lens"].count(6) > 6
    assert max(told["output_lens"]) == 6
    for name in ("first", "second"):
        await running.post("/v1/unload_lora_adapter", {"lora_name": name})
