"""Calls an OpenAI-compatible server over HTTP, always streamed, because only a stream can be cancelled midway."""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Sequence
from contextlib import aclosing, asynccontextmanager
from typing import Any

import aiohttp
import msgspec

from catena.executor.core.catalogue import Model
from catena.executor.core.chat import Delta, Usage
from catena.executor.core.ports import Ask, Ended, Piece, Vectors
from catena.executor.drivers.openai.body import chat_body
from catena.executor.drivers.openai.chunks import Reply, confidence_of, deltas_of, error_of, read_reply, usage_of
from catena.executor.drivers.openai.refusals import refusal
from catena.kit.clock import Clock
from catena.kit.errors import Late, Unavailable

DEFAULT_URL = "https://api.openai.com/v1"
CONNECT_S = 5.0
MOST_LINE_BYTES = 4 * 1024 * 1024
Secret = Callable[[str], str]


@asynccontextmanager
async def open_session(*, connections: int = 100) -> AsyncIterator[aiohttp.ClientSession]:
    """One pool of kept-alive connections for all servers; each call brings its own time limit."""
    connector = aiohttp.TCPConnector(limit=connections, keepalive_timeout=30)
    limits = aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_S)
    async with aiohttp.ClientSession(
        connector=connector, timeout=limits, read_bufsize=MOST_LINE_BYTES, auto_decompress=True
    ) as session:
        yield session


class OpenAiProvider:
    """Chat, completion and embedding over `base_url` (empty: OpenAI's own)."""

    def __init__(self, session: aiohttp.ClientSession, *, secret: Secret, clock: Clock) -> None:
        """`secret` gives the value of a named environment variable, empty if there is none."""
        self._session = session
        self._secret = secret
        self._clock = clock

    async def generate(self, ask: Ask) -> AsyncIterator[Piece]:
        """Pieces as they come; usage verbatim.

        A stream is whole when every answer has its finish reason; otherwise it was cut, and nothing says `ended`.
        """
        heard: list[Delta] = []
        usage: Usage | None = None
        model = ask.model.upstream
        async with aclosing(self._replies(ask)) as replies:
            async for reply in replies:
                problem = error_of(reply)
                if problem is not None:
                    raise problem
                usage = usage_of(reply) or usage
                model = reply.model or model
                deltas = deltas_of(reply)
                heard.extend(deltas)
                if deltas:
                    yield Piece(deltas=deltas)
        if _whole(heard):
            ended = Ended(usage=usage, resolved_model=model, confidence=confidence_of(heard))
            yield Piece(ended=ended)

    async def embed(self, model: Model, texts: Sequence[str], timeout_s: float, *, truncate: bool = False) -> Vectors:
        """One call for all texts; whether too long ones are cut is the server's own decision."""
        body = {"model": model.upstream, "input": list(texts), "encoding_format": "float"}
        async with self._posted(model, "embeddings", body, timeout_s) as response:
            found = await _body(response, _server(model))
        try:
            told = msgspec.json.decode(found, type=Embedded)
        except msgspec.DecodeError as error:
            raise Unavailable(f"{_server(model)} sent no embeddings: {error}", code="bad_reply") from error
        if len(told.data) != len(texts):
            sent = f"{len(told.data)} vectors for {len(texts)} texts"
            raise Unavailable(f"{_server(model)} sent {sent}", code="bad_reply")
        rows = [row.embedding for row in sorted(told.data, key=lambda row: row.index)]
        tokens = told.usage.prompt_tokens if told.usage else 0
        return Vectors(vectors=rows, usage=Usage(input_tokens=tokens))

    async def _replies(self, ask: Ask) -> AsyncGenerator[Reply, None]:
        verb = "completions" if ask.request.prompt else "chat/completions"
        server = _server(ask.model)
        async with self._posted(ask.model, verb, chat_body(ask, stream=True), ask.timeout_s) as response:
            if not response.content_type.startswith("text/event-stream"):
                yield read_reply(await _body(response, server), server)
                return
            async with aclosing(_lines(response, server)) as lines:
                async for line in lines:
                    if line == b"[DONE]":
                        return
                    yield read_reply(line, server)

    @asynccontextmanager
    async def _posted(
        self, model: Model, verb: str, body: dict[str, Any], timeout_s: float
    ) -> AsyncIterator[aiohttp.ClientResponse]:
        """An answer with status 200; its connection is dropped if the block is left early."""
        server = _server(model)
        url = f"{(model.base_url or DEFAULT_URL).rstrip('/')}/{verb}"
        limits = aiohttp.ClientTimeout(total=timeout_s, sock_connect=min(CONNECT_S, timeout_s))
        try:
            async with self._session.post(
                url, data=msgspec.json.encode(body), headers=self._headers(model), timeout=limits
            ) as response:
                if response.status != 200:
                    told = await _body(response, server)
                    now_s = self._clock.now()
                    raise refusal(response.status, dict(response.headers), told, server=server, now_s=now_s)
                yield response
        except TimeoutError as error:
            raise Late(f"{server} did not answer within {timeout_s:.1f} s", code="provider_timeout") from error
        except aiohttp.ClientError as error:
            raise Unavailable(f"{server} does not answer: {type(error).__name__}", code="provider_gone") from error

    def _headers(self, model: Model) -> dict[str, str]:
        headers = {"Content-Type": "application/json", "Accept": "text/event-stream, application/json"}
        if not model.api_key_env:
            return headers
        key = self._secret(model.api_key_env)
        if not key:
            raise Unavailable(
                f"{model.name} needs a key and {model.api_key_env} is not set; set it and start again",
                code="provider_key_refused",
            )
        return headers | {"Authorization": f"Bearer {key}"}


class Row(msgspec.Struct):
    """One vector."""

    embedding: list[float]
    index: int = 0


class ReadTokens(msgspec.Struct):
    """Usage of an embedding call."""

    prompt_tokens: int = 0


class Embedded(msgspec.Struct):
    """The answer of `/embeddings`."""

    data: list[Row]
    usage: ReadTokens | None = None


async def _lines(response: aiohttp.ClientResponse, server: str) -> AsyncGenerator[bytes, None]:
    """The data of each server-sent event; comments and other fields are passed over (WHATWG HTML, section 9.2)."""
    data: list[bytes] = []
    try:
        async for raw in response.content:
            line = raw.rstrip(b"\r\n")
            if line.startswith(b"data:"):
                data.append(line[5:].removeprefix(b" "))
            elif not line and data:
                yield b"\n".join(data)
                data = []
    except (aiohttp.ClientPayloadError, ConnectionError, asyncio.IncompleteReadError) as error:
        raise Unavailable(f"{server} broke its answer off", code="stream_cut") from error
    except ValueError as error:
        raise Unavailable(f"{server} sent a line longer than {MOST_LINE_BYTES} bytes", code="bad_reply") from error
    if data:
        yield b"\n".join(data)


async def _body(response: aiohttp.ClientResponse, server: str) -> bytes:
    try:
        return await response.read()
    except (aiohttp.ClientPayloadError, ConnectionError) as error:
        raise Unavailable(f"{server} broke its answer off", code="stream_cut") from error


def _whole(heard: list[Delta]) -> bool:
    answers = {delta.index for delta in heard}
    return bool(answers) and answers <= {delta.index for delta in heard if delta.finish_reason}


def _server(model: Model) -> str:
    return f"{model.name} at {model.base_url or DEFAULT_URL}"
