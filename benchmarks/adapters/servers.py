"""The servers that are asked over HTTP: Catena as `catena up` runs it, vLLM's CPU build, llama.cpp's server.

All of them compute with as many threads, remember neither texts nor answers, and end with their `async with` block.
"""

import os
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import aiohttp
import msgspec

from benchmarks.adapters.subject import NAME, Compute, Subject
from catena.artifacts.formats import factors
from catena.artifacts.formats.gguf_adapter import write_gguf_adapter
from catena.artifacts.formats.gguf_export import export_gguf
from catena.artifacts.formats.models import open_base
from catena.kit.config import Section, load
from catena.kit.supervise import Child, Supervisor
from catena.kit.testing import free_port
from catena.sdk.up import platform

EMBEDDING = Path(__file__).resolve().parents[2] / ".catena-cache" / "minilm-int8"
VLLM_PYTHON = "CATENA_VLLM_PYTHON"
START_S = 300.0
LONGEST_S = 1800.0
CONTEXT = 512


@dataclass(frozen=True, slots=True, kw_only=True)
class Server:
    """Something that speaks `/v1/completions`; `fields` are what asking it for an adapter, or "", takes.

    `settle_s` is how long it goes on computing after its last answer, in the way of whoever is measured next.
    """

    name: str
    url: str
    fields: Callable[[str], dict[str, Any]]
    key: str = ""
    settle_s: float = 0.0

    async def ask(self, http: aiohttp.ClientSession, adapter: str, prompt: str, write: int) -> str:
        """A greedy answer of exactly `write` tokens. Raises RuntimeError for any other."""
        body = {"prompt": prompt, "max_tokens": write, "temperature": 0} | self.fields(adapter)
        headers = {"Authorization": f"Bearer {self.key}"}
        async with http.post(f"{self.url}/v1/completions", json=body, headers=headers) as answer:
            text = await answer.text()
            if answer.status != 200:
                raise RuntimeError(f"{self.name} answers {answer.status}: {text[:300]}")
        told = msgspec.json.decode(text)
        usage = told["usage"]
        if (usage["prompt_tokens"], usage["completion_tokens"]) != (len(prompt), write):
            raise RuntimeError(f"{self.name} read and wrote {usage}, asked were {len(prompt)} and {write}")
        return str(told["choices"][0]["text"])


def named(adapter: str) -> dict[str, Any]:
    """An adapter by its name, as vLLM and Catena take it."""
    return {"model": adapter or NAME}


def numbered(adapters: list[str], adapter: str) -> dict[str, Any]:
    """An adapter by its number, as llama.cpp takes it; without the model's end of text, as the others."""
    lora = [{"id": adapters.index(adapter), "scale": 1.0}] if adapter else []
    return {"model": NAME, "lora": lora, "ignore_eos": True, "cache_prompt": False}


@asynccontextmanager
async def open_catena(subject: Subject, home: Path, compute: Compute, names: list[str]) -> AsyncIterator[Server]:
    """The whole platform, rooms in one process: gateway, executor, adapters, engine, and those that nobody asks."""
    house_keys = home / "keys" / "trusted"
    house_keys.mkdir(parents=True)
    (house_keys / "bench.pub").write_bytes(subject.trusted.read_bytes())
    config = home / "catena.yaml"
    config.write_bytes(msgspec.json.encode(_config(subject, home, compute)))
    house, _ = load(config, "", Section)
    async with platform(house, config) as running:
        server = Server(name="catena", url=running.url, key=running.key, fields=named)
        await _load(server, {name: name for name in names})
        yield server


def _config(subject: Subject, home: Path, compute: Compute) -> dict[str, Any]:
    return {
        "home": str(home),
        "embedding": str(EMBEDDING),
        "telemetry": {"sample": 0.01, "level": "warning"},
        "models": [{"name": NAME, "path": str(subject.base)}],
        "gateway": {"port": 0, "timeout_s": LONGEST_S},
        "executor": {
            "timeouts_s": {"main": LONGEST_S},
            "run_s": LONGEST_S,
            "attempts": 1,
            "cache": {"size": 0},
            "examples": False,
        },
        "adapters": {
            "dtype": compute.dtype,
            "threads": compute.threads,
            "prefix_bytes": 0,
            "lora_root": str(subject.adapters["a0"].parent),
            "preload": "off",
            "warm": True,
        },
    }


