"""`catena up` and `catena serve`."""

import asyncio
import os
import signal
import sys
from collections.abc import Mapping
from typing import Annotated

import typer
from rich.markup import escape

from catena.kit.config import ROOMS
from catena.sdk.terminal import Terminal
from catena.sdk.up import platform, uncallable


def up(
    context: typer.Context,
    split: Annotated[bool, typer.Option(help="Give every room a process of its own.")] = False,
) -> None:
    """Run the whole platform here and stay; Ctrl-C stops it, and its data is kept."""
    terminal: Terminal = context.obj
    terminal.run(_up(terminal, split=split))


def serve(
    context: typer.Context,
    room: Annotated[str, typer.Argument(help=f"One of {', '.join(ROOMS)}.")],
    admin_port: Annotated[int, typer.Option(help="Port of /metrics and /healthz; 0 picks a free one.")] = 0,
    admin_host: Annotated[str, typer.Option(help="Where /metrics and /healthz listen.")] = "127.0.0.1",
) -> None:
    """Run one room in this process, for process managers and containers."""
    if room not in ROOMS:
        raise typer.BadParameter(f"unknown room {room!r}; use one of {', '.join(ROOMS)}")
    terminal: Terminal = context.obj
    config = ["--config", str(terminal.config)] if terminal.config else []
    admin = ["--admin-host", admin_host, "--admin-port", str(admin_port)]
    os.execv(sys.executable, [sys.executable, "-m", f"catena.{room}", *config, *admin])


async def _up(terminal: Terminal, *, split: bool) -> None:
    stop = asyncio.Event()
    starting = asyncio.current_task()
    assert starting is not None
    loop = asyncio.get_running_loop()
    ready = False

    def interrupted() -> None:
        stop.set()
        if not ready:
            starting.cancel()

    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, interrupted)
    try:
        with terminal.console.status("starting") as status:
            running = platform(
                terminal.house, terminal.config, split=split, step=lambda part: status.update(f"starting {part}")
            )
            here = await running.__aenter__()
        ready = True
        try:
            terminal.say(_welcome(here.url, here.key, await uncallable(here.house)), markup=True)
            await stop.wait()
        finally:
            with terminal.console.status("stopping"):
                await running.__aexit__(None, None, None)
    except asyncio.CancelledError:
        if not stop.is_set():
            raise
    terminal.say("stopped; data is kept for the next start")


def _welcome(url: str, key: str, uncallable: Mapping[str, str]) -> str:
    body = '{"model": "auto", "messages": [{"role": "user", "content": "reverse: hello"}]}'
    return "\n".join(
        [
            "",
            f"  [bold]Catena is up[/bold]   {url}",
            f"  key            {key}",
            f"  dashboard      {url}/dashboard#key={key}",
            "",
            f"  curl {url}/v1/chat/completions -H 'Authorization: Bearer {key}' \\",
            f"    -H 'Content-Type: application/json' -d '{body}'".replace("[", "\\["),
            "",
            *_without(uncallable),
            "  Ctrl-C stops it.",
        ]
    )


def _without(uncallable: Mapping[str, str]) -> list[str]:
    if not uncallable:
        return []
    lines = [f"  [yellow]{escape(name)}[/yellow]  {escape(problem)}" for name, problem in uncallable.items()]
    return ["  [yellow]These models cannot be called, and `auto` goes without them:[/yellow]", *lines, ""]
