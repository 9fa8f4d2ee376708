"""(a) One at a time, (b) many at once, (c) streams, (d) memory, (e) strategies, (f) batches, (g) the cache."""

import asyncio
import statistics
from time import perf_counter
from typing import Any

import msgspec

from benchmarks.adapters.report import AsyncMeasure, Report, Row, at_least, at_most, quantile
from benchmarks.gateway.load import Load

CALLS, WARM = 100, 100
CLIENTS = (1, 2, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128)
SECONDS, LONGEST_MS = 3.0, 100.0
STREAMS, STREAMED = 4, 200
BATCH = 50
SHAPES = {"sequential": 1, "draft-refine": 2, "cascade": 1, "consensus": 1, "speculative": 3, "search": 1}
"""Calls one after the other that each strategy makes of the mock, whose drafts never stand."""


async def one_at_a_time(report: Report, direct: Load, ours: list[Load], peer: Load | None) -> None:
    """(a) Time that a gateway adds to an answer, one in flight."""
    everyone = [direct, *ours, *([peer] if peer else [])]
    for load in everyone:
        await load.times_ms("mock", WARM)

    def p50(load: Load) -> AsyncMeasure:
        async def measure() -> float:
            return statistics.median(await load.times_ms("mock", CALLS))

        return measure

    bare, *told = await report.medians_of("(a)", *(p50(load) for load in everyone))
    theirs = told[-1] - bare if peer else None
    for load, took in zip(ours, told, strict=False):
        added = took - bare
        first = load is ours[0]
        report.add(
            Row(
                part="a",
                what=f"added, one in flight, {load.server.name}",
                unit="ms",
                ours=added,
                figure=added,
                aim=at_most(3) if first else None,
                note=f"p50 {took:.2f} ms, the mock alone {bare:.2f}",
            )
        )
        if theirs is not None:
            report.add(
                Row(
                    part="a",
                    what=f"the same, {load.server.name} / LiteLLM",
                    unit="ms",
                    ours=added,
                    other=theirs,
                    figure=added / theirs,
                    aim=at_most(0.25) if first else None,
                )
            )
    await _chosen(report, ours[0])


