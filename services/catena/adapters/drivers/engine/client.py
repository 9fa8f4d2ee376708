"""The room's end of the line to the engine's process: orders out, answers to whoever waits for them."""

import asyncio
import itertools
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from sys import executable

import msgspec
import structlog

from catena.adapters.core.encoding import Encoded, Encoding
from catena.adapters.core.work import AdapterSource, BaseFacts, BaseSource, Counters, Done, Loaded, Piece, Weights, Work
from catena.adapters.drivers.engine import frames
from catena.kit import errors
from catena.kit.errors import CatenaError, Exhausted, Unavailable
from catena.kit.serve.server import claim
from catena.kit.supervise import Child, Supervisor

log = structlog.get_logger()
START_S = 60.0
RETRY_AFTER_S = 1.0
MOST_UNREAD_BYTES = 16 << 20
"""What may wait for a caller that reads more slowly than the engine writes: more than any but the longest answers."""
Arrival = frames.Answer | CatenaError


class Arrivals:
    """What has come for one call and was not read yet; `bytes` as they came over the line."""

    def __init__(self) -> None:
        """Nothing yet."""
        self.bytes = 0
        self._queue: asyncio.Queue[tuple[int, Arrival]] = asyncio.Queue()

    def put(self, arrived: Arrival, size: int = 0) -> None:
        """Add what came in `size` bytes."""
        self.bytes += size
        self._queue.put_nowait((size, arrived))

    async def get(self) -> Arrival:
        """The next."""
        size, arrived = await self._queue.get()
        self.bytes -= size
        return arrived

    def end_with(self, error: CatenaError) -> None:
        """Forget what came, and tell this instead."""
        self.bytes, self._queue = 0, asyncio.Queue()
        self.put(error)


class ProcessEngine:
    """Implements the port `Engine` over a line that is made anew whenever the engine's process is."""

    def __init__(self, *, wait_s: float, most_unread: int = MOST_UNREAD_BYTES) -> None:
        """Orders wait up to `wait_s` for an engine that is being started; a call may leave `most_unread` bytes."""
        self.lost: Callable[[], None] = lambda: None
        self._wait_s = wait_s
        self._most_unread = most_unread
        self._numbers = itertools.count(1)
        self._calls: dict[int, Arrivals] = {}
        self._writer: asyncio.StreamWriter | None = None
        self._connected = asyncio.Event()
        self._closing = False

    async def submit(self, work: Work) -> AsyncGenerator[Piece | Done, None]:
        """Pieces as they come, then Done."""
        call, arrivals = self._open()
        ended = False
        try:
            await self._send(frames.Submit(call, work))
            while not ended:
                arrived = await arrivals.get()
                match arrived:
                    case frames.Output(pieces=pieces):
                        for piece in pieces:
                            yield piece
                    case frames.Finished(done=done):
                        ended = True
                        yield done
                    case _:
                        ended = True
                        raise _error(arrived)
        finally:
            self._calls.pop(call, None)
            if not ended:
                self._cancel(call)

    async def encode(self, asked: Encoding) -> Encoded:
        """What a base that does not generate makes of texts or rows."""
        encoded = (await self._ask(lambda call: frames.Encode(call, asked))).encoded
        assert encoded is not None
        return encoded

    async def load_base(self, base: BaseSource) -> BaseFacts:
        """Hold a base."""
        facts = (await self._ask(lambda call: frames.LoadBase(call, base))).base
        assert facts is not None
        return facts

    async def load_adapter(self, adapter: AdapterSource) -> Loaded:
        """Hold an adapter."""
        return await self._loaded(lambda call: frames.LoadAdapter(call, adapter))

    async def stow(self, weights: Weights) -> int:
        """Move an adapter to host memory."""
        return (await self._ask(lambda call: frames.Stow(call, weights))).bytes

    async def restore(self, weights: Weights) -> Loaded:
        """Move an adapter back."""
        return await self._loaded(lambda call: frames.Restore(call, weights))

    async def unload(self, weights: Weights) -> int:
        """Let an adapter go."""
        return (await self._ask(lambda call: frames.Unload(call, weights))).bytes

    async def counters(self) -> Counters:
        """What the engine did."""
        counters = (await self._ask(frames.Count)).counters
        assert counters is not None
        return counters

    @property
    def connected(self) -> bool:
        """Whether an engine is on the line."""
        return self._connected.is_set()

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Take an engine's connection until it ends."""
        self._writer = writer
        self._connected.set()
        try:
            while True:
                size = int.from_bytes(await reader.readexactly(frames.LENGTH_BYTES), "big")
                answer = frames.decode_answer(await reader.readexactly(size))
                if (arrivals := self._calls.get(answer.call)) is not None:
                    arrivals.put(answer, size)
                    # A reply comes once; only what goes on coming can outrun its reader.
                    if arrivals.bytes > self._most_unread and not isinstance(answer, frames.Reply):
                        self._give_up(answer.call, writer)
        except (asyncio.IncompleteReadError, ConnectionError):
            if not self._closing:
                log.warning("engine lost", calls=len(self._calls))
        finally:
            self._connected.clear()
            self._writer = None
            writer.close()
            for arrivals in self._calls.values():
                arrivals.put(_lost())
            if not self._closing:
                self.lost()

    def close(self) -> None:
        """The engine will be stopped, which is then no loss."""
        self._closing = True

    def _open(self) -> tuple[int, Arrivals]:
        call = next(self._numbers)
        arrivals = self._calls[call] = Arrivals()
        return call, arrivals

    def _give_up(self, call: int, writer: asyncio.StreamWriter) -> None:
        """Nobody reads it: have the engine write no more of it, and keep nothing that it wrote."""
        told = f"{self._most_unread} bytes of the answer were not read, so it was given up; read it as it comes"
        self._calls.pop(call).end_with(Exhausted(told, code="answer_not_read"))
        writer.write(frames.framed(frames.Cancel(call)))

    def _cancel(self, call: int) -> None:
        if self._writer is not None:
            self._writer.write(frames.framed(frames.Cancel(call)))

    async def _ask(self, order: Callable[[int], frames.Order]) -> frames.Reply:
        call, arrivals = self._open()
        try:
            await self._send(order(call))
            arrived = await arrivals.get()
        except asyncio.CancelledError:
            self._cancel(call)
            raise
        finally:
            self._calls.pop(call, None)
        if isinstance(arrived, frames.Reply):
            return arrived
        raise _error(arrived)

    async def _loaded(self, order: Callable[[int], frames.Order]) -> Loaded:
        loaded = (await self._ask(order)).loaded
        assert loaded is not None
        return loaded

    async def _send(self, order: frames.Order) -> None:
        if self._writer is None:
            try:
                async with asyncio.timeout(self._wait_s):
                    await self._connected.wait()
            except TimeoutError:
                raise _lost() from None
        if self._writer is None:
            raise _lost()
        self._writer.write(frames.framed(order))
        try:
            await self._writer.drain()
        except ConnectionError:
            raise _lost() from None


