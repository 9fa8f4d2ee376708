"""Calls an OpenAI-compatible server over HTTP, always streamed, because only a stream can be cancelled midway."""

from collections.abc import AsyncIterator, Sequence
from contextlib import aclosing
from typing import Any

import msgspec

from catena.executor.core.catalogue import Model
from catena.executor.core.chat import Delta, Usage, joined
from catena.executor.core.ports import Ask, Ended, Piece, Vectors
from catena.executor.drivers.http import Door, Post, reads_of, server_of, whole_body
from catena.executor.drivers.openai.body import Constrain, chat_body
from catena.executor.drivers.openai.chunks import DECODER, confidence_of, deltas_of, error_of, thinks, usage_of
from catena.kit.errors import Unavailable

DEFAULT_URL = "https://api.openai.com/v1"


class OpenAiProvider:
    """Chat, completion and embedding over a model's `base_url`."""

    def __init__(self, door: Door, *, default_url: str = DEFAULT_URL, constrain: Constrain | None = None) -> None:
        """Ask through `door`; `default_url` is for models that name no `base_url`; `constrain` as in `chat_body`."""
        self._door = door
        self._constrain = constrain
        self._default_url = default_url

    async def generate(self, ask: Ask) -> AsyncIterator[Piece]:
        """Pieces as they come; usage verbatim, the last that was told.

        A stream is whole when every answer has its finish reason; otherwise it was cut, and nothing says `ended`.
        What comes for an answer after its finish reason is a repeat, and is left out.
        """
        heard: list[Delta] = []
        closed: set[int] = set()
        usage: Usage | None = None
        model = ask.model.upstream
        body = chat_body(ask, stream=True, constrain=self._constrain)
        post = self._post(ask.model, "completions" if ask.request.prompt else "chat/completions", body, ask.timeout_s)
        async with aclosing(reads_of(self._door, post, DECODER, "OpenAI", last=b"[DONE]")) as reads:
            async for several in reads:
                fresh: list[Delta] = []
                thinking, problem = False, None
                for reply in several:
                    problem = error_of(reply)
                    if problem is not None:
                        break
                    thinking = thinking or thinks(reply)
                    usage = usage_of(reply) or usage
                    model = reply.model or model
                    deltas = [delta for delta in deltas_of(reply) if delta.index not in closed]
                    closed |= {delta.index for delta in deltas if delta.finish_reason}
                    fresh.extend(deltas)
                heard.extend(fresh)
                if fresh:
                    yield Piece(deltas=joined(fresh), thinking=thinking)
                if problem is not None:
                    raise problem
        if heard and {delta.index for delta in heard} <= closed:
            yield Piece(ended=Ended(usage=usage, resolved_model=model, confidence=confidence_of(heard)))

    async def embed(self, model: Model, texts: Sequence[str], timeout_s: float, *, truncate: bool = False) -> Vectors:
        """One call for all texts; whether too long ones are cut is the server's own decision."""
        body = {"model": model.upstream, "input": list(texts), "encoding_format": "float"}
        post = self._post(model, "embeddings", body, timeout_s)
        server = post.server
        async with self._door.posted(post) as response:
            found = await whole_body(response, server)
        try:
            told = msgspec.json.decode(found, type=Embedded)
        except msgspec.DecodeError as error:
            raise Unavailable(f"{server} sent no embeddings: {error}", code="bad_reply") from error
        if len(told.data) != len(texts):
            raise Unavailable(f"{server} sent {len(told.data)} vectors for {len(texts)} texts", code="bad_reply")
        rows = [row.embedding for row in sorted(told.data, key=lambda row: row.index)]
        return Vectors(vectors=rows, usage=Usage(input_tokens=told.usage.prompt_tokens) if told.usage else None)

    async def post(self, model: Model, verb: str, body: dict[str, Any], timeout_s: float) -> bytes:
        """What the model's server answers, whole. Raises as `generate` does."""
        post = self._post(model, verb, body, timeout_s)
        async with self._door.posted(post) as response:
            return await whole_body(response, post.server)

    def _post(self, model: Model, verb: str, body: Any, timeout_s: float) -> Post:
        return Post(
            server=server_of(model, self._default_url),
            url=f"{(model.base_url or self._default_url).rstrip('/')}/{verb}",
            body=body,
            headers=self._headers(model),
            timeout_s=timeout_s,
        )

    def _headers(self, model: Model) -> dict[str, str]:
        key = self._door.key_of(model)
        return {"Authorization": f"Bearer {key}"} if key else {}


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