async def _chosen(report: Report, ours: Load) -> None:
    """What `auto` takes beyond the calls that it chose: the question is embedded, plans are weighed, and all of (a)."""

    async def measure() -> float:
        return statistics.median(await ours.beyond_ms("auto", CALLS // 2))

    (beyond,) = await report.medians_of("(a)", measure)
    report.add(
        Row(
            part="a",
            what="`auto`, beyond the calls that it chose",
            unit="ms",
            ours=beyond,
            figure=beyond,
            note="another question each time, 1 KB of words, embedded on the same core",
        )
    )


async def many_at_once(report: Report, ours: list[Load], peer: Load | None) -> None:
    """(b) Most answers a second of which 99 in 100 come within 100 ms."""

    def most(load: Load) -> AsyncMeasure:
        async def measure() -> float:
            best = 0.0
            for clients in CLIENTS:
                rate, p99 = await load.at_once("mock", clients, SECONDS)
                if p99 > LONGEST_MS:
                    break
                best = max(best, rate)
            return best

        return measure

    told = await report.medians_of("(b)", *(most(load) for load in [*ours, *([peer] if peer else [])]))
    for load, rate in zip(ours, told, strict=False):
        other = told[-1] if peer else None
        report.add(
            Row(
                part="b",
                what=f"answers a second, p99 < {LONGEST_MS:g} ms, {load.server.name}",
                unit="/s",
                ours=rate,
                other=other,
                figure=rate / other if other else rate,
                aim=at_least(4) if other and load is ours[0] else None,
                note="" if other else "no peer",
            )
        )


async def streams(report: Report, direct: Load, ours: Load, peer: Load | None) -> None:
    """(c) Time that a gateway adds to the first words, and the CPU that each further chunk takes it."""
    everyone = [direct, ours, *([peer] if peer else [])]

    def first(load: Load) -> AsyncMeasure:
        async def measure() -> float:
            return statistics.median(await load.first_ms("mock", CALLS // 2))

        return measure

    def chunk_us(load: Load) -> AsyncMeasure:
        async def measure() -> float:
            before = load.server.cpu_s()
            await asyncio.gather(*(load.stream("mock-5ms-200") for _ in range(STREAMS)))
            return 1e6 * (load.server.cpu_s() - before) / (STREAMS * STREAMED)

        return measure

    bare, mine, *theirs = await report.medians_of("(c)", *(first(load) for load in everyone))
    other = theirs[0] - bare if theirs else None
    report.add(
        Row(
            part="c",
            what="added to the first words",
            unit="ms",
            ours=mine - bare,
            other=other,
            figure=(mine - bare) / other if other else mine - bare,
            note="" if other else "no peer",
        )
    )
    mine, *theirs = await report.medians_of("(c)", *(chunk_us(load) for load in everyone[1:]))
    report.add(
        Row(
            part="c",
            what="CPU per chunk of the upstream",
            unit="us",
            ours=mine,
            other=theirs[0] if theirs else None,
            figure=mine / theirs[0] if theirs else mine,
            note="a chunk every 5 ms; Catena joins those less than its window apart",
        )
    )


async def memory(report: Report, ours: Load, peer: Load | None, requests: int) -> None:
    """(d) Resident memory after `requests`, and how it grew over their second half."""
    for load in [ours, *([peer] if peer else [])]:
        told = [await _grown(load, requests // 10) for _ in range(10)]
        slope = (told[-1] - told[4]) / (5 * requests / 10) * 10_000
        report.add(
            Row(
                part="d",
                what=f"resident after {requests} requests, {load.server.name}",
                unit="MiB",
                ours=told[-1],
                figure=told[-1],
                note=f"{slope:+.2f} MiB per 10,000 over the second half",
            )
        )


async def _grown(load: Load, requests: int) -> float:
    left = iter(range(requests))

    async def client() -> None:
        for _ in left:
            await load.ask("mock")

    await asyncio.gather(*(client() for _ in range(8)))
    return load.server.resident_mib()


async def strategies(report: Report, direct: Load, ours: Load) -> None:
    """(e) What each strategy adds to its own calls, which take the mock 20 ms each."""

    def took(load: Load, **more: Any) -> AsyncMeasure:
        async def measure() -> float:
            return statistics.median(await load.times_ms("mock-20ms", CALLS // 4, **more))

        return measure

    shaped = [took(ours, headers={"X-Pipeline-Type": shape, "Cache-Control": "no-cache"}) for shape in SHAPES]
    bare, *told = await report.medians_of("(e)", took(direct), *shaped)
    for (shape, calls), ms in zip(SHAPES.items(), told, strict=True):
        report.add(
            Row(
                part="e",
                what=f"{shape}, added to {calls} call{'s' * (calls > 1)} in turn",
                unit="ms",
                ours=ms,
                other=calls * bare,
                figure=ms - calls * bare,
                note="figure: the difference",
            )
        )


async def batches(report: Report, ours: Load) -> None:
    """(f) Many inputs in one request against one request each."""
    numbers = iter(range(1 << 30))

    def inputs() -> list[str]:
        return [f"input {next(numbers)}" for _ in range(BATCH)]

    async def together() -> float:
        began = perf_counter()
        await ours.post("/batch_predict", {"model_id": "mock-20ms", "data": inputs(), "concurrency": BATCH})
        return 1000 * (perf_counter() - began)

    async def singly() -> float:
        began = perf_counter()
        for one in inputs():
            await ours.post("/predict", {"model_id": "mock-20ms", "data": one})
        return 1000 * (perf_counter() - began)

    alone, batch = await report.medians_of("(f)", singly, together)
    report.add(
        Row(
            part="f",
            what=f"{BATCH} inputs, one by one / in a batch",
            unit="ms",
            ours=batch,
            other=alone,
            figure=alone / batch,
            aim=at_least(10),
            note="20 ms each at the model",
        )
    )


async def cached(report: Report, ours: Load) -> None:
    """(g) An answer that is remembered, against one that a model of 20 ms makes."""
    told = msgspec.json.decode(await ours.ask("mock-20ms", temperature=0))
    again = msgspec.json.decode(await ours.ask("mock-20ms", temperature=0))
    if told["catena"]["cached"] or not again["catena"]["cached"]:
        raise RuntimeError("the cache does not do what it is measured for")

    async def hit() -> float:
        return statistics.median(await ours.times_ms("mock-20ms", CALLS, temperature=0))

    async def p99() -> float:
        return quantile(await ours.times_ms("mock-20ms", CALLS, temperature=0), 0.99)

    median, worst = await report.medians_of("(g)", hit, p99)
    report.add(
        Row(
            part="g",
            what="an answer from the cache",
            unit="ms",
            ours=median,
            figure=median,
            note=f"p99 {worst:.2f} ms, over HTTP",
        )
    )
