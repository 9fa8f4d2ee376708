"""Run it: `make bench-gateway`, or `python -m benchmarks.gateway --parts a,b`."""

import argparse
import os
import tempfile
from contextlib import AsyncExitStack
from pathlib import Path

import psutil
import uvloop
from rich.console import Console

from benchmarks.adapters.report import Missing, Report
from benchmarks.gateway import parts
from benchmarks.gateway.load import Load, loads
from benchmarks.gateway.servers import INSTALL, LITELLM_PYTHON, open_catena, open_litellm, open_upstream, other_cores

PARTS = "abcdefg"


async def run(report: Report, wanted: str, requests: int) -> None:
    """Every wanted part, all servers up at once, each measured in turn."""
    os.sched_setaffinity(0, other_cores())
    async with AsyncExitStack() as stack:
        scratch = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="catena-bench-")))
        upstream = await stack.enter_async_context(open_upstream(scratch / "upstream"))
        servers = [upstream, await stack.enter_async_context(open_catena(upstream.url, scratch / "whole"))]
        if "a" in wanted:
            servers.append(await stack.enter_async_context(open_catena(upstream.url, scratch / "split", split=True)))
        if os.environ.get(LITELLM_PYTHON):
            servers.append(await stack.enter_async_context(open_litellm(upstream.url, scratch / "litellm")))
        else:
            report.add(Missing(part=wanted, why=INSTALL))
        told = await stack.enter_async_context(loads(servers))
        await measure(report, wanted, requests, {load.server.name: load for load in told})


async def measure(report: Report, wanted: str, requests: int, by_name: dict[str, Load]) -> None:
    """The parts in order."""
    direct, ours, peer = by_name["direct"], by_name["catena"], by_name.get("litellm")
    if "a" in wanted:
        await parts.one_at_a_time(report, direct, [ours, by_name["split"]], peer)
    if "b" in wanted:
        await parts.many_at_once(report, [ours], peer)
    if "c" in wanted:
        await parts.streams(report, direct, ours, peer)
    if "e" in wanted:
        await parts.strategies(report, direct, ours)
    if "f" in wanted:
        await parts.batches(report, ours)
    if "g" in wanted:
        await parts.cached(report, ours)
    if "d" in wanted:
        await parts.memory(report, ours, peer, requests)


def main() -> None:
    """Parse the command line, run, print, write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--parts", default=",".join(PARTS), help="which of a to g")
    parser.add_argument("--rounds", type=int, default=5, help="rounds of which figures are medians")
    parser.add_argument("--requests", type=int, default=50_000, help="of part d")
    parser.add_argument("--out", type=Path, help="where to keep the figures as JSON")
    asked = parser.parse_args()
    console = Console()
    report = Report(console, rounds=asked.rounds)
    with report.progress:
        uvloop.run(run(report, asked.parts, asked.requests))
    console.print(report.table("What the gateway adds"))
    if asked.out:
        report.write(asked.out, {"cores": psutil.cpu_count(), "requests": asked.requests})


if __name__ == "__main__":
    main()
