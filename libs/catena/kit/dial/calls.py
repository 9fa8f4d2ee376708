"""A call under way, seen through error kinds. Cancelling whoever waits for it cancels it."""

import asyncio
from collections.abc import AsyncIterator, Callable, Generator
from typing import Any

import grpc

from catena.kit import wire
from catena.kit.errors import Unavailable


class Outgoing:
    """One gRPC call of any of the four kinds: await it, iterate it, write to it, cancel it.

    Raises CatenaError kinds where a plain call raises AioRpcError. Leaving an iteration early cancels the call.
    """

    __slots__ = ("_address", "_call", "_cancelled_here", "_decode", "_verb")

    def __init__(self, call: Any, *, verb: str, address: str, decode: Callable[[bytes], Any] | None = None) -> None:
        """Watch over `call`, which goes to `verb` at `address`; `decode` what it answers, where it answers bytes."""
        self._decode = decode
        self._call = call
        self._verb = verb
        self._address = address
        self._cancelled_here = False

    def __await__(self) -> Generator[Any, Any, Any]:
        """The response of a call with one."""
        try:
            return self._made((yield from self._call.__await__()))
        except (grpc.aio.AioRpcError, asyncio.CancelledError) as error:
            self._raise(error)

    async def __aiter__(self) -> AsyncIterator[Any]:
        """The responses of a streaming call."""
        try:
            async for message in self._call:
                yield self._made(message)
        except (grpc.aio.AioRpcError, asyncio.CancelledError) as error:
            self._raise(error)
        finally:
            self.cancel()

    async def read(self) -> Any:
        """The next response, or `grpc.aio.EOF`."""
        try:
            message = await self._call.read()
            return message if message is grpc.aio.EOF else self._made(message)
        except (grpc.aio.AioRpcError, asyncio.CancelledError) as error:
            self._raise(error)

    async def write(self, request: Any) -> None:
        """Send one more request on a call that streams them."""
        try:
            await self._call.write(request)
        except (grpc.aio.AioRpcError, asyncio.CancelledError) as error:
            self._raise(error)

    async def done_writing(self) -> None:
        """Say that no more requests follow."""
        await self._call.done_writing()

    def cancel(self) -> bool:
        """Cancel the call here and at the server; False when it had ended."""
        self._cancelled_here = True
        return bool(self._call.cancel())

    def done(self) -> bool:
        """Whether the call has ended."""
        return bool(self._call.done())

    def cancelled(self) -> bool:
        """Whether the call ended by being cancelled."""
        return bool(self._call.cancelled())

    def time_remaining(self) -> float | None:
        """Seconds until its deadline."""
        remaining: float | None = self._call.time_remaining()
        return remaining

    def add_done_callback(self, callback: Callable[[Any], None]) -> None:
        """Call `callback` when the call has ended."""
        self._call.add_done_callback(callback)

    async def initial_metadata(self) -> grpc.aio.Metadata:
        """What the server sent before its first response."""
        found: grpc.aio.Metadata = await self._call.initial_metadata()
        return found

    async def trailing_metadata(self) -> grpc.aio.Metadata:
        """What the server sent with its status."""
        found: grpc.aio.Metadata = await self._call.trailing_metadata()
        return found

    async def code(self) -> grpc.StatusCode:
        """The final status; waits for it."""
        found: grpc.StatusCode = await self._call.code()
        return found

    async def details(self) -> str:
        """The final status's text; waits for it."""
        return str(await self._call.details())

    async def wait_for_connection(self) -> None:
        """Wait until the call has a connection."""
        await self._call.wait_for_connection()

    def _made(self, message: Any) -> Any:
        return message if self._decode is None else self._decode(message)

    def _raise(self, error: grpc.aio.AioRpcError | asyncio.CancelledError) -> Any:
        if isinstance(error, grpc.aio.AioRpcError):
            raise wire.from_rpc(error, verb=self._verb, address=self._address) from error
        task = asyncio.current_task()
        if self._cancelled_here or (task is not None and task.cancelling() > 0):
            raise error
        # grpc.aio raises CancelledError also when the *server* cancelled; here nobody asked for that.
        raise Unavailable(f"{self._verb}: the server at {self._address} gave the call up", retry_after_s=1.0) from error
