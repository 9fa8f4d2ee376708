"""A server that speaks vLLM's HTTP API as documented, without its engine: adapters are state, answers are spelled.

The base answers with the prompt's last letters turned round; an adapter adds the first letters of its folder's weights.
"""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from aiohttp import web
from tokenizers import Tokenizer

from catena.kit.testing import free_port


@dataclass
class StandIn:
    """What the server holds and heard. `slow` keeps a stream open, `slow_behind` certain words; `cut` breaks it off.

    `deaf` adapters do nothing.
    """

    base: str
    folder: Path
    max_model_len: int = 256
    runtime_lora: bool = True
    key: str = ""
    loaded: dict[str, Path] = field(default_factory=dict)
    asked: list[dict[str, Any]] = field(default_factory=list)
    slow: bool = False
    slow_behind: str = ""
    cut: bool = False
    deaf: bool = False
    aborted: asyncio.Event = field(default_factory=asyncio.Event)
    running: int = 0
    generated: int = 0
    url: str = ""

    def __post_init__(self) -> None:
        self.words = Tokenizer.from_file(str(self.folder / "tokenizer.json"))

    def application(self) -> web.Application:
        app = web.Application(middlewares=[self.admitted])
        app.add_routes(
            [
                web.get("/v1/models", self.models),
                web.post("/tokenize", self.tokenize),
                web.post("/v1/completions", self.complete),
                web.get("/metrics", self.metrics),
            ]
        )
        if self.runtime_lora:
            app.add_routes(
                [web.post("/v1/load_lora_adapter", self.load), web.post("/v1/unload_lora_adapter", self.unload)]
            )
        else:
            app.router.add_post("/{path:.*}", self.absent)
        return app

    @web.middleware
    async def admitted(self, request: web.Request, handler: Any) -> web.StreamResponse:
        if self.key and request.headers.get("Authorization") != f"Bearer {self.key}":
            return web.json_response({"error": "Unauthorized"}, status=401)
        answer: web.StreamResponse = await handler(request)
        return answer

    async def absent(self, _: web.Request) -> web.Response:
        return web.json_response({"detail": "Not Found"}, status=404)

    async def models(self, _: web.Request) -> web.Response:
        base = {"id": self.base, "object": "model", "root": str(self.folder), "parent": None}
        cards = [base | {"max_model_len": self.max_model_len}]
        cards += [
            {"id": name, "object": "model", "root": str(path), "parent": self.base, "max_model_len": None}
            for name, path in self.loaded.items()
        ]
        return web.json_response({"object": "list", "data": cards})

    async def tokenize(self, request: web.Request) -> web.Response:
        asked = await request.json()
        ids = self.words.encode(asked["prompt"], add_special_tokens=asked["add_special_tokens"]).ids
        return web.json_response({"count": len(ids), "max_model_len": self.max_model_len, "tokens": ids})

    async def load(self, request: web.Request) -> web.Response:
        asked = await request.json()
        name, path = asked["lora_name"], Path(asked["lora_path"])
        if name in self.loaded:
            return self.error(400, "InvalidUserInput", f"The lora adapter '{name}' has already been loaded. If you")
        if not (path / "adapter_config.json").is_file():
            said = f"Loading lora {name} failed: No adapter found for {path}"
            return self.error(404, "NotFoundError", said)
        self.loaded[name] = path
        return web.Response(text=f"Success: LoRA adapter '{name}' added successfully.")

    async def unload(self, request: web.Request) -> web.Response:
        name = (await request.json())["lora_name"]
        if name not in self.loaded:
            return self.error(404, "NotFoundError", f"The lora adapter '{name}' cannot be found.")
        del self.loaded[name]
        return web.Response(text=f"Success: LoRA adapter '{name}' removed successfully.")

    async def metrics(self, _: web.Request) -> web.Response:
        lines = [
            "# TYPE vllm:num_requests_running gauge",
            f'vllm:num_requests_running{{engine="0",model_name="{self.base}"}} {self.running}.0',
            "# TYPE vllm:generation_tokens_total counter",
            f'vllm:generation_tokens_total{{engine="0",model_name="{self.base}"}} {self.generated}.0',
        ]
        return web.Response(text="\n".join(lines) + "\n")

    async def complete(self, request: web.Request) -> web.StreamResponse:
        asked = await request.json()
        self.asked.append(asked)
        model = asked["model"]
        if model != self.base and model not in self.loaded:
            return self.error(404, "NotFoundError", f"The model `{model}` does not exist.")
        if len(asked["prompt"]) + asked["max_tokens"] > self.max_model_len:
            return self.error(400, "BadRequestError", f"This model's maximum context length is {self.max_model_len}")
        if not asked.get("stream"):
            return web.json_response({"choices": [self.whole(asked)], "usage": {"prompt_tokens": 1}})
        answer = web.StreamResponse(headers={"Content-Type": "text/event-stream; charset=utf-8"})
        await answer.prepare(request)
        self.running += 1
        try:
            await self.stream(asked, answer)
        except (ConnectionError, asyncio.CancelledError):
            self.aborted.set()
            raise
        finally:
            self.running -= 1
        return answer

    async def stream(self, asked: dict[str, Any], answer: web.StreamResponse) -> None:
        letters = self.said(asked)
        for index in range(asked["n"]):
            for place, letter in enumerate(letters):
                last = place == len(letters) - 1
                finish = ("length" if len(letters) == asked["max_tokens"] else "stop") if last else None
                await self.send(answer, {"choices": [self.choice(index, letter, finish, asked)], "usage": None})
                if self.slow and letters[: place + 1].endswith(self.slow_behind):
                    # Words come as long as somebody reads them.
                    while True:
                        await asyncio.sleep(0.02)
                        await self.send(answer, {"choices": [self.choice(index, ".", None, asked)], "usage": None})
                if self.cut:
                    answer.force_close()
                    return
        self.generated += asked["n"] * len(letters)
        usage = {"prompt_tokens": len(asked["prompt"]), "completion_tokens": asked["n"] * len(letters)}
        details = {"prompt_tokens_details": {"cached_tokens": 1}}
        await self.send(answer, {"choices": [], "usage": usage | details})
        await answer.write(b"data: [DONE]\n\n")

    def said(self, asked: dict[str, Any]) -> str:
        text = self.words.decode(asked["prompt"], skip_special_tokens=True)[::-1]
        return (self.turn(asked["model"]) + text)[: asked["max_tokens"]]

    def turn(self, model: str) -> str:
        if model == self.base or self.deaf:
            return ""
        return f"{sum((self.loaded[model] / 'adapter_model.safetensors').read_bytes()) % 997}:"

    def choice(self, index: int, letter: str, finish: str | None, asked: dict[str, Any]) -> dict[str, Any]:
        top = {f"{letter}{place}": -0.7 - place for place in range(asked["logprobs"])}
        told = {"tokens": [letter], "token_logprobs": [-0.25], "top_logprobs": [{letter: -0.25} | top]}
        return {"index": index, "text": letter, "logprobs": told, "finish_reason": finish}

    def whole(self, asked: dict[str, Any]) -> dict[str, Any]:
        change = 0.01 * len(self.turn(asked["model"]))
        told = [{str(token): {"logprob": -1.0 - change, "rank": 1}} for token in asked["prompt"]]
        return {"index": 0, "text": "x", "finish_reason": "length", "prompt_logprobs": [None, *told[1:]]}

    async def send(self, answer: web.StreamResponse, chunk: dict[str, Any]) -> None:
        await answer.write(b"data: " + json.dumps({"object": "text_completion", **chunk}).encode() + b"\n\n")

    def error(self, status: int, kind: str, message: str) -> web.Response:
        told = {"message": message, "type": kind, "param": None, "code": status}
        return web.json_response({"error": told}, status=status)


@asynccontextmanager
async def served(app: web.Application, port: int = 0) -> AsyncIterator[str]:
    """The application at a port of its own; open streams are dropped at the end."""
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1, handler_cancellation=True)
    await runner.setup()
    port = port or free_port()
    try:
        await web.TCPSite(runner, "127.0.0.1", port).start()
        yield f"http://127.0.0.1:{port}"
    finally:
        await runner.cleanup()
