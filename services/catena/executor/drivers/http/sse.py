"""Answers as JSON: in server-sent events (WHATWG HTML, section 9.2), or whole."""

import asyncio
import contextlib
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import aclosing
from typing import TypeAlias, TypeVar

import aiohttp
import msgspec

from catena.executor.drivers.http.door import MOST_LINE_BYTES, Door, Post, whole_body
from catena.kit.errors import Unavailable

EAGER = 4
"""Reads of a stream that nothing is waited for: what opens it, and the first word."""
DRAIN_S = 0.02
"""For the few bytes that end a body, which a server may send a moment after its last event."""

Form = TypeVar("Form")
Ends: TypeAlias = Callable[[Form], bool]


class Events:
    """Takes a stream's bytes as they come and gives the data of the events that are whole.

    Comments and unknown fields are passed over. An event that repeats the id of the one before it is that event once
    more, and is left out.
    """

    def __init__(self) -> None:
        """Nothing came yet."""
        self._rest = b""
        self._data: list[bytes] = []
        self._id = self._last_id = b""

    def feed(self, more: bytes) -> list[bytes]:
        """The events that `more` completes. Raises ValueError for a line longer than MOST_LINE_BYTES."""
        *lines, self._rest = (self._rest + more).split(b"\n")
        if len(self._rest) > MOST_LINE_BYTES:
            raise ValueError
        return [event for line in lines if (event := self._line(line.rstrip(b"\r"))) is not None]

    def close(self) -> list[bytes]:
        """What a stream that ended without its empty line still told."""
        return [event for line in (self._rest, b"") if (event := self._line(line)) is not None]

    def _line(self, line: bytes) -> bytes | None:
        if line.startswith(b"data:"):
            self._data.append(line[5:].removeprefix(b" "))
        elif line.startswith(b"id:"):
            self._id = line[3:].strip()
        elif not line and self._data:
            again = bool(self._id) and self._id == self._last_id
            told, self._data = b"\n".join(self._data), []
            self._last_id, self._id = self._id, b""
            return None if again else told
        return None


async def events_of(
    response: aiohttp.ClientResponse, server: str, *, pace_s: float = 0.0
) -> AsyncGenerator[list[bytes], None]:
    """The data of the stream's events, those that came together at once, or `pace_s` behind those before.

    To wake for each word costs more than to read it, and deltas so close are joined on their way to the client anyway.
    Raises Unavailable: `stream_cut` where the connection broke, `bad_reply` for a line without end.
    """
    events = Events()
    reads = 0
    try:
        while more := await response.content.readany():
            reads += 1
            if pace_s and reads > EAGER:
                more += await _gathered(response.content, pace_s)
            if found := events.feed(more):
                yield found
    except (aiohttp.ClientPayloadError, ConnectionError) as error:
        raise Unavailable(f"{server} broke its answer off", code="stream_cut") from error
    except ValueError as error:
        raise Unavailable(f"{server} sent a line longer than {MOST_LINE_BYTES} bytes", code="bad_reply") from error
    if found := events.close():
        yield found


async def _gathered(content: aiohttp.StreamReader, pace_s: float) -> bytes:
    """What else comes within `pace_s`; at once where the stream has ended. If it breaks, the next read tells."""
    try:
        async with asyncio.timeout(pace_s):
            await content.wait_eof()
    except TimeoutError:
        pass
    except (aiohttp.ClientPayloadError, ConnectionError):
        return b""
    return content.read_nowait()


async def replies_of(
    door: Door, post: Post, decoder: msgspec.json.Decoder[Form], form: str, *, ends: Ends[Form] | None = None
) -> AsyncGenerator[Form, None]:
    """What the server answers: each event of its stream, or the one body of a server that answers whole.

    `ends` tells the last one. Raises as `Door.posted`, `events_of` and `read_json` do.
    """
    async with aclosing(reads_of(door, post, decoder, form, ends=ends)) as reads:
        async for replies in reads:
            for reply in replies:
                yield reply


async def reads_of(
    door: Door,
    post: Post,
    decoder: msgspec.json.Decoder[Form],
    form: str,
    *,
    last: bytes = b"",
    ends: Ends[Form] | None = None,
) -> AsyncGenerator[list[Form], None]:
    """The same, those that came together at once; `last`, where it is not empty, is the data of an event after all."""
    async with door.posted(post) as response:
        if not response.content_type.startswith("text/event-stream"):
            yield [read_json(decoder, await whole_body(response, post.server), post.server, form)]
            return
        async with aclosing(events_of(response, post.server, pace_s=door.pace_s)) as events:
            async for several in events:
                stop = several.index(last) if last and last in several else len(several)
                replies, problem = _sound(decoder, several[:stop], post.server, form)
                over = stop < len(several) or (ends is not None and any(map(ends, replies)))
                if replies:
                    yield replies
                if problem is not None:
                    raise problem
                if over:
                    await _drained(response)
                    return


def _sound(
    decoder: msgspec.json.Decoder[Form], several: Sequence[bytes], server: str, form: str
) -> tuple[list[Form], Unavailable | None]:
    """What the events hold, up to the first that holds none; and what is wrong with that one."""
    replies: list[Form] = []
    for data in several:
        try:
            replies.append(read_json(decoder, data, server, form))
        except Unavailable as error:
            return replies, error
    return replies, None


async def _drained(response: aiohttp.ClientResponse) -> None:
    """Read past the last event, for only what was read to its end leaves a connection that can be used again."""
    with contextlib.suppress(TimeoutError, aiohttp.ClientError, ConnectionError):
        async with asyncio.timeout(DRAIN_S):
            while await response.content.readany():
                pass


def read_json(decoder: msgspec.json.Decoder[Form], data: bytes, server: str, form: str) -> Form:
    """What `data` holds. Raises Unavailable (`bad_reply`) where it is not of the `form` that `server` speaks."""
    try:
        return decoder.decode(data)
    except msgspec.DecodeError as error:
        raise Unavailable(f"{server} sent what is not {form}'s format: {error}", code="bad_reply") from error
