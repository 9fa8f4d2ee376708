"""`catena route domains` and what changes them."""

from pathlib import Path
from typing import Annotated

import typer

from catena.api.router.v1 import router_pb2, router_pb2_grpc
from catena.kit.caller import DEVELOPER
from catena.kit.errors import Missing
from catena.sdk.terminal import Tenant, Terminal

Specialist = Annotated[str, typer.Option(help="Model that answers it best.")]
COLUMNS = ("domain", "examples", "specialist", "needs memory", "merged from", "taken from")


def domains(context: typer.Context, tenant: Tenant = DEVELOPER) -> None:
    """List the domains."""
    terminal: Terminal = context.obj

    async def work() -> None:
        async with terminal.room("router", router_pb2_grpc.RouterServiceStub, tenant) as router:
            told = await router.ListDomains(router_pb2.ListDomainsRequest())
        if terminal.plain:
            terminal.message(told)
            return
        terminal.table("Domains", COLUMNS, map(_row, told.domains))
        if told.domains:
            terminal.say(f"{told.strangers:.0%} of requests are held to be of none of them")

    terminal.run(work())


def put_domain(
    context: typer.Context,
    name: Annotated[str, typer.Argument(help="Its name: lower-case letters, digits, hyphens.")],
    example: Annotated[list[str] | None, typer.Option(help="A text that belongs to it; may be given often.")] = None,
    file: Annotated[Path | None, typer.Option(help="A file of such texts, one a line.")] = None,
    specialist: Specialist = "",
    needs_memory: Annotated[bool, typer.Option(help="Answers need what memory knows.")] = False,
    tenant: Tenant = DEVELOPER,
) -> None:
    """Add a domain by a few examples, or replace the one of this name."""
    terminal: Terminal = context.obj

    async def work() -> None:
        examples = [*(example or []), *_lines(file)]
        domain = router_pb2.Domain(name=name, examples=examples, specialist=specialist, needs_memory=needs_memory)
        async with terminal.room("router", router_pb2_grpc.RouterServiceStub, tenant) as router:
            told = await router.PutDomain(router_pb2.PutDomainRequest(domain=domain))
        terminal.table("Domain", COLUMNS, [_row(told.domain)])

    terminal.run(work())


def merge_domains(
    context: typer.Context,
    names: Annotated[list[str], typer.Argument(help="Domains to merge.")],
    into: Annotated[str, typer.Option(help="What they become: one of them, or a new name.")],
    specialist: Specialist = "",
    tenant: Tenant = DEVELOPER,
) -> None:
    """Make one domain of several, with what was learned of them; their names go on meaning it."""
    terminal: Terminal = context.obj

    async def work() -> None:
        request = router_pb2.MergeDomainsRequest(names=names, into=into, specialist=specialist)
        async with terminal.room("router", router_pb2_grpc.RouterServiceStub, tenant) as router:
            told = await router.MergeDomains(request)
        terminal.table("Domain", COLUMNS, [_row(told.domain)])

    terminal.run(work())


def delete_domain(
    context: typer.Context,
    name: Annotated[str, typer.Argument(help="Its name.")],
    tenant: Tenant = DEVELOPER,
) -> None:
    """Remove a domain."""
    terminal: Terminal = context.obj

    async def work() -> None:
        async with terminal.room("router", router_pb2_grpc.RouterServiceStub, tenant) as router:
            await router.DeleteDomain(router_pb2.DeleteDomainRequest(name=name))
        terminal.say(f"{name} is gone")

    terminal.run(work())


def _lines(file: Path | None) -> list[str]:
    """The lines of a file. Raises Missing (`no_file`) when it cannot be read."""
    if file is None:
        return []
    try:
        return file.read_text().splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise Missing(f"cannot read {file}: {error}; name a text file of one example a line", code="no_file") from None


def _row(domain: router_pb2.Domain) -> tuple[str, int, str, bool, str, str]:
    return (
        domain.name,
        len(domain.examples),
        domain.specialist,
        domain.needs_memory,
        ", ".join(domain.aliases),
        domain.origin,
    )
