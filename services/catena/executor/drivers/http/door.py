"""The way out to providers over HTTP: one pool of kept-alive connections, keys by name, errors in our kinds."""

from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import aiohttp
import msgspec

from catena.executor.core.catalogue import Model
from catena.executor.drivers.http.refusals import refusal
from catena.kit.clock import Clock
from catena.kit.errors import Late, Unavailable

CONNECT_S = 5.0
KEEP_ALIVE_S = 30.0
MOST_LINE_BYTES = 4 * 1024 * 1024
Secret = Callable[[str], str]


@asynccontextmanager
async def open_session(*, connections: int = 100) -> AsyncIterator[aiohttp.ClientSession]:
    """One pool of kept-alive connections for all servers; each call brings its own time limit."""
    connector = aiohttp.TCPConnector(limit=connections, keepalive_timeout=KEEP_ALIVE_S)
    limits = aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_S)
    async with aiohttp.ClientSession(
        connector=connector, timeout=limits, read_bufsize=MOST_LINE_BYTES, auto_decompress=True
    ) as session:
        yield session


@dataclass(frozen=True, slots=True, kw_only=True)
class Post:
    """What is sent where; `server` names the other side in messages."""

    server: str
    url: str
    body: Any
    headers: Mapping[str, str]
    timeout_s: float


class Door:
    """Posts JSON to providers; shared by all of them."""

    def __init__(self, session: aiohttp.ClientSession, *, secret: Secret, clock: Clock, pace_s: float = 0.0) -> None:
        """`secret` gives the value of a named environment variable, empty if there is none.

        `pace_s`: what of a stream comes within so many seconds is read at once; 0: as it comes.
        """
        self.pace_s = pace_s
        self._session = session
        self._secret = secret
        self._clock = clock

    def key_of(self, model: Model) -> str:
        """The model's key; empty: it needs none. Raises Unavailable (`provider_key_refused`) where it is not set."""
        if not model.api_key_env:
            return ""
        key = self._secret(model.api_key_env)
        if not key:
            raise Unavailable(
                f"{model.name} needs a key and {model.api_key_env} is not set; set it and start again",
                code="provider_key_refused",
            )
        return key

    @asynccontextmanager
    async def posted(self, post: Post) -> AsyncIterator[aiohttp.ClientResponse]:
        """An answer with status 200; its connection is dropped if the block is left before the answer's end.

        Raises Late, Unavailable, and what `refusal` makes of another status.
        """
        server, timeout_s = post.server, post.timeout_s
        limits = aiohttp.ClientTimeout(total=timeout_s, sock_connect=min(CONNECT_S, timeout_s))
        told = {"Content-Type": "application/json", "Accept": "text/event-stream, application/json", **post.headers}
        body = msgspec.json.encode(post.body)
        try:
            async with self._session.post(post.url, data=body, headers=told, timeout=limits) as response:
                if response.status != 200:
                    found = await whole_body(response, server)
                    now_s = self._clock.now()
                    raise refusal(response.status, dict(response.headers), found, server=server, now_s=now_s)
                yield response
        except TimeoutError as error:
            raise Late(f"{server} did not answer within {timeout_s:.1f} s", code="provider_timeout") from error
        except aiohttp.ClientError as error:
            raise Unavailable(f"{server} does not answer: {type(error).__name__}", code="provider_gone") from error


async def whole_body(response: aiohttp.ClientResponse, server: str) -> bytes:
    """The body. Raises Unavailable (`stream_cut`) where it broke off."""
    try:
        return await response.read()
    except (aiohttp.ClientPayloadError, ConnectionError) as error:
        raise Unavailable(f"{server} broke its answer off", code="stream_cut") from error


def server_of(model: Model, default_url: str) -> str:
    """How messages name the model and where it was asked."""
    return f"{model.name} at {model.base_url or default_url}"
