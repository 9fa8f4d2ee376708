"""`catena adapters`."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer

from catena.api.adapters.v1 import adapters_pb2, adapters_pb2_grpc
from catena.kit.caller import DEVELOPER
from catena.kit.errors import Invalid
from catena.sdk.terminal import Bytes, Tenant, Terminal, size

app = typer.Typer(
    help="Signed adapters: what there is and what is loaded, names, choice by task, and files in other formats.",
    no_args_is_help=True,
)
Model = Annotated[str, typer.Argument(help="base@adapter or base@adapter:version")]


@app.command("list")
def list_(context: typer.Context, tenant: Tenant = DEVELOPER) -> None:
    """List the registered versions."""
    terminal: Terminal = context.obj

    async def work() -> None:
        async with terminal.room("adapters", adapters_pb2_grpc.AdaptersServiceStub, tenant) as adapters:
            told = await adapters.ListAdapters(adapters_pb2.ListAdaptersRequest(page_size=1000))
        columns = ("adapter", "aliases", "status", "rank", "size", "uses", "accuracy", "digest")
        rows = [
            (
                f"{a.base}@{a.name}:{a.version}",
                " ".join(a.aliases),
                a.status,
                a.rank,
                Bytes(a.bytes),
                a.uses,
                a.metrics.get("accuracy"),
                a.digest[:19],
            )
            for a in told.adapters
        ]
        terminal.table("Adapters", columns, rows)

    terminal.run(work())


@app.command()
def resident(context: typer.Context, tenant: Tenant = DEVELOPER) -> None:
    """Show what is in memory, and in which tier."""
    terminal: Terminal = context.obj

    async def work() -> None:
        async with terminal.room("adapters", adapters_pb2_grpc.AdaptersServiceStub, tenant) as adapters:
            told = await adapters.GetResidency(adapters_pb2.GetResidencyRequest())
        rows = [(r.model, r.tier, Bytes(r.bytes), r.pinned, r.users) for r in told.residents]
        held = ", ".join(f"{tier.name} {size(tier.bytes)}" + _of(tier.budget_bytes) for tier in told.tiers)
        title = f"Resident: {held}; pressure {told.pressure}"
        terminal.table(title, ("adapter", "tier", "size", "pinned", "users"), rows)

    terminal.run(work())


@app.command()
def tiers(context: typer.Context, tenant: Tenant = DEVELOPER) -> None:
    """Show how each tier does: the device, host memory and disk."""
    terminal: Terminal = context.obj

    async def work() -> None:
        async with terminal.room("adapters", adapters_pb2_grpc.AdaptersServiceStub, tenant) as adapters:
            told = await adapters.GetResidency(adapters_pb2.GetResidencyRequest())
        columns = ("tier", "adapters", "size", "budget", "hits", "misses", "evictions", "pinned")
        rows = [
            (
                tier.name,
                tier.adapters,
                Bytes(tier.bytes),
                Bytes(tier.budget_bytes) if tier.budget_bytes else None,
                tier.hits,
                tier.misses,
                tier.evictions,
                tier.pinned,
            )
            for tier in told.tiers
        ]
        terminal.table(f"Tiers: {told.preloads} loaded ahead, pressure {told.pressure}", columns, rows)

    terminal.run(work())


@app.command()
def register(
    context: typer.Context,
    source: Annotated[Path, typer.Argument(help="Signed PEFT folder, or a .safetensors file with its configuration.")],
    base: Annotated[str, typer.Option(help="Base that it must be for; a file needs it.")] = "",
    called: Annotated[str, typer.Option("--as", help="name:version; for a file, in which nothing says so.")] = "",
    tenant: Tenant = DEVELOPER,
) -> None:
    """Take an adapter in; it must pass the gate.

    A folder comes sealed and signed. A single file, its configuration beside it as NAME.json or adapter_config.json, is
    sealed here and signed with this installation's importing key.

    `catena adapters register ./mine.safetensors --base demo-large --as mine:1`
    """
    terminal: Terminal = context.obj

    async def work() -> None:
        async with terminal.room("adapters", adapters_pb2_grpc.AdaptersServiceStub, tenant) as adapters:
            with _folder(terminal, source, base, called) as folder:
                request = adapters_pb2.RegisterAdapterRequest(path=str(folder.resolve()), base=base)
                terminal.message((await adapters.RegisterAdapter(request)).adapter)

    terminal.run(work())


@app.command()
def load(context: typer.Context, model: Model, tenant: Tenant = DEVELOPER) -> None:
    """Make an adapter resident."""
    terminal: Terminal = context.obj

    async def work() -> None:
        async with terminal.room("adapters", adapters_pb2_grpc.AdaptersServiceStub, tenant) as adapters:
            terminal.message(await adapters.Load(adapters_pb2.LoadRequest(model=model)))

    terminal.run(work())


@app.command()
def preload(
    context: typer.Context,
    workflow: Annotated[str, typer.Argument(help="For example content-creation.")],
    base: Annotated[str, typer.Option(help="Base on whose adapters the workflow runs.")],
    tenant: Tenant = DEVELOPER,
) -> None:
    """Load what a workflow begins with, as far as it fits."""
    terminal: Terminal = context.obj

    async def work() -> None:
        async with terminal.room("adapters", adapters_pb2_grpc.AdaptersServiceStub, tenant) as adapters:
            told = await adapters.Preload(adapters_pb2.PreloadRequest(workflow=workflow, base=base))
        rows = [(one.model, one.resident, one.reason) for one in told.preloaded]
        terminal.table(f"Set of {workflow}", ("adapter", "resident", "reason"), rows)

    terminal.run(work())


@app.command()
def unload(context: typer.Context, model: Model, tenant: Tenant = DEVELOPER) -> None:
    """Drain and free an adapter."""
    terminal: Terminal = context.obj

    async def work() -> None:
        async with terminal.room("adapters", adapters_pb2_grpc.AdaptersServiceStub, tenant) as adapters:
            terminal.message(await adapters.Unload(adapters_pb2.UnloadRequest(model=model)))

    terminal.run(work())


@app.command()
def alias(
    context: typer.Context,
    model: Annotated[str, typer.Argument(help="base@adapter:version")],
    name: Annotated[str, typer.Argument(help="Alias, for example stable.")],
    expected: Annotated[str, typer.Option(help="Digest it must point at now; empty: it must not exist.")] = "",
    tenant: Tenant = DEVELOPER,
) -> None:
    """Point an alias at a version, if it still points where you think."""
    terminal: Terminal = context.obj
    base, _, rest = model.partition("@")
    adapter, _, version = rest.partition(":")

    async def work() -> None:
        if not (base and adapter and version):
            raise Invalid(f"model {model!r} should read base@adapter:version", code="bad_model_name")
        async with terminal.room("adapters", adapters_pb2_grpc.AdaptersServiceStub, tenant) as adapters:
            request = adapters_pb2.SetAliasRequest(
                base=base, name=adapter, alias=name, version=version, expected_digest=expected
            )
            terminal.message((await adapters.SetAlias(request)).adapter)

    terminal.run(work())


@app.command()
def fallback(
    context: typer.Context,
    model: Annotated[str, typer.Argument(help="base@adapter")],
    others: Annotated[list[str] | None, typer.Argument(help="Models to try in its place; none: remove.")] = None,
    tenant: Tenant = DEVELOPER,
) -> None:
    """Declare which models may answer where an adapter cannot."""
    terminal: Terminal = context.obj

    async def work() -> None:
        async with terminal.room("adapters", adapters_pb2_grpc.AdaptersServiceStub, tenant) as adapters:
            await adapters.SetFallbacks(adapters_pb2.SetFallbacksRequest(model=model, fallbacks=others or []))
        terminal.say(f"{model}: {', '.join(others) if others else 'no fallback'}")

    terminal.run(work())


@app.command()
def select(
    context: typer.Context,
    task: Annotated[str, typer.Argument(help="The task, for example code.")],
    base: Annotated[str, typer.Option(help="Base whose adapters are meant.")],
    tenant: Tenant = DEVELOPER,
) -> None:
    """Show which adapter base@auto means for a task, and what it was chosen from."""
    terminal: Terminal = context.obj

    async def work() -> None:
        async with terminal.room("adapters", adapters_pb2_grpc.AdaptersServiceStub, tenant) as adapters:
            told = await adapters.SelectAdapter(adapters_pb2.SelectAdapterRequest(base=base, task=task))
            listed = await adapters.ListAdapters(adapters_pb2.ListAdaptersRequest(base=base, page_size=1000))
        rows = [
            (
                f"{one.adapter.base}@{one.adapter.name}:{one.adapter.version}",
                one.accuracy if one.HasField("accuracy") else None,
            )
            for one in told.candidates
        ]
        terminal.table(f"{told.model}: {told.reason}", ("adapter", "accuracy"), rows)
        if not rows:
            for name in _never_stable(listed.adapters, task):
                terminal.say(f"{name} is for it but not stable: `catena adapters alias {name} stable`")

    terminal.run(work())


@app.command()
def update(context: typer.Context, model: Model, tenant: Tenant = DEVELOPER) -> None:
    """Tell whether a newer version is worth moving to."""
    terminal: Terminal = context.obj

    async def work() -> None:
        async with terminal.room("adapters", adapters_pb2_grpc.AdaptersServiceStub, tenant) as adapters:
            terminal.message(await adapters.RecommendUpdate(adapters_pb2.RecommendUpdateRequest(model=model)))

    terminal.run(work())


@app.command()
def library(context: typer.Context, tenant: Tenant = DEVELOPER) -> None:
    """List the library profiles: well-known names, what they are for, and which are there."""
    terminal: Terminal = context.obj

    async def work() -> None:
        async with terminal.room("adapters", adapters_pb2_grpc.AdaptersServiceStub, tenant) as adapters:
            told = await adapters.ListProfiles(adapters_pb2.ListProfilesRequest())
        rows = [(one.name, " ".join(one.tasks), one.description, " ".join(one.models)) for one in told.profiles]
        terminal.table("Library profiles", ("name", "tasks", "for", "adapters"), rows)

    terminal.run(work())


@contextmanager
def _folder(terminal: Terminal, source: Path, base: str, called: str) -> Iterator[Path]:
    """A folder as it is; of a file, the signed folder that it becomes."""
    if source.is_dir():
        yield source
        return
    if not (source.is_file() and base and called):
        raise Invalid(
            f"{source} is no folder; a .safetensors file needs --base and --as name:version", code="bad_request"
        )
    # Needs what an installation of the command alone does not have.
    from catena.sdk import vouching

    with vouching.signed_file(terminal.house, source, told=called, base=base) as folder:
        yield folder


def _never_stable(listed: Iterable[adapters_pb2.Adapter], task: str) -> list[str]:
    """The versions for a task, not withdrawn, of adapters that have no stable one."""
    found = list(listed)
    stable = {one.name for one in found if "stable" in one.aliases}
    return [
        f"{one.base}@{one.name}:{one.version}"
        for one in found
        if one.status != "withdrawn" and one.name not in stable and (task == one.name or task in one.tasks)
    ]


def _of(budget_bytes: int) -> str:
    return f" of {size(budget_bytes)}" if budget_bytes else ""
