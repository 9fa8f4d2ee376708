"""Who is measured, each bound to the same core: Catena as `catena up` runs it, and the LiteLLM proxy, one worker each.

The load and the upstream are bound to the other cores.
"""

import os
import secrets
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
import msgspec
import psutil

from catena.kit.config import Section, load
from catena.kit.supervise import Child, Supervisor
from catena.kit.testing import free_port
from catena.sdk.up import platform

LITELLM_PYTHON = "CATENA_LITELLM_PYTHON"
INSTALL = f"pip install 'litellm[proxy]' into an environment of its own and name its python in {LITELLM_PYTHON}"
EMBEDDING = Path(__file__).resolve().parents[2] / ".catena-cache" / "minilm-int8"
MODELS = ("mock", "mock-20ms", "mock-20ms-0", "mock-5ms-200")
"""The third is as the second, for strategies that ask two."""
DOMAINS = {
    "code": ["Write a function that reverses a list.", "Why does this loop never end?", "Fix the failing test."],
    "letters": ["Write a letter of thanks.", "Make this note sound kinder.", "Draft an invitation to dinner."],
    "sums": ["What is 12 times 11?", "How much is a fifth of 85?", "Add up 3, 9 and 14."],
}
"""Without any, `auto` would have nothing to embed a question for."""
START_S = 60.0
CORE = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Server:
    """Something that speaks OpenAI's HTTP; `process` 0: not counted."""

    name: str
    url: str
    key: str = "none"
    process: int = 0

    def tree(self) -> list[psutil.Process]:
        """Its processes."""
        root = psutil.Process(self.process)
        return [root, *root.children(recursive=True)]

    def resident_mib(self) -> float:
        """Resident memory of all of them, pages shared among them counted for each."""
        return sum(process.memory_info().rss for process in self.tree()) / 2**20

    def cpu_s(self) -> float:
        """Seconds of CPU that they took so far."""
        return sum(sum(process.cpu_times()[:2]) for process in self.tree())


@contextmanager
def bound_to(cores: set[int]) -> Iterator[None]:
    """Children started in the block run on `cores`; this process goes on where it was."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, cores)
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def other_cores() -> set[int]:
    """Where load and upstream run."""
    return (os.sched_getaffinity(0) - {CORE}) or {CORE}


@asynccontextmanager
async def open_upstream(logs: Path) -> AsyncIterator[Server]:
    """The mock."""
    port = free_port()
    server = Server(name="direct", url=f"http://127.0.0.1:{port}/v1")
    command = [sys.executable, "-m", "benchmarks.gateway.upstream", str(port)]
    async with Supervisor(logs) as supervisor:
        child = Child(
            name="upstream", command=_leashed(command), ready=lambda: answers(server, "/models"), restart=False
        )
        await supervisor.start(child, timeout_s=START_S)
        yield server


@asynccontextmanager
async def open_catena(upstream: str, home: Path, *, split: bool = False) -> AsyncIterator[Server]:
    """The whole platform, its rooms in one process or each in its own."""
    config = _written(home / "catena.yaml", _config(upstream, home))
    house, _ = load(config, "", Section)
    with bound_to({CORE}):
        running = platform(house, config, split=split)
        told = await running.__aenter__()
    try:
        names = "split" if split else "catena"
        root = _parent_of(f"catena.{'gateway' if split else 'allinone'}")
        yield Server(name=names, url=f"{told.url}/v1", key=told.key, process=0 if split else root)
    finally:
        await running.__aexit__(None, None, None)


def _parent_of(module: str) -> int:
    """The child of this process that runs `module`."""
    for process in psutil.Process().children(recursive=True):
        if module in process.cmdline():
            return process.pid
    raise RuntimeError(f"no child runs {module}")


def _config(upstream: str, home: Path) -> dict[str, Any]:
    price = {"input": 1.0, "output": 4.0}
    shape = {"draft": "mock-20ms-0", "main": "mock-20ms"}
    return {
        "home": str(home),
        "embedding": str(EMBEDDING),
        "telemetry": {"sample": 0.01, "level": "warning"},
        "models": [
            {"name": name, "provider": "openai", "base_url": upstream, "price": price, "context_tokens": 100_000}
            for name in MODELS
        ],
        "pipelines": {
            "sequential": {"main": "mock-20ms"},
            "draft-refine": shape,
            "cascade": {"fast": "mock-20ms-0", "main": "mock-20ms", "threshold": 0.0, "min_chars": 0},
            "consensus": {"members": ["mock-20ms", "mock-20ms-0", "mock-20ms"]},
            "speculative": shape,
            "search": {"main": "mock-20ms"},
        },
        "router": {"domains": [{"name": name, "examples": told} for name, told in DOMAINS.items()]},
        "gateway": {"port": 0},
    }


@asynccontextmanager
async def open_litellm(upstream: str, scratch: Path) -> AsyncIterator[Server]:
    """The proxy from its own environment: one worker, no database, logs of errors alone, as its guide has it."""
    port, key = free_port(), "sk-" + secrets.token_hex(16)
    models = [
        {"model_name": name, "litellm_params": {"model": f"openai/{name}", "api_base": upstream, "api_key": "none"}}
        for name in MODELS
    ]
    settings = {"telemetry": False, "set_verbose": False}
    told = {"model_list": models, "general_settings": {"master_key": key}, "litellm_settings": settings}
    config = _written(scratch / "litellm.yaml", told)
    python = os.environ[LITELLM_PYTHON]
    command = [str(Path(python).with_name("litellm")), "--config", str(config), "--port", str(port)]
    command += ["--host", "127.0.0.1", "--num_workers", "1"]
    env = {"LITELLM_LOCAL_MODEL_COST_MAP": "True", "LITELLM_LOG": "ERROR", "NO_DOCS": "True"}
    server = Server(name="litellm", url=f"http://127.0.0.1:{port}/v1", key=key)
    async with Supervisor(scratch) as supervisor:
        child = Child(
            name="litellm",
            command=_leashed(["env", "-u", "PYTHONPATH", *command]),
            env=env,
            ready=lambda: answers(server, "/models"),
            restart=False,
        )
        with bound_to({CORE}):
            await supervisor.start(child, timeout_s=START_S)
        yield Server(name=server.name, url=server.url, key=key, process=supervisor.pid("litellm") or 0)


def _written(path: Path, told: dict[str, Any]) -> Path:
    path.parent.mkdir(parents=True)
    path.write_bytes(msgspec.json.encode(told))
    return path


def _leashed(command: list[str]) -> list[str]:
    return [sys.executable, "-m", "catena.kit.leash", "--", *command]


async def answers(server: Server, path: str) -> bool:
    """Whether it answers 200."""
    headers = {"Authorization": f"Bearer {server.key}"}
    try:
        async with aiohttp.ClientSession(headers=headers) as http, http.get(f"{server.url}{path}") as told:
            return told.status == 200
    except aiohttp.ClientError:
        return False
