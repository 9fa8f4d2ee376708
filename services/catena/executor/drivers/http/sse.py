"""Server-sent events (WHATWG HTML, section 9.2), and the JSON in them."""

import asyncio
from collections.abc import AsyncGenerator
from typing import TypeVar

import aiohttp
import msgspec

from catena.executor.drivers.http.door import MOST_LINE_BYTES
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


def read_json(decoder: msgspec.json.Decoder[Form], data: bytes, server: str, form: str) -> Form:
    """What `data` holds. Raises Unavailable (`bad_reply`) where it is not of the `form` that `server` speaks."""
    try:
        return decoder.decode(data)
    except msgspec.DecodeError as error:
        raise Unavailable(f"{server} sent what is not {form}'s format: {error}", code="bad_reply") from error
