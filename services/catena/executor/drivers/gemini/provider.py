"""Calls generateContent, always streamed, because only a stream can be cancelled midway, and batchEmbedContents."""

from collections.abc import AsyncIterator, Sequence
from contextlib import aclosing
from typing import Any

import msgspec

from catena.executor.core.catalogue import Model
from catena.executor.core.chat import NOTHING_USED, Usage
from catena.executor.core.ports import Ask, Ended, Piece, Vectors
from catena.executor.drivers.gemini.body import generate_body
from catena.executor.drivers.gemini.chunks import DECODER, Reading, thinks
from catena.executor.drivers.http import Door, Post, replies_of, server_of, whole_body
from catena.kit.errors import Unavailable

DEFAULT_URL = "https://generativelanguage.googleapis.com/v1beta"


MOST_TEXTS = 100
"""That a call may bring; more are asked in turn."""


class Counted(msgspec.Struct, rename="camel"):
    """Tokens of an embedding call, where it tells them."""

    prompt_token_count: int | None = None


class Row(msgspec.Struct):
    """One vector."""

    values: list[float]


class Embedded(msgspec.Struct, rename="camel"):
    """The answer of `:batchEmbedContents`."""

    embeddings: list[Row]
    usage_metadata: Counted | None = None


class GeminiProvider:
    """Chat and embeddings over a model's `base_url` (empty: Google's own)."""

    def __init__(self, door: Door) -> None:
        """Ask through `door`."""
        self._door = door

    async def generate(self, ask: Ask) -> AsyncIterator[Piece]:
        """Pieces as they come; usage verbatim. A call whose answers do not all say why they ended was cut."""
        reading = Reading(model=ask.model.upstream)
        async with aclosing(replies_of(self._door, self._post(ask), DECODER, "Gemini")) as replies:
            async for reply in replies:
                deltas = tuple(reading.read(reply))
                if deltas or thinks(reply):
                    yield Piece(deltas=deltas, thinking=thinks(reply))
        if reading.finished:
            yield Piece(ended=Ended(usage=reading.usage, resolved_model=reading.model))

    async def embed(self, model: Model, texts: Sequence[str], timeout_s: float, *, truncate: bool = False) -> Vectors:
        """A vector a text; whether too long ones are cut is the service's own decision.

        Usage is told where every call told its own.
        """
        rows: list[list[float]] = []
        used: Usage | None = NOTHING_USED
        for start in range(0, len(texts), MOST_TEXTS):
            told = await self._embedded(model, texts[start : start + MOST_TEXTS], timeout_s)
            rows += [row.values for row in told.embeddings]
            count = told.usage_metadata.prompt_token_count if told.usage_metadata else None
            used = None if used is None or count is None else used + Usage(input_tokens=count)
        return Vectors(vectors=rows, usage=used)

    async def _embedded(self, model: Model, texts: Sequence[str], timeout_s: float) -> Embedded:
        name = f"models/{model.upstream}"
        body = {"requests": [{"model": name, "content": {"parts": [{"text": text}]}} for text in texts]}
        post = self._to(model, "batchEmbedContents", body, timeout_s)
        async with self._door.posted(post) as response:
            found = await whole_body(response, post.server)
        try:
            told = msgspec.json.decode(found, type=Embedded)
        except msgspec.DecodeError as error:
            raise Unavailable(f"{post.server} sent no embeddings: {error}", code="bad_reply") from error
        if len(told.embeddings) != len(texts):
            counts = f"{len(told.embeddings)} vectors for {len(texts)} texts"
            raise Unavailable(f"{post.server} sent {counts}", code="bad_reply")
        return told

    def _post(self, ask: Ask) -> Post:
        return self._to(ask.model, "streamGenerateContent?alt=sse", generate_body(ask), ask.timeout_s)

    def _to(self, model: Model, call: str, body: Any, timeout_s: float) -> Post:
        root, key = (model.base_url or DEFAULT_URL).rstrip("/"), self._door.key_of(model)
        return Post(
            server=server_of(model, DEFAULT_URL),
            url=f"{root}/models/{model.upstream}:{call}",
            body=body,
            headers={"x-goog-api-key": key} if key else {},
            timeout_s=timeout_s,
        )
