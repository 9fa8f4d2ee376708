"""A real HTTP server that speaks a provider's language and behaves as told: well, busy, broken, slow, cut."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import msgspec
from aiohttp import web

from tests.contract.executor.dialects import COUNTS, OPENAI, WORDS, WRONG, Dialect

GARBAGE = b"data: {not json\n\n"
REFUSALS: dict[str, tuple[int, dict[str, str], str, str]] = {
    "busy": (429, {"Retry-After": "0.05"}, "rate_limit_exceeded", "slow down"),
    "busy for reasons unsaid": (429, {}, "rate_limit_exceeded", "slow down"),
    "very busy": (429, {"Retry-After": "60"}, "rate_limit_exceeded", "slow down"),
    "broken": (500, {}, "server_error", "oops"),
    "filtered": (400, {}, "content_filter", "the content policy forbids it"),
    "bad key": (401, {}, "invalid_api_key", "Incorrect API key"),
}


@dataclass
class Upstream:
    """`script` is worked off one behaviour a request; the last one stays. `url` is the root of its server.

    `frames` stream instead of the dialect's own. `over_again`: the script begins anew; `forgetful`: nothing is noted.
    """

    dialect: Dialect = OPENAI
    url: str = ""
    script: list[str] = field(default_factory=lambda: ["well"])
    bodies: list[dict[str, Any]] = field(default_factory=list)
    headers: list[dict[str, str]] = field(default_factory=list)
    paths: list[str] = field(default_factory=list)
    connections: set[Any] = field(default_factory=set)
    left: asyncio.Event = field(default_factory=asyncio.Event)
    slow_s: float = 0.5
    between_s: float = 0.0
    frames: list[bytes] | None = None
    over_again: bool = False
    forgetful: bool = False

    @property
    def keys(self) -> list[str]:
        return [headers.get("Authorization", "") for headers in self.headers]

    def next(self) -> str:
        how = self.script.pop(0) if len(self.script) > 1 else self.script[0]
        if self.over_again:
            self.script.append(how)
        return how

    async def answer(self, request: web.Request) -> web.StreamResponse:
        body = await request.read()
        assert request.transport is not None
        if not self.forgetful:
            self.bodies.append(msgspec.json.decode(body))
            self.headers.append(dict(request.headers))
            self.paths.append(request.path_qs)
            self.connections.add(request.transport.get_extra_info("peername"))
        how = self.next()
        if how == "too long":
            told = self.dialect.refusal(400, "context_length_exceeded", self.dialect.too_long)
            return web.json_response(told, status=400)
        if how in REFUSALS:
            return self._refused(how)
        if how == "reset":
            request.transport.abort()
            return web.Response()
        if how == "silent":
            await self._wait()
        if how == "whole":
            return web.json_response(self.dialect.whole())
        return await self._stream(request, how)

    def _refused(self, how: str) -> web.Response:
        status, headers, code, message = REFUSALS[how]
        return web.json_response(self.dialect.refusal(status, code, message), status=status, headers=headers)

    async def _wait(self, seconds: float = 30.0) -> None:
        try:
            await asyncio.sleep(seconds)
        except asyncio.CancelledError:
            self.left.set()
            raise

    async def _stream(self, request: web.Request, how: str) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        await response.write(b": keep-alive\n\n")
        if how == "slow first token":
            await self._wait(self.slow_s)
        if how == "thinks":
            for _ in range(10):
                await response.write(self.dialect.thought)
                await self._wait(self.slow_s / 10)
        frames = self._frames(how)
        for place, frame in enumerate(frames):
            if place == _middle(frames) and how in ("cut", "stall", "garbage", "error inside", "ended early"):
                match how:
                    case "cut":
                        assert request.transport is not None
                        # What was written is on its way before the connection goes.
                        await asyncio.sleep(0.02)
                        request.transport.abort()
                        return response
                    case "stall":
                        await self._wait()
                    case "ended early":
                        return response
                await response.write(GARBAGE if how == "garbage" else self.dialect.error_inside)
            await response.write(frame)
            await asyncio.sleep(self.between_s)
        if how == "ends late":
            await asyncio.sleep(0.002)
        return response

    def _frames(self, how: str) -> list[bytes]:
        if self.frames is not None:
            return self.frames
        dialect = self.dialect
        done = [dialect.done] if dialect.done and how != "no done" else []
        match how:
            case "tools":
                return [*dialect.tools, *done]
            case "empty":
                return [*dialect.words((), COUNTS), *dialect.ending(COUNTS), *done]
            case "wrong usage":
                return [*dialect.words(WORDS, WRONG), *dialect.ending(WRONG), *done]
            case "no usage":
                return [*dialect.words(WORDS, {}), *dialect.ending({}), *done]
            case "duplicates":
                numbered = [f"id: {n}\n".encode() + frame for n, frame in enumerate(dialect.words(WORDS, COUNTS))]
                ending = dialect.ending(COUNTS)
                return [*(frame for one in numbered for frame in (one, one)), *ending, *ending, *done]
        return [*dialect.words(WORDS, COUNTS), *dialect.ending(COUNTS), *done]

    async def embeddings(self, request: web.Request) -> web.Response:
        body = msgspec.json.decode(await request.read())
        self.bodies.append(body)
        how = self.next()
        if how in REFUSALS:
            return self._refused(how)
        rows = [{"index": place, "embedding": [float(len(text)), 1.0]} for place, text in enumerate(body["input"])]
        return web.json_response({"data": rows[::-1], "usage": {"prompt_tokens": 5}})


def _middle(frames: list[bytes]) -> int:
    """The place after the second word; -1 where there is none."""
    return next((place + 1 for place, frame in enumerate(frames) if WORDS[1].encode() in frame), -1)


@asynccontextmanager
async def upstream(*script: str, dialect: Dialect = OPENAI) -> AsyncIterator[Upstream]:
    """The server, on a port of its own."""
    server = Upstream(dialect=dialect)
    server.script = list(script) or ["well"]
    app = web.Application()
    app.add_routes([web.post(path, server.answer) for path in dialect.paths])
    app.add_routes([web.post("/v1/embeddings", server.embeddings)])
    runner = web.AppRunner(app, access_log=None, handler_cancellation=True, shutdown_timeout=0.1)
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        server.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
        yield server
    finally:
        await runner.cleanup()