@asynccontextmanager
async def open_engine(
    settings: frames.Settings, logs: Path, *, wait_s: float = START_S, most_unread: int = MOST_UNREAD_BYTES
) -> AsyncIterator[ProcessEngine]:
    """Start an engine, keep it running, and stop it at the end; its output goes to `logs`.

    Returns at once: orders wait for it. `settings.socket` is the path at which it will find the room; `most_unread` as
    `ProcessEngine` has it.
    """
    engine = ProcessEngine(wait_s=wait_s, most_unread=most_unread)
    claim(f"unix:{settings.socket}")
    async with AsyncExitStack() as stack:
        server = await asyncio.start_unix_server(engine.serve, settings.socket)
        stack.callback(Path(settings.socket).unlink, missing_ok=True)
        stack.callback(server.close)
        supervisor = await stack.enter_async_context(Supervisor(logs))
        module = "catena.adapters.drivers.engine.worker"
        command = (executable, "-m", module, msgspec.json.encode(settings).decode())
        threads = str(settings.threads)
        # Libraries that compute read their thread count before any code of ours could set it.
        env = {"OMP_NUM_THREADS": threads, "MKL_NUM_THREADS": threads, "TOKENIZERS_PARALLELISM": "false"}
        env |= {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1"}
        # Torch rounds locked host memory up to powers of two and never returns it; above 1 MiB it now does neither.
        env |= {"PYTORCH_ALLOC_CONF": "pinned_max_cached_size_mb:1"}
        stack.callback(engine.close)
        await supervisor.start(Child(name="adapters-engine", command=command, env=env))
        yield engine


def _error(arrived: Arrival) -> CatenaError:
    if isinstance(arrived, CatenaError):
        return arrived
    if not isinstance(arrived, frames.Failed):
        return CatenaError(f"the engine answered with {type(arrived).__name__}")
    kind: type[CatenaError] = getattr(errors, arrived.kind, CatenaError)
    return kind(arrived.message, code=arrived.code, retry_after_s=arrived.retry_after_s)


def _lost() -> Unavailable:
    return Unavailable(
        "the engine was lost and is being started again; ask again", code="engine_lost", retry_after_s=RETRY_AFTER_S
    )
