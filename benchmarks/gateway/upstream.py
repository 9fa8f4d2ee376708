"""The model that every gateway is put in front of: speaks OpenAI's chat, whole and streamed, and computes nothing.

`python -m benchmarks.gateway.upstream PORT`. A request may name in its `model` how long to wait and how many chunks to
stream: `mock`, `mock-20ms`, `mock-5ms-200` (a chunk every 5 ms, 200 of them). Answers are 1 KB.
"""

import asyncio
import re
import sys
from typing import Any, cast

import msgspec
import uvloop

ANSWER = "x" * 1024
CHUNKS = 16
"""Pieces that an answer is streamed in, unless its model says otherwise."""
USAGE = {"prompt_tokens": 250, "completion_tokens": 250, "total_tokens": 500}
LENGTH = re.compile(rb"content-length: *(\d+)", re.IGNORECASE)
PACED = re.compile(r"mock(?:-(\d+)ms)?(?:-(\d+))?")


class Wanted(msgspec.Struct):
    """What matters of a request."""

    model: str = "mock"
    stream: bool = False


class Upstream(asyncio.Protocol):
    """One kept-alive connection, requests one after the other."""

    def __init__(self) -> None:
        """Nothing read yet."""
        self._read = b""
        self._tasks: set[asyncio.Task[None]] = set()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keep where to write."""
        self._transport = cast(asyncio.Transport, transport)

    def connection_lost(self, exc: Exception | None) -> None:
        """Stop what is still being streamed."""
        for task in self._tasks:
            task.cancel()

    def data_received(self, data: bytes) -> None:
        """Answer every request that is whole."""
        self._read += data
        while (split := self._read.find(b"\r\n\r\n")) >= 0:
            found = LENGTH.search(self._read, 0, split)
            end = split + 4 + (int(found[1]) if found else 0)
            if len(self._read) < end:
                return
            body, self._read = self._read[split + 4 : end], self._read[end:]
            self._answer(msgspec.json.decode(body, type=Wanted) if body else Wanted())

    def _answer(self, wanted: Wanted) -> None:
        paced = PACED.fullmatch(wanted.model)
        wait_s, count = int(paced[1] or 0) / 1000 if paced else 0.0, int(paced[2] or 0) if paced else 0
        if not wait_s:
            self._transport.write(HEAD + EVENTS if wanted.stream else WHOLE)
            return
        later = self._paced(wait_s, count) if wanted.stream and count else self._late(wait_s, wanted.stream)
        task = asyncio.get_running_loop().create_task(later)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _late(self, wait_s: float, stream: bool) -> None:
        await asyncio.sleep(wait_s)
        self._transport.write(HEAD + EVENTS if stream else WHOLE)

    async def _paced(self, wait_s: float, count: int) -> None:
        self._transport.write(HEAD)
        for number in range(count):
            await asyncio.sleep(wait_s)
            # LiteLLM gives up on a model that says the same a hundred times.
            self._transport.write(chunk(piece(f"tok {number} ")))
        self._transport.write(ENDING)


def piece(text: str) -> bytes:
    """A content chunk."""
    return event({"choices": [{"index": 0, "delta": {"content": text}, "finish_reason": None}]})


def event(told: dict[str, Any]) -> bytes:
    """A chunk as server-sent event."""
    common = {"id": "chatcmpl-1", "object": "chat.completion.chunk", "created": 1, "model": "mock"}
    return b"data: " + msgspec.json.encode(common | told) + b"\n\n"


def chunk(data: bytes) -> bytes:
    """HTTP's chunked coding."""
    return b"%x\r\n%s\r\n" % (len(data), data)


def _whole() -> bytes:
    message = {"role": "assistant", "content": ANSWER}
    choice = {"index": 0, "message": message, "finish_reason": "stop"}
    body = {"id": "chatcmpl-1", "object": "chat.completion", "created": 1, "model": "mock", "choices": [choice]}
    told = msgspec.json.encode(body | {"usage": USAGE})
    return b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%s" % (len(told), told)


WHOLE = _whole()
HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
LAST = event({"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]})
ENDING = chunk(LAST) + chunk(event({"choices": [], "usage": USAGE})) + chunk(b"data: [DONE]\n\n") + b"0\r\n\r\n"
EVENTS = chunk(piece(ANSWER[: len(ANSWER) // CHUNKS])) * CHUNKS + ENDING


async def serve(port: int) -> None:
    """Answer at `port` for ever."""
    server = await asyncio.get_running_loop().create_server(Upstream, "127.0.0.1", port)
    await server.serve_forever()


if __name__ == "__main__":
    uvloop.run(serve(int(sys.argv[1])))
