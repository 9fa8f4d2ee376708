"""(f), (g) The engine's own process: hits of the room's residency, and what loads cost those who are being answered."""

import asyncio
import random
from collections.abc import AsyncIterator, Iterable
from contextlib import aclosing, asynccontextmanager
from itertools import cycle, pairwise
from pathlib import Path
from time import perf_counter, perf_counter_ns

from benchmarks.adapters.report import Report, Row, at_most, quantile
from benchmarks.adapters.subject import NAME, Compute, Subject, texts
from catena.adapters.core.residency import Residency
from catena.adapters.core.resident import Budget, Wanted
from catena.adapters.core.work import AdapterSource, Done, Sampling, Weights, Work
from catena.adapters.drivers.engine.client import ProcessEngine, open_engine
from catena.adapters.drivers.engine.frames import Settings
from catena.kit.clock import SystemClock

HITS = 20_000
ANSWERING, PROMPT, WRITE = 8, 64, 192
MOST_BYTES = 4
"""Of a number, whatever its type."""
HELD = 4
"""Adapters that the answers use, besides the base."""


async def residency(report: Report, subject: Subject, scratch: Path, compute: Compute, parts: str) -> None:
    """(f), (g)."""
    async with _engine(subject, scratch, compute) as engine:
        if "f" in parts:
            await _hits(report, engine, subject)
        if "g" in parts:
            await _gaps(report, engine, subject)


async def _hits(report: Report, engine: ProcessEngine, subject: Subject) -> None:
    """(f) Holding what is resident and letting it go again, as every request does."""
    keeper = Residency(engine, clock=SystemClock(), budget=Budget(bytes=2 << 30, count=HELD), tell=lambda _: None)
    wanted = _wanted(subject, next(iter(subject.adapters)))

    async def hits() -> float:
        took = []
        for _ in range(HITS):
            began = perf_counter_ns()
            async with keeper.hold(wanted):
                pass
            took.append((perf_counter_ns() - began) / 1000)
        return quantile(took, 0.99)

    async with keeper.hold(wanted):
        pass
    (p99,) = await report.medians_of("(f)", hits)
    report.add(
        Row(
            part="f",
            what=f"p99 of {HITS} hits: found, held, let go",
            unit="us",
            ours=p99,
            figure=p99,
            aim=at_most(20),
            note="residency and reference count, in the room's process",
        )
    )
    await keeper.unload(wanted.weights)
    await keeper.close()


async def _gaps(report: Report, engine: ProcessEngine, subject: Subject) -> None:
    """(g) Time between the tokens of running answers while other adapters are loaded one after the other."""
    names = list(subject.adapters)
    used = ["", *names[:HELD]]
    for name in names[:HELD]:
        await engine.load_adapter(subject.source(name))
    others = cycle([subject.source(name) for name in names[HELD : 2 * HELD]])
    chance, loads = random.Random(7), list[int]()

    async def quiet() -> float:
        prompts = texts(ANSWERING, PROMPT, chance)
        writing = (_tokens_at(engine, used[n % len(used)], prompt) for n, prompt in enumerate(prompts))
        times = await asyncio.gather(*writing)
        # From when all of them write, so that reading the others' prompts is no part of it.
        from_s = max(at[0] for at in times)
        gaps = [1000 * (b - a) for at in times for a, b in pairwise(at) if a >= from_s]
        return quantile(gaps, 0.99)

    async def loading() -> float:
        stop = asyncio.Event()
        async with asyncio.TaskGroup() as group:
            loader = group.create_task(_load_on(engine, others, stop))
            p99 = await quiet()
            stop.set()
        loads.append(loader.result())
        return p99

    calm, busy = await report.medians_of("(g)", quiet, loading)
    report.add(
        Row(
            part="g",
            what=f"p99 gap between tokens of {ANSWERING} answers, loading / quiet",
            unit="ms",
            ours=busy,
            other=calm,
            figure=busy / calm,
            aim=at_most(2),
            note=f"{sum(loads) / len(loads):.0f} loads, with probe, during each {WRITE} tokens",
        )
    )


async def _tokens_at(engine: ProcessEngine, adapter: str, prompt: str) -> list[float]:
    """When each token of an answer arrived."""
    # With log-probabilities every token arrives as a piece, also one that is no whole character.
    sampling = Sampling(max_tokens=WRITE, temperature=1.0, seed=3, logprobs=True)
    work = Work(weights=Weights(base=NAME, adapter=adapter), prompt=prompt, sampling=sampling)
    times: list[float] = []
    async with aclosing(engine.submit(work)) as pieces:
        async for piece in pieces:
            if not isinstance(piece, Done):
                times += [perf_counter()] * len(piece.logprobs)
    if len(times) != WRITE:
        raise RuntimeError(f"{len(times)} tokens arrived, {WRITE} were asked for")
    return times


async def _load_on(engine: ProcessEngine, sources: Iterable[AdapterSource], stop: asyncio.Event) -> int:
    """Load and unload until told to stop, the last one to its end; how often it was done."""
    for count, source in enumerate(sources):
        if stop.is_set():
            return count
        await engine.load_adapter(source)
        await engine.unload(source.weights)
    return 0


def _wanted(subject: Subject, name: str) -> Wanted:
    source = subject.source(name)

    async def given() -> AdapterSource:
        return source

    async def vouched() -> bool:
        return True

    def doubt() -> None:
        raise AssertionError("the engine refused what it was given")

    most = MOST_BYTES * subject.adapter_parameters
    return Wanted(
        weights=source.weights, tenant="shared", model=name, bytes=most, source=given, vouched=vouched, doubt=doubt
    )


@asynccontextmanager
async def _engine(subject: Subject, scratch: Path, compute: Compute) -> AsyncIterator[ProcessEngine]:
    settings = Settings(
        socket=str(scratch / "line.sock"), dtype=compute.dtype, threads=compute.threads, prefix_bytes=0, coalesce_s=0.0
    )
    async with open_engine(settings, scratch / "run") as engine:
        await engine.load_base(subject.base_source())
        yield engine
