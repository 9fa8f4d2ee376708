"""Calls between rooms of one process: the same interceptor and the same bytes as over gRPC, but no socket.

`catena up` keeps every room in one process, where a call over a socket costs more than most calls do. A server opens a
`Door` beside its socket; `kit.dial` goes through it where it finds one on its own event loop. Both sides see what gRPC
would show them: messages that are copies, metadata, deadlines, cancellation both ways, a window for streams, statuses.
Calls that stream requests go over the socket.
"""

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Generator, Sequence
from contextvars import Context
from typing import Any

import grpc

WINDOW_BYTES = 64 * 1024
"""Of a stream's messages that nobody has read yet; as HTTP/2's own (RFC 9113, section 6.9.2)."""

Metadata = Sequence[tuple[str, str | bytes]]
Guarded = Callable[[bytes, Any], Awaitable[bytes | None]]
"""A handler with the interceptor around it: bytes in; bytes out, or written to the context where it streams."""

_DOORS: dict[str, "Door"] = {}


class Door:
    """The way into a server for callers of its own process and event loop."""

    def __init__(self, find: Callable[[str], Guarded | None], *, concurrent: int, message_bytes: int) -> None:
        """`find` gives the handler of a full gRPC name, if calls may come this way; `concurrent` 0: no limit."""
        self._find = find
        self._concurrent = concurrent
        self._message_bytes = message_bytes
        self._loop = asyncio.get_running_loop()
        self._address = ""
        self._calls: set[asyncio.Task[None]] = set()

    def open(self, address: str) -> None:
        """Be found by whoever dials `address`."""
        self._address = address
        _DOORS[address] = self

    async def close(self, grace_s: float) -> None:
        """Be found no more; give live calls their grace, then cancel them."""
        if _DOORS.get(self._address) is self:
            del _DOORS[self._address]
        if self._calls:
            await asyncio.wait(self._calls, timeout=grace_s)
        for task in self._calls:
            task.cancel()
        if self._calls:
            await asyncio.wait(self._calls)

    def handler(self, name: str) -> Guarded | None:
        """The handler of a method, if it can be called from here."""
        return self._find(name) if asyncio.get_running_loop() is self._loop else None

    def call(self, guarded: Guarded, request: bytes, metadata: Metadata, limit_s: float) -> "DirectCall":
        """Begin a call, which ends after `limit_s` seconds at the latest."""
        made = DirectCall(metadata, limit_s)
        if len(request) > self._message_bytes:
            told = f"the message holds {len(request)} bytes > {self._message_bytes}"
            made.end(grpc.StatusCode.RESOURCE_EXHAUSTED, told)
        elif self._concurrent and len(self._calls) >= self._concurrent:
            made.end(grpc.StatusCode.RESOURCE_EXHAUSTED, "too many calls at a time")
        elif limit_s <= 0:
            made.end(grpc.StatusCode.DEADLINE_EXCEEDED)
        else:
            task = made.begin(guarded, request)
            self._calls.add(task)
            task.add_done_callback(self._calls.discard)
        return made


def door_at(address: str) -> Door | None:
    """The door of a server of this process."""
    return _DOORS.get(address)


