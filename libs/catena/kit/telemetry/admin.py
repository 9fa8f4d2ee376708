"""The admin port of a process: `/metrics` for Prometheus and `/healthz` for whoever restarts it."""

from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager

import msgspec
from aiohttp import web
from prometheus_client import CONTENT_TYPE_LATEST, REGISTRY, CollectorRegistry, generate_latest

from catena.kit.errors import Conflict


@asynccontextmanager
async def open_admin(
    port: int,
    healthy: Callable[[], Mapping[str, bool]],
    *,
    host: str = "127.0.0.1",
    registry: CollectorRegistry = REGISTRY,
) -> AsyncIterator[int]:
    """Serve until the block ends, and yield the port (0 asks for a free one).

    `/healthz` answers 200 when every part that `healthy` names is well, else 503, with the parts as JSON either way.
    Raises Conflict when the port is taken.
    """

    async def metrics(_request: web.Request) -> web.Response:
        return web.Response(body=generate_latest(registry), headers={"Content-Type": CONTENT_TYPE_LATEST})

    async def healthz(_request: web.Request) -> web.Response:
        parts = dict(healthy())
        status = 200 if all(parts.values()) else 503
        return web.Response(body=msgspec.json.encode(parts), status=status, content_type="application/json")

    app = web.Application()
    app.add_routes([web.get("/metrics", metrics), web.get("/healthz", healthz)])
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=1)
    await runner.setup()
    try:
        try:
            await web.TCPSite(runner, host, port).start()
        except OSError as error:
            raise Conflict(
                f"admin port {host}:{port} is taken ({error}); 0 picks a free one", code="port_taken"
            ) from error
        yield runner.addresses[0][1]
    finally:
        await runner.cleanup()
