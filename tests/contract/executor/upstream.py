"""A real OpenAI-speaking HTTP server that behaves as told: well, busy, broken, slow, cut."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import msgspec
from aiohttp import web


@dataclass
class Upstream:
    """`script` is worked off one behaviour a request; the last one stays. `url` is the root of its API."""

    url: str = ""
    script: list[str] = field(default_factory=lambda: ["well"])
    bodies: list[dict[str, Any]] = field(default_factory=list)
    keys: list[str] = field(default_factory=list)
    left: asyncio.Event = field(default_factory=asyncio.Event)

    def next(self) -> str:
        return self.script.pop(0) if len(self.script) > 1 else self.script[0]

    async def chat(self, request: web.Request) -> web.StreamResponse:
        body = msgspec.json.decode(await request.read())
        self.bodies.append(body)
        self.keys.append(request.headers.get("Authorization", ""))
        how = self.next()
        if how in REFUSALS:
            status, headers, error = REFUSALS[how]
            return web.json_response({"error": error}, status=status, headers=headers)
        if how == "reset":
            assert request.transport is not None
            request.transport.abort()
            return web.Response()
        if how == "silent":
            await self._wait()
        if how == "whole":
            return web.json_response(whole("Hello from afar"))
        return await self._stream(request, how)

    async def _wait(self) -> None:
        try:
            await asyncio.sleep(30)
        finally:
            self.left.set()

    async def _stream(self, request: web.Request, how: str) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)

        async def send(chunk: Any) -> None:
            await response.write(b"data: " + msgspec.json.encode(chunk) + b"\n\n")

        await response.write(b": keep-alive\n\n")
        for chunk in TOOLS if how == "tools" else pieces("Hello from afar"):
            await send(chunk)
        match how:
            case "cut":
                assert request.transport is not None
                request.transport.abort()
                return response
            case "ended early":
                return response
            case "stall":
                await self._wait()
            case "garbage":
                await response.write(b"data: {not json\n\n")
            case "error inside":
                await send({"error": {"message": "overloaded"}})
        reason = "tool_calls" if how == "tools" else "stop"
        await send({"model": "real-name", "choices": [{"index": 0, "delta": {}, "finish_reason": reason}]})
        if how != "no usage":
            await send({"choices": [], "usage": USAGE})
        if how != "no done":
            await response.write(b"data: [DONE]\n\n")
        return response

    async def embeddings(self, request: web.Request) -> web.Response:
        body = msgspec.json.decode(await request.read())
        rows = [{"index": place, "embedding": [float(len(text)), 1.0]} for place, text in enumerate(body["input"])]
        return web.json_response({"data": rows[::-1], "usage": {"prompt_tokens": 5}})


USAGE = {
    "prompt_tokens": 100,
    "completion_tokens": 7,
    "prompt_tokens_details": {"cached_tokens": 64},
    "completion_tokens_details": {"reasoning_tokens": 3},
}
REFUSALS: dict[str, tuple[int, dict[str, str], Any]] = {
    "busy": (429, {"Retry-After": "0.05"}, {"message": "slow down", "code": "rate_limit_exceeded"}),
    "very busy": (429, {"Retry-After": "60"}, {"message": "slow down"}),
    "broken": (500, {}, {"message": "oops"}),
    "too long": (400, {}, {"message": "This model's maximum context length is 10", "code": "context_length_exceeded"}),
    "filtered": (400, {}, {"message": "policy", "code": "content_filter"}),
    "bad key": (401, {}, {"message": "Incorrect API key"}),
}
TOOLS = [
    {"choices": [{"index": 0, "delta": {"role": "assistant", "tool_calls": [
        {"index": 0, "id": "call_a", "type": "function", "function": {"name": "f", "arguments": ""}}]}}]},
    {"choices": [{"index": 0, "delta": {"tool_calls": [{"index": 0, "function": {"arguments": '{"x":'}}]}}]},
    {"choices": [{"index": 0, "delta": {"tool_calls": [
        {"index": 1, "id": "call_b", "type": "function", "function": {"name": "g", "arguments": "{}"}}]}}]},
    {"choices": [{"index": 0, "delta": {"tool_calls": [{"index": 0, "function": {"arguments": "1}"}}]}}]},
]  # fmt: skip


def pieces(text: str) -> list[dict[str, Any]]:
    logprob = {"content": [{"token": "t", "logprob": -0.5, "top_logprobs": []}]}
    return [
        {"model": "real-name", "choices": [{"index": 0, "delta": {"content": part}, "logprobs": logprob}]}
        for part in text.split(" ")
    ]


def whole(text: str) -> dict[str, Any]:
    choice = {"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": "stop"}
    return {"model": "real-name", "choices": [choice], "usage": USAGE}


@asynccontextmanager
async def upstream(*script: str) -> AsyncIterator[Upstream]:
    """The server, on a port of its own."""
    server = Upstream()
    server.script = list(script) or ["well"]
    app = web.Application()
    app.add_routes([web.post("/v1/chat/completions", server.chat), web.post("/v1/embeddings", server.embeddings)])
    runner = web.AppRunner(app, access_log=None, handler_cancellation=True, shutdown_timeout=0.1)
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        server.url = f"http://127.0.0.1:{runner.addresses[0][1]}/v1"
        yield server
    finally:
        await runner.cleanup()
