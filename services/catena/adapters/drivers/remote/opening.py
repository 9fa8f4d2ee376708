"""Opens the remote engine that the configuration names, one server a base."""

from collections.abc import AsyncGenerator, AsyncIterator, Callable, Sequence
from contextlib import aclosing, asynccontextmanager

import aiohttp

from catena.adapters.config import EngineConfig
from catena.adapters.core.encoding import Encoded, Encoding
from catena.adapters.core.ports import Runner
from catena.adapters.core.work import (
    AdapterSource,
    BaseFacts,
    BaseSource,
    Counters,
    Done,
    Loaded,
    Piece,
    Weights,
    Work,
)
from catena.adapters.drivers.remote.holding import unsupported
from catena.adapters.drivers.remote.http import RETRY_AFTER_S, Server
from catena.adapters.drivers.remote.tgi import TgiEngine
from catena.adapters.drivers.remote.vllm import VllmEngine, placed
from catena.kit.clock import World
from catena.kit.config import secret
from catena.kit.errors import Exhausted, Invalid, Unavailable

MOST_LINE_BYTES = 4 << 20
ENCODERS = "serve it by a room whose engine is local"
REST_S = 5.0
"""How long the counters of a server that does not answer are left alone."""
COUNT_EVERY_S = 2.0


class RemoteEngine:
    """An engine elsewhere, as the room starts and watches it. `lost` is called when what a server held may be gone."""

    def __init__(self, world: World, *, most: int) -> None:
        """Take up to `most` answers at a time. `engine` and `forget` are set by whoever opens it."""
        self.lost: Callable[[], None] = lambda: None
        self.forget: Callable[[], None] = lambda: None
        self.engine: Runner
        self._most = most
        self._answers = 0
        self._clock = world.clock
        self._rests_until_s = -1e9
        self._counted: tuple[float, Counters] = (-1e9, Counters())

    @property
    def connected(self) -> bool:
        """Whether it may be asked for its counters: not while it has just failed to answer."""
        return self._clock.monotonic() >= self._rests_until_s

    def failed(self) -> None:
        """A server did not answer; when it does again, it may be another one."""
        if self.connected:
            self._rests_until_s = self._clock.monotonic() + REST_S
            self.emptied()

    def emptied(self) -> None:
        """A server turned out to hold nothing: it was started anew."""
        self.forget()
        self.lost()

    async def submit(self, work: Work) -> AsyncGenerator[Piece | Done, None]:
        """Pieces as they come, then Done."""
        if self._answers + work.sampling.n > self._most:
            raise Exhausted(
                f"{self._most} answers are being written or wait; ask again later or raise adapters.queue",
                code="queue_full",
                retry_after_s=RETRY_AFTER_S,
            )
        self._answers += work.sampling.n
        try:
            async with aclosing(self.engine.submit(work)) as pieces:
                async for piece in pieces:
                    yield piece
        finally:
            self._answers -= work.sampling.n

    async def load_base(self, base: BaseSource) -> BaseFacts:
        """Look for a base. Raises Invalid for one that does not generate."""
        if base.kind != "chat":
            raise unsupported("this engine", f"models of type {base.kind}", "encoders_unsupported", ENCODERS)
        return await self.engine.load_base(base)

    async def encode(self, asked: Encoding) -> Encoded:
        """Refuse: no base of that kind was ever held."""
        raise unsupported("this engine", "encoders", "encoders_unsupported", ENCODERS)

    async def load_adapter(self, adapter: AdapterSource) -> Loaded:
        """Hold an adapter."""
        return await self.engine.load_adapter(adapter)

    async def stow(self, weights: Weights) -> int:
        """Let an adapter go: what a server keeps beside its device is its own affair."""
        await self.engine.unload(weights)
        return 0

    async def restore(self, weights: Weights) -> Loaded:
        """Nothing was kept."""
        raise Unavailable(f"{weights.adapter} is not in host memory; load it", code="not_resident")

    async def unload(self, weights: Weights) -> int:
        """Let an adapter go; a base stays with its server, whatever this room forgets of it."""
        return await self.engine.unload(weights) if weights.adapter else 0

    async def counters(self) -> Counters:
        """What the servers did, as they told a moment ago."""
        until_s, known = self._counted
        if self._clock.monotonic() < until_s:
            return known
        known = await self.engine.counters()
        self._counted = (self._clock.monotonic() + COUNT_EVERY_S, known)
        return known


@asynccontextmanager
async def open_remote(
    config: EngineConfig, world: World, *, bases: Sequence[str], artifacts: str, most: int
) -> AsyncIterator[RemoteEngine]:
    """The engine that `config` names for `bases`; adapters lie below `artifacts` here. Nothing is asked of it yet.

    At most `most` answers are written at a time or wait. Raises Invalid (`bad_config`) where a base has no server.
    """
    homeless = [base for base in bases if not config.urls.get(base, config.url)]
    if homeless:
        raise Invalid(
            f"no {config.kind} server for {', '.join(homeless)}; set adapters.engine.url, or urls by base",
            code="bad_config",
        )
    engine = RemoteEngine(world, most=most)
    key = secret(config.api_key_env) if config.api_key_env else ""
    connector = aiohttp.TCPConnector(limit=0, keepalive_timeout=30)
    async with aiohttp.ClientSession(connector=connector, read_bufsize=MOST_LINE_BYTES) as session:
        urls = {base: config.urls.get(base, config.url) for base in bases}
        servers = {base: Server(session, url, key=key, failed=engine.failed) for base, url in urls.items()}
        if config.kind == "vllm":
            place = placed(artifacts, config.artifacts)
            vllm = VllmEngine(servers, world, place=place, lost=engine.emptied)
            engine.engine, engine.forget = vllm, vllm.forget
        else:
            engine.engine = TgiEngine(servers, world)
        yield engine
