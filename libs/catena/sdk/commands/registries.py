"""`catena adapters updates|publish` and `catena models accept|examples|sign`: what others have, who vouches for it."""

from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

from catena.api.adapters.v1 import adapters_pb2, adapters_pb2_grpc
from catena.kit.caller import DEVELOPER
from catena.kit.clock import World
from catena.kit.errors import Missing
from catena.sdk.terminal import Bytes, Tenant, Terminal

FETCH_S = 6 * 3600.0
"""Longest for all that is fetched in one go."""
PAGE = 1000


def updates(
    context: typer.Context,
    model: Annotated[str, typer.Argument(help="base@adapter; empty: every adapter.")] = "",
    pull: Annotated[
        bool, typer.Option(help="Fetch what is better and register it, under an alias of its own.")
    ] = False,
    known: Annotated[bool, typer.Option(help="Show what was found before; ask no registry.")] = False,
    tenant: Tenant = DEVELOPER,
) -> None:
    """Look in the remote registries for compatible versions better by more than two points of accuracy.

    What is fetched passes the gate and gets the registry's alias, `candidate` unless it says otherwise; `stable` stays.
    Registries are named under `adapters.registries`.

    `catena adapters updates demo-large@code --pull`
    """
    terminal: Terminal = context.obj
    request = adapters_pb2.CheckUpdatesRequest(pull=pull, model=model, known_only=known)
    failed = False

    async def work() -> None:
        nonlocal failed
        rows: list[tuple[str, str, str, str, float | None, str]] = []
        async with terminal.room("adapters", adapters_pb2_grpc.AdaptersServiceStub, tenant) as adapters:
            with _bars(terminal) as show:
                async for told in adapters.CheckUpdates(request, timeout=FETCH_S):
                    match told.WhichOneof("told"):
                        case "transfer":
                            show(told.transfer)
                        case "update":
                            one = told.update
                            rows.append((one.registry, one.model, one.version, one.state, one.gain, one.reason))
                        case "trouble":
                            failed = True
                            reason = f"{told.trouble.code}: {told.trouble.message}"
                            rows.append((told.trouble.registry, "", "", "failed", None, reason))
        terminal.table("Updates", ("registry", "in use", "version", "state", "gain", "reason"), rows)
        if not rows:
            terminal.say("no registry has an adapter of these names; registries are named under adapters.registries")

    terminal.run(work())
    if failed:
        raise typer.Exit(1)


def publish(
    context: typer.Context,
    folder: Annotated[Path, typer.Argument(help="Folder to write; any web server or bucket can serve it.")],
    models: Annotated[list[str] | None, typer.Argument(help="base@adapter[:version]; none: every version.")] = None,
    tenant: Tenant = DEVELOPER,
) -> None:
    """Write adapters as a registry that other installations look for updates in.

    Each is a tar named by its digest; index.json lists them, and its signed record lies beside it. Others name the
    folder's address under `adapters.registries`, and trust the public keys in this home's keys/trusted; `signed_by`
    there is this home's keys/sidecar.pub. With `gateway.registry: FOLDER` the gateway serves it to administrators.

    `catena adapters publish ./shelf demo-large@code`
    """
    terminal: Terminal = context.obj

    async def work() -> None:
        async with terminal.room("adapters", adapters_pb2_grpc.AdaptersServiceStub, tenant) as adapters:
            found = [one async for one in _wanted(adapters, models or [])]
        # Needs what an installation of the command alone does not have.
        from catena.sdk import vouching

        if not found:
            raise Missing("no adapter is registered; register one first", code="unknown_adapter")
        digests = [one.digest for one in found]
        told = vouching.publish(terminal.house, digests, folder, now_s=World().clock.now())
        columns = ("adapter", "accuracy", "size", "digest")
        rows = [
            (f"{e.base}@{e.name}:{e.version}", e.metrics.get("accuracy"), Bytes(e.bytes), e.digest[:19])
            for e in told.adapters
        ]
        terminal.table(f"Published in {folder}", columns, rows)

    terminal.run(work())


def accept(
    context: typer.Context,
    name: Annotated[str, typer.Argument(help="The base, as under `models`.")],
    digest: Annotated[str, typer.Option(help="Digest that it must have now; empty: whatever it has.")] = "",
) -> None:
    """Serve a base as its files are now, where they were altered on purpose.

    A base is otherwise served only as it was first seen. Adapters for the former weights fit it no longer; `catena
    adapters migrate` moves those whose layers did not change.

    `catena models accept demo-large`
    """
    terminal: Terminal = context.obj

    async def work() -> None:
        async with terminal.room("adapters", adapters_pb2_grpc.AdaptersServiceStub, DEVELOPER) as adapters:
            request = adapters_pb2.AcceptBaseRequest(name=name, digest=digest)
            terminal.message((await adapters.AcceptBase(request, timeout=FETCH_S)).base)

    terminal.run(work())


def examples(context: typer.Context) -> None:
    """List examples of bases: a fast one, one for complex reasoning, an alternative.

    Nothing is fetched because it is listed: name one under `models` with its folder or, with `adapters.hub`, this path.
    """
    terminal: Terminal = context.obj

    async def work() -> None:
        async with terminal.room("adapters", adapters_pb2_grpc.AdaptersServiceStub, DEVELOPER) as adapters:
            told = await adapters.ListProfiles(adapters_pb2.ListProfilesRequest())
        columns = ("profile", "path", "parameters", "size in bfloat16", "licence", "for")
        rows = [(b.name, b.path, b.parameters, Bytes(2 * b.parameters), b.licence, b.description) for b in told.bases]
        terminal.table("Base profiles", columns, rows)

    terminal.run(work())


def sign(
    context: typer.Context,
    model: Annotated[Path, typer.Argument(help="A file or a folder; its record is written beside it.")],
) -> None:
    """Write the signed record `MODEL.manifest.json`, which `catena models verify MODEL` checks.

    The key is made at the first use; others verify with this home's keys/sidecar.pub.
    """
    terminal: Terminal = context.obj

    def work() -> None:
        if not model.exists():
            raise Missing(f"nothing at {model}; name a file or a folder", code="no_source")
        # Needs what an installation of the command alone does not have.
        from catena.sdk import vouching

        terminal.say(f"signed as {vouching.record(terminal.house, model, {}, now_s=World().clock.now())}")

    terminal.do(work)


async def _wanted(
    adapters: "adapters_pb2_grpc.AdaptersServiceAsyncStub", models: list[str]
) -> AsyncIterator[adapters_pb2.Adapter]:
    """The named versions, or every active one."""
    for model in models:
        yield (await adapters.GetAdapter(adapters_pb2.GetAdapterRequest(model=model))).adapter
    if models:
        return
    page = adapters_pb2.ListAdaptersRequest(page_size=PAGE)
    while True:
        listed = await adapters.ListAdapters(page)
        for one in listed.adapters:
            if one.status == "active":
                yield one
        if not listed.next_page_token:
            return
        page.page_token = listed.next_page_token


@contextmanager
def _bars(terminal: Terminal) -> Iterator[Callable[[adapters_pb2.Transfer], None]]:
    """A bar for each adapter that is fetched; nothing in JSON mode."""
    if terminal.plain:
        yield lambda transfer: None
        return
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn())
    with Progress(*columns, TimeRemainingColumn(), console=terminal.console) as progress:
        tasks = {}

        def show(transfer: adapters_pb2.Transfer) -> None:
            if transfer.model not in tasks:
                tasks[transfer.model] = progress.add_task(transfer.model, total=transfer.total_bytes or None)
            progress.update(tasks[transfer.model], completed=transfer.done_bytes)

        yield show
