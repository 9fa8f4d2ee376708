"""Calls generateContent, always streamed, because only a stream can be cancelled midway."""

from collections.abc import AsyncIterator
from contextlib import aclosing

from catena.executor.core.ports import Ask, Ended, Piece
from catena.executor.drivers.gemini.body import generate_body
from catena.executor.drivers.gemini.chunks import DECODER, Reading, thinks
from catena.executor.drivers.http import Door, Post, replies_of, server_of

DEFAULT_URL = "https://generativelanguage.googleapis.com/v1beta"


class GeminiProvider:
    """Chat over a model's `base_url` (empty: Google's own)."""

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

    def _post(self, ask: Ask) -> Post:
        root, key = (ask.model.base_url or DEFAULT_URL).rstrip("/"), self._door.key_of(ask.model)
        return Post(
            server=server_of(ask.model, DEFAULT_URL),
            url=f"{root}/models/{ask.model.upstream}:streamGenerateContent?alt=sse",
            body=generate_body(ask),
            headers={"x-goog-api-key": key} if key else {},
            timeout_s=ask.timeout_s,
        )
