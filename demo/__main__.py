"""The tour: starts the platform, runs its main job through the official OpenAI client, and shows what came out.

Ends with 0 when every step did what it must, else with 1 and a line for each that did not.
"""

import asyncio
import os
import sys
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from time import perf_counter

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from catena.api.router.v1 import router_pb2, router_pb2_grpc
from catena.kit.caller import Caller, as_caller
from catena.kit.chassis import service_token
from catena.kit.config import Section, load
from catena.kit.dial import dial
from catena.kit.errors import CatenaError
from catena.sdk.up import Platform, platform
from demo import knowledge, loop, strategies, tracing
from demo.desk import Desk

PAPER = 140
LEARNED_WITHIN_S = 60.0
CONFIG = Path(__file__).parent / "catena.yaml"


def bars(console: Console) -> Progress:
    """Progress bars as the tour shows them."""
    return Progress(
        SpinnerColumn(),
        TextColumn("{task.description:<22}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        console=console,
        transient=True,
    )


async def tour(running: Platform, console: Console) -> list[str]:
    """Every part in turn; what did not come out as it must."""
    wrong: list[str] = []
    async with Desk(running.url, running.key) as desk, loop.listening(running.home, console) as promotions:
        with bars(console) as progress:
            console.rule("[bold]1. Strategies", align="left")
            await strategies.remember_facts(desk)
            seen = await strategies.warm_up(desk, progress)
            await learned(running, seen)
            await freeze_router(running, frozen=True)
            outcome = await strategies.score(desk, progress, seen)
            await freeze_router(running, frozen=False)
            strategies.show(outcome, console)

            console.rule("[bold]2. The loop closes", align="left")
            lesson = await loop.teach(desk, progress, promotions)
            stopped = await loop.mislead(desk, progress, promotions)
            loop.show(lesson, stopped, console)
            wrong += loop.failures(lesson, stopped)

            console.rule("[bold]3. Memory and features", align="left")
            found = await knowledge.ask_source(desk, progress)
            styles = await knowledge.change_style(desk)
            knowledge.show(found, styles, console)
            wrong += knowledge.failures(found, styles)

            console.rule("[bold]4. One trace", align="left")
            spans = await tracing.follow_one(desk, running.home)
            tracing.show(spans, console)
            wrong += tracing.failures(spans)
    return wrong


async def learned(running: Platform, seen: strategies.WarmUp) -> None:
    """Wait until the router has heard of the whole warm-up: events take a moment. Raises TimeoutError."""
    async with asyncio.timeout(LEARNED_WITHIN_S), dial_router(running) as router:
        while True:
            told = await router.GetStats(router_pb2.GetStatsRequest())
            judged = sum(one.judged for one in told.configurations)
            if told.executions >= seen.answers and judged >= seen.judged:
                return
            await asyncio.sleep(0.2)


@asynccontextmanager
async def dial_router(running: Platform) -> "AsyncIterator[router_pb2_grpc.RouterServiceAsyncStub]":
    """The router, as the tenant of the development key."""
    async with dial(running.house.address("router"), token=service_token(running.house)) as channel:
        with as_caller(Caller("default", "admin")):
            yield router_pb2_grpc.RouterServiceStub(channel)


async def freeze_router(running: Platform, *, frozen: bool) -> None:
    """Stop or resume the router's learning and exploration, so that scoring measures what was learned."""
    async with dial_router(running) as router:
        await router.AutoTune(router_pb2.AutoTuneRequest(freeze=frozen))


async def run(console: Console, home: Path) -> int:
    """Start the platform in `home`, take the tour, stop everything; the exit code."""
    retention = home / "retention.jsonl"
    loop.retention_rows(retention)
    os.environ["CATENA__HOME"] = str(home)
    os.environ["CATENA__GATEWAY__PORT"] = "0"
    os.environ["CATENA__LEARNER__RETENTION_PATH"] = str(retention)
    house, _ = load(CONFIG, "", Section)
    started = perf_counter()
    with console.status("starting the platform") as status:
        opening = platform(house, CONFIG, step=lambda part: status.update(f"starting {part}"))
        running = await opening.__aenter__()
    try:
        console.print(f"platform up in {perf_counter() - started:.1f} s at {running.url}")
        wrong = await tour(running, console)
    finally:
        await opening.__aexit__(None, None, None)
    console.rule(align="left")
    for line in wrong:
        console.print(f"[red]{line}[/red]")
    verdict = "[red]not all went well[/red]" if wrong else "[green]all went well[/green]"
    console.print(f"{verdict} in {perf_counter() - started:.0f} s")
    return 1 if wrong else 0


def main() -> int:
    """Run the tour in a folder that goes away afterwards."""
    console = Console() if sys.stdout.isatty() else Console(width=PAPER)
    with tempfile.TemporaryDirectory(prefix="catena-demo-", ignore_cleanup_errors=True) as folder:
        try:
            return asyncio.run(run(console, Path(folder)))
        except KeyboardInterrupt:
            console.print("stopped")
            return 130
        except (CatenaError, RuntimeError, TimeoutError) as error:
            console.print(f"[red]the tour broke:[/red] {type(error).__name__}: {error}", highlight=False)
            return 1


if __name__ == "__main__":
    sys.exit(main())
