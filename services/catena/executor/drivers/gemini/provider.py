"""Calls generateContent, always streamed, because only a stream can be cancelled midway."""

from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing

from catena.executor.core.ports import Ask, Ended, Piece
from catena.executor.drivers.gemini.body import generate_body
from catena.executor.drivers.gemini.chunks import DECODER, Reading, Reply
from catena.executor.drivers.http import Door, events_of, read_json, server_of, whole_body

DEFAULT_URL = "https://generativelanguage.googleapis.com/v1beta"


class GeminiProvider:
    """Chat over a model's `base_url` (empty: Google's own)."""

    def __init__(self, door: Door) -> None:
        """Ask through `door`."""
        self._door = door

    async def generate(self, ask: Ask) -> AsyncIterator[Piece]:
        """Pieces as they come; usage verbatim. A call whose answers do not all say why they ended was cut."""
        reading = Reading(model=ask.model.upstream)
        async with aclosing(self._replies(ask)) as replies:
            async for reply in replies:
                deltas = tuple(reading.read(reply))
                if deltas:
                    yield Piece(deltas=deltas)
        if reading.finished:
            yield Piece(ended=Ended(usage=reading.usage, resolved_model=reading.model))

    async def _replies(self, ask: Ask) -> AsyncGenerator[Reply, None]:
        server = server_of(ask.model, DEFAULT_URL)
        root = (ask.model.base_url or DEFAULT_URL).rstrip("/")
        url = f"{root}/models/{ask.model.upstream}:streamGenerateContent?alt=sse"
        key = self._door.key_of(ask.model)
        headers = {"x-goog-api-key": key} if key else {}
        posted = self._door.posted(server, url, generate_body(ask), headers=headers, timeout_s=ask.timeout_s)
        async with posted as response:
            if not response.content_type.startswith("text/event-stream"):
                yield read_json(DECODER, await whole_body(response, server), server, "Gemini")
                return
            async with aclosing(events_of(response, server)) as events:
                async for data in events:
                    yield read_json(DECODER, data, server, "Gemini")
