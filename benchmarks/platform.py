"""What the platform itself costs: `make bench-platform`.

Explicit model, 1 KB question and answer, one request in flight, tracing at 1 %. A no-op engine stands where the
adapters room would be and answers at once over gRPC, so what is measured is gateway, executor and their hops.
Every figure is a median of several rounds; the direct call to the no-op engine is measured in the same run.
"""

import argparse
import os
import statistics
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from time import perf_counter
from typing import Any

import aiohttp
import msgspec
import psutil
import uvloop
from rich.console import Console
from rich.table import Table

from catena.api.adapters.v1 import adapters_pb2, adapters_pb2_grpc
from catena.api.types.v1 import types_pb2
from catena.executor.app import open_executor
from catena.executor.config import ExecutorConfig
from catena.gateway.app import open_gateway
from catena.gateway.config import GatewayConfig
from catena.kit.chassis import service_token
from catena.kit.clock import World
from catena.kit.config import House, ModelConfig, PriceConfig, Section, TelemetryConfig, load
from catena.kit.dial import dial
from catena.kit.serve import open_server
from catena.kit.telemetry import setup
from catena.kit.testing import nats_server
from catena.sdk.up import platform

ROUNDS, CALLS, WARM = 7, 200, 100
KILOBYTE = "x" * 1000
CONFIG = Path(__file__).resolve().parents[1] / "demo" / "catena.yaml"
Call = Callable[[], Awaitable[None]]


class NoOp(adapters_pb2_grpc.AdaptersServiceServicer):
    """Answers 1 KB at once."""

    async def Generate(self, request: Any, context: Any) -> AsyncIterator[adapters_pb2.GenerateResponse]:
        """One delta and the end."""
        delta = types_pb2.Delta(text=KILOBYTE, finish_reason="stop")
        done = adapters_pb2.GenerateDone(usage=types_pb2.Usage(input_tokens=250, output_tokens=250))
        yield adapters_pb2.GenerateResponse(deltas=[delta])
        yield adapters_pb2.GenerateResponse(done=done)

    async def ListBases(self, request: Any, context: Any) -> adapters_pb2.ListBasesResponse:
        """The one base."""
        return adapters_pb2.ListBasesResponse(bases=[adapters_pb2.Base(name="noop", context_tokens=8192)])

    async def ListAdapters(self, request: Any, context: Any) -> adapters_pb2.ListAdaptersResponse:
        """None."""
        return adapters_pb2.ListAdaptersResponse()


@asynccontextmanager
async def one_process(home: Path) -> AsyncIterator[tuple[House, str, str]]:
    """Gateway and executor in this process over a no-op engine: house, URL and key."""
    models = [ModelConfig(name="noop", price=PriceConfig(input=1.0, output=1.0))]
    house = House(home=str(home), models=models, telemetry=TelemetryConfig(sample=0.01, level="warning"))
    token = service_token(house)
    async with AsyncExitStack() as stack:
        stack.enter_context(setup("bench", house))
        await stack.enter_async_context(nats_server(home))
        add = lambda server: adapters_pb2_grpc.add_AdaptersServiceServicer_to_server(NoOp(), server)  # noqa: E731
        await stack.enter_async_context(open_server(house.address("adapters"), [add], names=[], token=token))
        await stack.enter_async_context(open_executor(house, ExecutorConfig(), World()))
        await stack.enter_async_context(open_gateway(house, GatewayConfig(port=0), World()))
        url = str(msgspec.json.decode((home / "run" / "gateway.json").read_bytes())["url"])
        yield house, url, (home / "keys" / "development.key").read_text().strip()


async def times_ms(call: Call, calls: int) -> list[float]:
    """How long each call took, one after the other."""
    told = []
    for _ in range(calls):
        started = perf_counter()
        await call()
        told.append(1000 * (perf_counter() - started))
    return sorted(told)