class DirectCall:
    """A call under way: grpc.aio's call to whoever made it, grpc.aio's servicer context to the handler."""

    def __init__(self, metadata: Metadata, limit_s: float) -> None:
        """Nothing runs yet."""
        loop = asyncio.get_running_loop()
        self._metadata = metadata
        self._due_s = loop.time() + limit_s
        self._ended: asyncio.Future[grpc.StatusCode] = loop.create_future()
        self._details = ""
        self._trailers: Metadata = ()
        self._cut = False
        self._task: asyncio.Task[None] | None = None
        self._unread: deque[bytes] = deque()
        self._unread_bytes = 0
        self._moved = asyncio.Event()

    def begin(self, guarded: Guarded, request: bytes) -> asyncio.Task[None]:
        """Run the handler, in a context of its own as a server would."""
        loop = asyncio.get_running_loop()
        self._task = loop.create_task(self._serve(guarded, request), context=Context())
        timer = loop.call_at(self._due_s, self._expire)
        self._ended.add_done_callback(lambda _: timer.cancel())
        return self._task

    def end(self, code: grpc.StatusCode, details: str = "", trailers: Metadata = ()) -> None:
        """Fix the status; the first one counts."""
        if not self._ended.done():
            self._details, self._trailers = details, trailers
            self._ended.set_result(code)
            self._moved.set()

    async def _serve(self, guarded: Guarded, request: bytes) -> None:
        try:
            response = await guarded(request, self)
            if response is not None:
                self._unread.append(response)
            self.end(grpc.StatusCode.OK)
        except grpc.aio.AbortError:
            pass  # `abort` has told
        except asyncio.CancelledError:
            self.end(grpc.StatusCode.CANCELLED, "the server stops")
            raise
        except Exception as error:  # noqa: BLE001 - as gRPC answers what an interceptor let through
            self.end(grpc.StatusCode.UNKNOWN, f"unexpected {type(error).__name__}")

    def _expire(self) -> None:
        self._cut_off(grpc.StatusCode.DEADLINE_EXCEEDED, "deadline exceeded")

    def _cut_off(self, code: grpc.StatusCode, details: str) -> bool:
        if self._ended.done():
            return False
        self._cut = True
        self.end(code, details)
        if self._task is not None:
            self._task.cancel()
        return True

    # What whoever called sees.

    def __await__(self) -> Generator[Any, Any, bytes]:
        """The response of a call with one."""
        return self._response().__await__()

    async def _response(self) -> bytes:
        while not self._ended.done():
            await self._moves()
        if self._ended.result() is not grpc.StatusCode.OK:
            self._raise()
        return self._unread.popleft()

    async def __aiter__(self) -> AsyncIterator[bytes]:
        """The responses of a call that streams them."""
        while (message := await self.read()) is not grpc.aio.EOF:
            yield message

    async def read(self) -> Any:
        """The next response, or `grpc.aio.EOF`."""
        while self._cut or not self._unread:
            if self._ended.done():
                if self._ended.result() is not grpc.StatusCode.OK:
                    self._raise()
                return grpc.aio.EOF
            await self._moves()
        message = self._unread.popleft()
        self._unread_bytes -= len(message)
        self._moved.set()
        return message

    async def _moves(self) -> None:
        """Wait until something came or ended; who is cancelled meanwhile cancels the call."""
        self._moved.clear()
        try:
            await self._moved.wait()
        except asyncio.CancelledError:
            self.cancel()
            raise

    def _raise(self) -> None:
        code = self._ended.result()
        if self._cut and code is grpc.StatusCode.CANCELLED:
            raise asyncio.CancelledError
        raise grpc.aio.AioRpcError(code, grpc.aio.Metadata(), grpc.aio.Metadata(*self._trailers), self._details)

    def cancel(self) -> bool:
        """Cancel the call and its handler; False when it had ended."""
        return self._cut_off(grpc.StatusCode.CANCELLED, "cancelled here")

    def done(self) -> bool:
        """Whether it has ended."""
        return self._ended.done()

    def cancelled(self) -> bool:
        """Whether it ended by being cancelled."""
        return self._ended.done() and self._ended.result() is grpc.StatusCode.CANCELLED

    def add_done_callback(self, callback: Callable[[Any], None]) -> None:
        """Call `callback` with the call when it has ended."""
        self._ended.add_done_callback(lambda _: callback(self))

    async def code(self) -> grpc.StatusCode:
        """The final status; waits for it."""
        return await asyncio.shield(self._ended)

    async def details(self) -> str:
        """The final status's text; waits for it."""
        await asyncio.shield(self._ended)
        return self._details

    async def initial_metadata(self) -> grpc.aio.Metadata:
        """Rooms send none."""
        return grpc.aio.Metadata()

    async def trailing_metadata(self) -> grpc.aio.Metadata:
        """What came with the status; waits for it."""
        await asyncio.shield(self._ended)
        return grpc.aio.Metadata(*self._trailers)

    async def wait_for_connection(self) -> None:
        """There is nothing to wait for."""

    # What both sides see.

    def time_remaining(self) -> float:
        """Seconds until the deadline."""
        return max(0.0, self._due_s - asyncio.get_running_loop().time())

    # What the handler sees.

    def invocation_metadata(self) -> Metadata:
        """What came with the call."""
        return self._metadata

    async def write(self, message: bytes) -> None:
        """Send a response; waits while the reader is a window behind."""
        while self._unread_bytes >= WINDOW_BYTES:
            self._moved.clear()
            await self._moved.wait()
        self._unread.append(message)
        self._unread_bytes += len(message)
        self._moved.set()

    async def abort(self, code: grpc.StatusCode, details: str = "", trailing_metadata: Metadata = ()) -> None:
        """End the call with a status that is no success. Raises AbortError."""
        self.end(code, details, trailing_metadata)
        raise grpc.aio.AbortError