@asynccontextmanager
async def open_vllm(subject: Subject, logs: Path, compute: Compute, names: list[str]) -> AsyncIterator[Server]:
    """The CPU build of vLLM from its own environment; without `names` it serves the base and knows no LoRA."""
    port = free_port()
    command = [os.environ[VLLM_PYTHON], "-m", "vllm.entrypoints.openai.api_server", "--host", "127.0.0.1"]
    command += [
        "--port",
        str(port),
        "--model",
        str(subject.base),
        "--served-model-name",
        NAME,
        "--dtype",
        compute.dtype,
    ]
    command += ["--enforce-eager", "--no-enable-prefix-caching", "--max-model-len", str(CONTEXT)]
    if names:
        command += ["--enable-lora", "--max-loras", str(len(names)), "--max-lora-rank", "16"]
    # Bound to cores of its choice it would share one with whatever else was bound there.
    env = {
        "OMP_NUM_THREADS": str(compute.threads),
        "VLLM_CPU_OMP_THREADS_BIND": "nobind",
        "VLLM_CPU_KVCACHE_SPACE": "1",
    }
    env |= {"VLLM_ALLOW_RUNTIME_LORA_UPDATING": "True", "VLLM_NO_USAGE_STATS": "1", "HF_HUB_OFFLINE": "1"}
    # Its worker looks for work in a loop for a second before it sleeps.
    server = Server(name="vLLM", url=f"http://127.0.0.1:{port}", fields=named, settle_s=1.5)
    # vLLM has no business with the modules of this environment.
    async with _child("vllm-lora" if names else "vllm", ["env", "-u", "PYTHONPATH", *command], server.url, logs, env):
        await _load(server, {name: str(subject.adapters[name]) for name in names})
        yield server


@asynccontextmanager
async def open_llama(
    subject: Subject, scratch: Path, compute: Compute, names: list[str], *, slots: int
) -> AsyncIterator[Server]:
    """llama.cpp's server on the same weights as GGUF in F32; adapters are given when it starts."""
    port, base = free_port(), open_base(subject.base)
    export_gguf(base, scratch / "base.gguf", level="F32", name=NAME)
    for name in names:
        adapter = factors.read_peft(subject.adapters[name], base.shape)
        write_gguf_adapter(adapter, scratch / f"{name}.gguf", base.config, name=name)
    files = [str(scratch / f"{name}.gguf") for name in ("base", *names)]
    command = [sys.executable, "-m", "benchmarks.adapters.llama_server", str(port), str(compute.threads)]
    command += [str(slots), str(CONTEXT), *files]
    server = Server(name="llama.cpp", url=f"http://127.0.0.1:{port}", fields=partial(numbered, names))
    async with _child("llama", command, server.url, scratch, {"OMP_NUM_THREADS": str(compute.threads)}):
        yield server


@asynccontextmanager
async def _child(name: str, command: list[str], url: str, logs: Path, env: dict[str, str]) -> AsyncIterator[None]:
    leashed = [sys.executable, "-m", "catena.kit.leash", "--", *command]
    async with Supervisor(logs) as supervisor:
        child = Child(name=name, command=leashed, env=env, ready=lambda: _healthy(url), restart=False)
        await supervisor.start(child, timeout_s=START_S)
        yield


async def _healthy(url: str) -> bool:
    try:
        async with aiohttp.ClientSession() as http, http.get(f"{url}/health") as answer:
            return answer.status == 200
    except aiohttp.ClientError:
        return False


async def _load(server: Server, paths: dict[str, str]) -> None:
    """Load adapters in vLLM's words, which Catena knows too."""
    headers = {"Authorization": f"Bearer {server.key}"}
    async with aiohttp.ClientSession(headers=headers) as http:
        for name, path in paths.items():
            body = {"lora_name": name, "lora_path": path}
            async with http.post(f"{server.url}/v1/load_lora_adapter", json=body) as answer:
                if answer.status != 200:
                    raise RuntimeError(f"{server.name} does not load {name}: {await answer.text()}")
