"""(h) The room itself, registry, gate and engine, asked over gRPC for more adapters than its cache holds."""

import asyncio
import random
import statistics
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from time import perf_counter
from typing import Any

from benchmarks.adapters.report import AsyncMeasure, Report, Row, at_most
from benchmarks.adapters.subject import NAME, Compute, Subject, texts
from catena.adapters.app import open_adapters
from catena.adapters.config import AdaptersConfig
from catena.api.adapters.v1 import adapters_pb2 as pb
from catena.api.adapters.v1.adapters_pb2_grpc import AdaptersServiceStub
from catena.api.types.v1 import types_pb2 as types
from catena.kit.clock import World
from catena.kit.config import AuthConfig, BusConfig, House, ModelConfig, TelemetryConfig
from catena.kit.dial import dial
from catena.kit.telemetry import setup

CACHE = 8
SETS = (0.5, 1.0, 1.5, 2.0, 3.0)
"""Sizes of the working set over the cache's."""
ASKERS, EACH, PROMPT, WRITE = 4, 8, 64, 16
TOKEN = "bench"


async def working_sets(report: Report, subject: Subject, scratch: Path, compute: Compute) -> None:
    """(h) Time to the first token over the size of the working set; adapters drawn uniformly, `ASKERS` at a time."""
    chance = random.Random(11)
    async with _room(subject, scratch, compute) as room:
        names = list(subject.adapters)[: int(CACHE * max(SETS))]
        for name in names:
            await room.RegisterAdapter(pb.RegisterAdapterRequest(path=str(subject.adapters[name])))
        measures: list[AsyncMeasure] = [
            lambda size=size: _first_token_ms(room, chance.sample(names, int(CACHE * size)), chance) for size in SETS
        ]
        found = dict(zip(SETS, await report.medians_of("(h)", *measures), strict=True))
    fits = found[1.0]
    for size, took in found.items():
        report.add(
            Row(
                part="h",
                what=f"first token, working set {size:g} x the cache / 1 x",
                unit="ms",
                ours=took,
                other=fits,
                figure=took / fits,
                aim=at_most(3) if size == 2.0 else None,
                note=f"{int(CACHE * size)} adapters, {CACHE} resident; median of {ASKERS * EACH}",
            )
        )


async def _first_token_ms(room: Any, names: Sequence[str], chance: random.Random) -> float:
    """The median over questions to uniformly drawn adapters; what fits is resident when it begins."""
    for name in names[:CACHE]:
        await room.Load(pb.LoadRequest(model=f"{NAME}@{name}:1"))
    asked = list(zip(chance.choices(names, k=ASKERS * EACH), texts(ASKERS * EACH, PROMPT, chance), strict=True))

    async def one_after_the_other(questions: Sequence[tuple[str, str]]) -> list[float]:
        return [await _ask(room, name, prompt) for name, prompt in questions]

    told = await asyncio.gather(*(one_after_the_other(asked[number::ASKERS]) for number in range(ASKERS)))
    return statistics.median(took for some in told for took in some)


async def _ask(room: Any, name: str, prompt: str) -> float:
    request = pb.GenerateRequest(
        model=f"{NAME}@{name}:1",
        request=types.ChatRequest(prompt=prompt, sampling=types.Sampling(max_tokens=WRITE, temperature=0.0)),
    )
    began, first = perf_counter(), 0.0
    async for _ in room.Generate(request):
        first = first or perf_counter()
    return 1000 * (first - began)


@asynccontextmanager
async def _room(subject: Subject, scratch: Path, compute: Compute) -> AsyncIterator[Any]:
    house = House(
        home=str(scratch / "home"),
        auth=AuthConfig(service_token=TOKEN),
        bus=BusConfig(url="nats://127.0.0.1:1"),  # nobody listens to its events here
        telemetry=TelemetryConfig(sample=0.0, level="error"),
        models=[ModelConfig(name=NAME, path=str(subject.base))],
    )
    (house.folder("keys", "trusted") / "bench.pub").write_bytes(subject.trusted.read_bytes())
    config = AdaptersConfig(
        max_resident=CACHE, dtype=compute.dtype, threads=compute.threads, prefix_bytes=0, preload="off", warm=True
    )
    with setup("bench", house):
        async with (
            open_adapters(house, config, World()),
            dial(house.address("adapters"), token=TOKEN) as channel,
        ):
            yield AdaptersServiceStub(channel)