async def measure(named: dict[str, Call]) -> dict[str, tuple[float, float]]:
    """Median over interleaved rounds of each round's p50 and p99."""
    rounds: dict[str, list[tuple[float, float]]] = {name: [] for name in named}
    for call in named.values():
        await times_ms(call, WARM)
    for _ in range(ROUNDS):
        for name, call in named.items():
            told = await times_ms(call, CALLS)
            rounds[name].append((told[len(told) // 2], told[int(0.99 * len(told))]))
    return {
        name: (statistics.median(p[0] for p in r), statistics.median(p[1] for p in r)) for name, r in rounds.items()
    }


def asking(http: aiohttp.ClientSession, url: str, model: str, content: str, **extra: str) -> Call:
    """A call that asks over HTTP and reads the whole answer."""
    body = {"model": model, "messages": [{"role": "user", "content": content}], "max_tokens": 8}
    headers = {"Cache-Control": "no-cache", **extra}

    async def call() -> None:
        async with http.post(f"{url}/v1/chat/completions", json=body, headers=headers) as answer:
            told = await answer.read()
            assert answer.status == 200, told

    return call


async def first_delta_ms(http: aiohttp.ClientSession, url: str) -> float:
    """Median time to the first byte of a streamed answer."""
    body = {"model": "noop", "messages": [{"role": "user", "content": KILOBYTE}], "stream": True}
    told = []
    for _ in range(CALLS):
        started = perf_counter()
        async with http.post(f"{url}/v1/chat/completions", json=body, headers={"Cache-Control": "no-cache"}) as answer:
            await answer.content.readany()
            told.append(1000 * (perf_counter() - started))
            await answer.read()
    return statistics.median(told)


async def step_overhead_ms(http: aiohttp.ClientSession, url: str) -> float:
    """What one more step of a pipeline adds, from pipelines of 1 and 21 transform steps."""
    step = {"type": "transform", "config": {"value": "{input}"}}
    durations = {}
    for count in (1, 21):
        steps = [{"name": f"s{number}", **step} for number in range(count)]
        pipeline = {"name": f"steps-{count}", "steps": steps}
        async with http.put(f"{url}/v1/pipelines", json={"pipeline": pipeline}) as answer:
            assert answer.status == 200, await answer.text()
        body = {"model_id": f"pipeline:steps-{count}", "data": KILOBYTE}
        told = []
        for number in range(50):
            async with http.post(f"{url}/v1/predict", json={**body, "parameters": {"n": number}}) as answer:
                told.append((await answer.json())["latency"])
        durations[count] = statistics.median(told)
    return (durations[21] - durations[1]) / 20


async def bench_one_process(table: Table) -> None:
    """Gateway and executor over the no-op engine."""
    with tempfile.TemporaryDirectory(prefix="catena-bench-") as folder:
        async with one_process(Path(folder)) as (house, url, key):
            headers = {"Authorization": f"Bearer {key}"}
            async with (
                aiohttp.ClientSession(headers=headers) as http,
                dial(house.address("adapters"), token=service_token(house)) as channel,
            ):
                engine = adapters_pb2_grpc.AdaptersServiceStub(channel)

                async def direct() -> None:
                    async for _ in engine.Generate(adapters_pb2.GenerateRequest(model="noop")):
                        pass

                told = await measure({"direct": direct, "gateway": asking(http, url, "noop", KILOBYTE)})
                table.add_row("no-op engine, called directly", *ms(told["direct"]), "")
                table.add_row("through gateway and executor", *ms(told["gateway"]), "p50 at most 5 ms")
                table.add_row("first delta of a stream", f"{await first_delta_ms(http, url):.2f} ms", "", "at once")
                table.add_row("one more pipeline step", f"{await step_overhead_ms(http, url):.3f} ms", "", "under 1 ms")


async def bench_whole(table: Table, *, split: bool) -> None:
    """The whole platform with the demo's bases, as `catena up` runs it."""
    with tempfile.TemporaryDirectory(prefix="catena-bench-") as folder:
        os.environ.update({"CATENA__HOME": folder, "CATENA__GATEWAY__PORT": "0", "CATENA__TELEMETRY__SAMPLE": "0.01"})
        house, _ = load(CONFIG, "", Section)
        started = perf_counter()
        async with platform(house, CONFIG, split=split) as running:
            name = "split" if split else "one process"
            table.add_row(f"start-up, {name}", f"{perf_counter() - started:.1f} s", "", "")
            async with aiohttp.ClientSession(headers={"Authorization": f"Bearer {running.key}"}) as http:
                calls = {
                    "explicit": asking(http, running.url, "demo-small", "upper: tin"),
                    "auto": asking(http, running.url, "auto", "upper: tin"),
                }
                told = await measure(calls)
            table.add_row(f"demo-small, {name}", *ms(told["explicit"]), "")
            table.add_row(f"auto, {name}", *ms(told["auto"]), "")
            for line, mebibytes in memory_of(psutil.Process()):
                table.add_row(f"memory, {name}: {line}", f"{mebibytes:.0f} MiB", "", "")


def memory_of(parent: psutil.Process) -> list[tuple[str, float]]:
    """Resident memory by child process, named by the module that it runs."""
    told = []
    for child in parent.children(recursive=True):
        try:
            words = child.cmdline()
            named = [word for word in words if word.startswith("catena.") or "nats-server" in word]
            told.append((named[0].rsplit("/", 1)[-1] if named else words[0], child.memory_info().rss / 2**20))
        except psutil.NoSuchProcess:
            continue
    return told


def ms(pair: tuple[float, float]) -> tuple[str, str]:
    """p50 and p99 as cells."""
    return f"{pair[0]:.2f} ms", f"{pair[1]:.2f} ms"


async def run(console: Console, *, smoke: bool) -> None:
    """Every part, one after the other."""
    table = Table(title="What the platform costs", title_justify="left")
    for name in ("what", "p50 or value", "p99", "aim"):
        table.add_column(name, justify="left" if name in ("what", "aim") else "right")
    with console.status("no-op engine, one process"):
        await bench_one_process(table)
    if not smoke:
        for split in (False, True):
            with console.status(f"whole platform, {'split' if split else 'one process'}"):
                await bench_whole(table, split=split)
    console.print(table)


def main() -> None:
    """Parse the command line and run."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--smoke", action="store_true", help="only the no-op engine")
    uvloop.run(run(Console(), smoke=parser.parse_args().smoke))


if __name__ == "__main__":
    main()
