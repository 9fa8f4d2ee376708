"""A gateway over a real executor, in front of an outside model that does what it is asked: tools, schemas, images."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec
from aiohttp import web

from catena.executor.app import open_executor
from catena.executor.config import ExecutorConfig
from catena.gateway.app import open_gateway
from catena.gateway.config import GatewayConfig
from catena.kit.clock import World
from catena.kit.config import ModelConfig, PriceConfig
from catena.kit.testing import nats_server
from tests.contract.executor.rooms import house_at, neighbours

USAGE = {"prompt_tokens": 12, "completion_tokens": 4, "prompt_tokens_details": {"cached_tokens": 8}}
WORDS = ["Hello", " from", " afar"]


@dataclass
class Obliging:
    """Streams: a call of every tool that is offered, in fragments, an object that fits the schema, or a greeting."""

    url: str = ""
    bodies: list[dict[str, Any]] = field(default_factory=list)
    left: asyncio.Event = field(default_factory=asyncio.Event)
    hold: bool = False

    async def chat(self, request: web.Request) -> web.StreamResponse:
        body = msgspec.json.decode(await request.read())
        self.bodies.append(body)
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        calls = b""
        for delta, reason in self.deltas(body):
            choice = {"index": 0, "delta": delta, "finish_reason": reason}
            if body.get("logprobs") and "content" in delta:
                choice["logprobs"] = {"content": [{"token": delta["content"], "logprob": -0.5, "top_logprobs": []}]}
            frame = self.frame({"model": "far-1", "choices": [choice]})
            if "tool_calls" in delta:
                # A call's fragments often arrive together.
                calls += frame
                continue
            await response.write(calls + frame)
            if self.hold:
                try:
                    await asyncio.sleep(60)
                finally:
                    self.left.set()
        await response.write(self.frame({"choices": [], "usage": USAGE}) + b"data: [DONE]\n\n")
        return response

    def deltas(self, body: dict[str, Any]) -> list[tuple[dict[str, Any], str | None]]:
        answered = body["messages"][-1]["role"] == "tool"
        if body.get("tools") and not answered:
            calls = [part for place, tool in enumerate(body["tools"]) for part in self.call(place, tool["function"])]
            return [*(({"tool_calls": [part]}, None) for part in calls), ({}, "tool_calls")]
        schema = body.get("response_format", {}).get("json_schema", {}).get("schema")
        words = [msgspec.json.encode(fitting(schema)).decode()] if schema else WORDS
        return [*(({"content": word}, None) for word in words), ({}, "stop")]

    def call(self, place: int, function: dict[str, Any]) -> list[dict[str, Any]]:
        """As OpenAI sends them: who is called first, then the arguments in pieces."""
        arguments = msgspec.json.encode(fitting(function.get("parameters", {}))).decode()
        head = {"id": f"call_{place}", "type": "function", "function": {"name": function["name"], "arguments": ""}}
        rest = [{"function": {"arguments": piece}} for piece in (arguments[:3], arguments[3:])]
        return [{"index": place, **part} for part in (head, *rest)]

    def frame(self, chunk: Any) -> bytes:
        return b"data: " + msgspec.json.encode(chunk) + b"\n\n"

    async def embeddings(self, request: web.Request) -> web.Response:
        body = msgspec.json.decode(await request.read())
        rows = [{"index": place, "embedding": [float(len(text)), 1.0]} for place, text in enumerate(body["input"])]
        return web.json_response({"data": rows, "usage": {"prompt_tokens": 5}})


def fitting(schema: dict[str, Any]) -> Any:
    """Something that fits a simple schema."""
    kind = schema.get("type", "object")
    if kind == "object":
        return {name: fitting(inner) for name, inner in schema.get("properties", {}).items()}
    if kind == "array":
        return [fitting(schema.get("items", {}))]
    return {"string": "Rome", "integer": 7, "number": 7.5, "boolean": True}.get(kind)


@dataclass(frozen=True)
class Whole:
    url: str
    key: str
    model: Obliging
    grpc: str


@asynccontextmanager
async def whole_gateway(home: Path, *, shapes: Any = None, **settings: Any) -> AsyncIterator[Whole]:
    """It, with the models `far` and `far-embed`, and `small` and `large`, which are local and echo.

    `shapes` configures strategies where those of `house_at` will not do.
    """
    model = Obliging()
    app = web.Application()
    app.add_routes([web.post("/v1/chat/completions", model.chat), web.post("/v1/embeddings", model.embeddings)])
    runner = web.AppRunner(app, access_log=None, handler_cancellation=True, shutdown_timeout=0.1)
    async with AsyncExitStack() as stack:
        await runner.setup()
        stack.push_async_callback(runner.cleanup)
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        model.url = f"http://127.0.0.1:{runner.addresses[0][1]}/v1"
        price = PriceConfig(input=1.0, output=2.0)
        far = ModelConfig(name="far", provider="openai", base_url=model.url, price=price)
        embed = ModelConfig(name="far-embed", provider="openai", base_url=model.url, type="embedding")
        bus = await stack.enter_async_context(nats_server(home))
        house = house_at(home, bus_url=bus, models=[far, embed])
        house = msgspec.structs.replace(house, pipelines=shapes or house.pipelines)
        await stack.enter_async_context(neighbours(house))
        await stack.enter_async_context(open_executor(house, ExecutorConfig(), World()))
        await stack.enter_async_context(open_gateway(house, GatewayConfig(port=0, **settings), World()))
        url = msgspec.json.decode((home / "run" / "gateway.json").read_bytes())["url"]
        yield Whole(url, (home / "keys" / "development.key").read_text().strip(), model, house.address("gateway"))
