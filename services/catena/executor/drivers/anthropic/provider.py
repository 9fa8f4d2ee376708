"""Calls the Messages API, always streamed, because only a stream can be cancelled midway."""

from collections.abc import AsyncIterator
from contextlib import aclosing

from catena.executor.core.ports import Ask, Ended, Piece
from catena.executor.drivers.anthropic.body import messages_body
from catena.executor.drivers.anthropic.events import DECODER, Reading, thinks
from catena.executor.drivers.http import Door, Post, replies_of, server_of

DEFAULT_URL = "https://api.anthropic.com/v1"
VERSION, STOP = "2023-06-01", "message_stop"


class AnthropicProvider:
    """Chat over a model's `base_url` (empty: Anthropic's own)."""

    def __init__(self, door: Door) -> None:
        """Ask through `door`."""
        self._door = door

    async def generate(self, ask: Ask) -> AsyncIterator[Piece]:
        """Pieces as they come; usage verbatim. An answer that does not say why it ended was cut."""
        reading = Reading(model=ask.model.upstream)
        replies = replies_of(self._door, self._post(ask), DECODER, "Anthropic", ends=lambda event: event.type == STOP)
        async with aclosing(replies) as events:
            async for event in events:
                deltas = tuple(reading.read(event))
                if deltas or thinks(event):
                    yield Piece(deltas=deltas, thinking=thinks(event))
        if reading.finished:
            yield Piece(ended=Ended(usage=reading.usage, resolved_model=reading.model))

    def _post(self, ask: Ask) -> Post:
        key = self._door.key_of(ask.model)
        return Post(
            server=server_of(ask.model, DEFAULT_URL),
            url=f"{(ask.model.base_url or DEFAULT_URL).rstrip('/')}/messages",
            body=messages_body(ask),
            headers={"anthropic-version": VERSION} | ({"x-api-key": key} if key else {}),
            timeout_s=ask.timeout_s,
        )
