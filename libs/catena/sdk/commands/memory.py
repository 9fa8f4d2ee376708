"""`catena memory`."""

from pathlib import Path
from typing import Annotated

import typer
from rich.progress import track

from catena.api.memory.v1 import memory_pb2, memory_pb2_grpc
from catena.kit.caller import DEVELOPER
from catena.kit.errors import Invalid
from catena.sdk.terminal import Tenant, Terminal

app = typer.Typer(help="Documents and procedures: put, search, match.", no_args_is_help=True)
Collection = Annotated[str, typer.Option(help="Collection.")]
PUT_TIMEOUT_S = 600.0


@app.command()
def put(
    context: typer.Context,
    paths: Annotated[list[Path], typer.Argument(exists=True, help="Files, or folders of .py, .md and .txt files.")],
    collection: Collection = "default",
    tenant: Tenant = DEVELOPER,
) -> None:
    """Store files; source code is cut along its syntax tree."""
    terminal: Terminal = context.obj
    files = [file for path in paths for file in files_of(path)]

    async def work() -> None:
        embedded = unchanged = 0
        documents = [document_of(file) for file in files]  # read first: one that is no text leaves nothing half done
        async with terminal.room("memory", memory_pb2_grpc.MemoryServiceStub, tenant) as memory:
            for document in track(documents, "storing", console=terminal.console, disable=terminal.plain):
                request = memory_pb2.PutDocumentsRequest(collection=collection, documents=[document])
                told = await memory.PutDocuments(request, timeout=PUT_TIMEOUT_S)
                embedded += told.chunks_embedded
                unchanged += told.chunks_unchanged
        terminal.say(f"{len(files)} files: {embedded} chunks embedded, {unchanged} unchanged")

    terminal.run(work())


@app.command()
def search(
    context: typer.Context,
    query: Annotated[str, typer.Argument(help="What to look for.")],
    collection: Collection = "default",
    engine: Annotated[str, typer.Option(help="vector, bm25 or hybrid.")] = "hybrid",
    n_results: Annotated[int, typer.Option("-n", min=1, help="Results wanted.")] = 3,
    tenant: Tenant = DEVELOPER,
) -> None:
    """Find the chunks nearest to a query."""
    terminal: Terminal = context.obj

    async def work() -> None:
        request = memory_pb2.SearchRequest(collection=collection, query=query, engine=engine, n_results=n_results)
        async with terminal.room("memory", memory_pb2_grpc.MemoryServiceStub, tenant) as memory:
            told = await memory.Search(request)
        rows = [
            (h.score, h.chunk.type, h.chunk.name or h.chunk.title, f"{h.chunk.path}:{h.chunk.first_line}", h.chunk.text)
            for h in told.hits
        ]
        terminal.table(f"{told.duration_ms:.0f} ms", ("score", "type", "name", "where", "text"), rows)

    terminal.run(work())


@app.command()
def sops(
    context: typer.Context,
    text: Annotated[str, typer.Argument(help="Show what this text calls for; empty: list all.")] = "",
    tenant: Tenant = DEVELOPER,
) -> None:
    """List the procedures, or match them against a text, saying why."""
    terminal: Terminal = context.obj

    async def work() -> None:
        async with terminal.room("memory", memory_pb2_grpc.MemoryServiceStub, tenant) as memory:
            if text:
                found = await memory.MatchSops(memory_pb2.MatchSopsRequest(text=text, n_results=10))
                rows = [(m.score, m.sop.name, ", ".join(m.triggers), len(m.sop.steps)) for m in found.matches]
                terminal.table("Matches", ("score", "procedure", "because of", "steps"), rows)
                return
            told = await memory.ListSops(memory_pb2.ListSopsRequest())
        listed = [(s.priority, s.name, s.category, ", ".join(s.triggers), len(s.steps)) for s in told.sops]
        terminal.table("Procedures", ("priority", "procedure", "category", "triggers", "steps"), listed)

    terminal.run(work())


def document_of(file: Path) -> memory_pb2.Document:
    """A file as a document. Raises Invalid (`no_text`)."""
    return memory_pb2.Document(id=str(file), path=str(file), title=file.name, text=text_of(file))


def text_of(file: Path) -> str:
    """The file's text. Raises Invalid (`no_text`)."""
    try:
        return file.read_text()
    except (OSError, UnicodeDecodeError) as error:
        raise Invalid(f"{file} is no readable UTF-8 text: {error}", code="no_text") from None


def files_of(path: Path) -> list[Path]:
    """The file itself, or the readable files below a folder that hold anything."""
    if path.is_file():
        return [path]
    found = (file for file in path.rglob("*") if file.suffix in (".py", ".md", ".txt") and file.is_file())
    return sorted(file for file in found if file.stat().st_size)
