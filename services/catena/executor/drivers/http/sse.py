"""Answers as JSON: in server-sent events (WHATWG HTML, section 9.2), or whole."""

import asyncio
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import TypeVar

import aiohttp
import msgspec

from catena.executor.drivers.http.door import MOST_LINE_BYTES, Door, Post, whole_body
from catena.kit.errors import Unavailable

Form = TypeVar("Form")


async def events_of(response: aiohttp.ClientResponse, server: str) -> AsyncGenerator[bytes, None]:
    """The data of each event; comments and unknown fields are passed over.

    An event that repeats the id of the one before it is that event once more, and is left out.
    Raises Unavailable: `stream_cut` where the connection broke, `bad_reply` for a line without end.
    """
    data: list[bytes] = []
    last_id = event_id = b""
    try:
        async for raw in response.content:
            line = raw.rstrip(b"\r\n")
            if line.startswith(b"data:"):
                data.append(line[5:].removeprefix(b" "))
            elif line.startswith(b"id:"):
                event_id = line[3:].strip()
            elif not line and data:
                if not event_id or event_id != last_id:
                    yield b"\n".join(data)
                last_id, event_id, data = event_id, b"", []
    except (aiohttp.ClientPayloadError, ConnectionError, asyncio.IncompleteReadError) as error:
        raise Unavailable(f"{server} broke its answer off", code="stream_cut") from error
    except ValueError as error:
        raise Unavailable(f"{server} sent a line longer than {MOST_LINE_BYTES} bytes", code="bad_reply") from error
    if data:
        yield b"\n".join(data)


async def replies_of(
    door: Door, post: Post, decoder: msgspec.json.Decoder[Form], form: str, *, last: bytes = b""
) -> AsyncGenerator[Form, None]:
    """What the server answers: each event of its stream up to `last`, or the one body of a server that answers whole.

    Raises as `Door.posted`, `events_of` and `read_json` do.
    """
    async with door.posted(post) as response:
        if not response.content_type.startswith("text/event-stream"):
            yield read_json(decoder, await whole_body(response, post.server), post.server, form)
            return
        async with aclosing(events_of(response, post.server)) as events:
            async for data in events:
                if last and data == last:
                    return
                yield read_json(decoder, data, post.server, form)


def read_json(decoder: msgspec.json.Decoder[Form], data: bytes, server: str, form: str) -> Form:
    """What `data` holds. Raises Unavailable (`bad_reply`) where it is not of the `form` that `server` speaks."""
    try:
        return decoder.decode(data)
    except msgspec.DecodeError as error:
        raise Unavailable(f"{server} sent what is not {form}'s format: {error}", code="bad_reply") from error
