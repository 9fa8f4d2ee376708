"""Routes as data: what each takes and gives; the application and its OpenAPI document are made of it."""

from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass
from typing import Any

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from catena.gateway.core.keys import Key

Handler = Callable[[Request, Key], Awaitable[Response]]
Open = Callable[[Request], Awaitable[Response]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """One verb of one path.

    `takes`: the body, a msgspec struct or a protobuf message; None: there is none. `gives`: a protobuf message, or the
    JSON schema of the answer; None: any object. `example` is a body that is accepted. `streams`: the answer may be
    server-sent events. `open`: it needs no key. Fields of `takes` come in the query where the verb has no body.
    """

    verb: str
    path: str
    says: str
    handler: Handler | None = None
    open: Open | None = None
    takes: type[Any] | None = None
    gives: Any = None
    example: Any = None
    status: int = 200
    optional_body: bool = False
    streams: bool = False
    media: str = "application/json"


def served(entries: Iterable[Entry], guarded: Callable[[Handler], Open]) -> list[Route]:
    """Starlette's routes: one a path, so that a verb that is not served is told which ones are."""
    paths: dict[str, dict[str, Open]] = {}
    for entry in entries:
        if entry.handler is None:
            assert entry.open is not None, f"{entry.path} has no handler"
            paths.setdefault(entry.path, {})[entry.verb] = entry.open
        else:
            paths.setdefault(entry.path, {})[entry.verb] = guarded(entry.handler)
    return [Route(path, _by_verb(verbs), methods=list(verbs)) for path, verbs in paths.items()]


def _by_verb(verbs: dict[str, Open]) -> Open:
    async def endpoint(request: Request) -> Response:
        return await verbs["GET" if request.method == "HEAD" else request.method](request)

    return endpoint
