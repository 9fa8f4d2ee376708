"""Calls the Messages API, always streamed, because only a stream can be cancelled midway."""

from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing

from catena.executor.core.ports import Ask, Ended, Piece
from catena.executor.drivers.anthropic.body import messages_body
from catena.executor.drivers.anthropic.events import DECODER, Event, Reading
from catena.executor.drivers.http import Door, events_of, read_json, server_of, whole_body

DEFAULT_URL = "https://api.anthropic.com/v1"
VERSION = "2023-06-01"


class AnthropicProvider:
    """Chat over a model's `base_url` (empty: Anthropic's own)."""

    def __init__(self, door: Door) -> None:
        """Ask through `door`."""
        self._door = door

    async def generate(self, ask: Ask) -> AsyncIterator[Piece]:
        """Pieces as they come; usage verbatim. An answer that does not say why it ended was cut."""
        reading = Reading(model=ask.model.upstream)
        async with aclosing(self._events(ask)) as events:
            async for event in events:
                deltas = tuple(reading.read(event))
                if deltas:
                    yield Piece(deltas=deltas)
        if reading.finished:
            yield Piece(ended=Ended(usage=reading.usage, resolved_model=reading.model))

    async def _events(self, ask: Ask) -> AsyncGenerator[Event, None]:
        server = server_of(ask.model, DEFAULT_URL)
        url = f"{(ask.model.base_url or DEFAULT_URL).rstrip('/')}/messages"
        key = self._door.key_of(ask.model)
        headers = {"anthropic-version": VERSION} | ({"x-api-key": key} if key else {})
        body = messages_body(ask)
        async with self._door.posted(server, url, body, headers=headers, timeout_s=ask.timeout_s) as response:
            if not response.content_type.startswith("text/event-stream"):
                yield read_json(DECODER, await whole_body(response, server), server, "Anthropic")
                return
            async with aclosing(events_of(response, server)) as events:
                async for data in events:
                    event = read_json(DECODER, data, server, "Anthropic")
                    if event.type == "message_stop":
                        return
                    yield event
