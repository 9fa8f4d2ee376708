"""A server that speaks TGI's HTTP API as documented, without its engine: adapters are those it was started with.

As TGI, it takes text in which names of special tokens are special tokens, sends stop texts along, and answers by its
base for an adapter that it does not know.
"""

import asyncio
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from aiohttp import web
from tokenizers import Tokenizer

MOST_TOP = 5


@dataclass
class StandIn:
    """What the server was started with and heard. `slow` keeps a stream open, `slow_behind` certain words; `cut`
    breaks it off; `broken` fails.
    """

    folder: Path
    adapters: Mapping[str, str] = field(default_factory=dict)
    max_total_tokens: int = 256
    asked: list[dict[str, Any]] = field(default_factory=list)
    slow: bool = False
    slow_behind: str = ""
    cut: bool = False
    broken: str = ""
    aborted: asyncio.Event = field(default_factory=asyncio.Event)
    running: int = 0
    url: str = ""

    def __post_init__(self) -> None:
        self.words = Tokenizer.from_file(str(self.folder / "tokenizer.json"))

    def application(self) -> web.Application:
        app = web.Application()
        app.add_routes(
            [
                web.get("/info", self.info),
                web.get("/metrics", self.metrics),
                web.post("/tokenize", self.tokenize),
                web.post("/generate", self.generate),
                web.post("/generate_stream", self.stream),
            ]
        )
        return app

    async def info(self, _: web.Request) -> web.Response:
        told = {"model_id": str(self.folder), "model_dtype": "torch.float16", "max_total_tokens": self.max_total_tokens}
        return web.json_response(told | {"max_input_tokens": self.max_total_tokens - 1, "version": "3.3.5"})

    async def metrics(self, _: web.Request) -> web.Response:
        return web.Response(
            text=f"# TYPE tgi_queue_size gauge\ntgi_queue_size 2\n# TYPE tgi_batch_current_size gauge\n"
            f"tgi_batch_current_size {self.running}\n"
        )

    async def tokenize(self, request: web.Request) -> web.Response:
        ids = self.words.encode((await request.json())["inputs"]).ids
        return web.json_response([{"id": number, "text": "", "start": 0, "stop": 0} for number in ids])

    async def generate(self, request: web.Request) -> web.Response:
        asked = await request.json()
        tokens = [self.token(letter, asked) for letter in self.said(asked)]
        details = {"finish_reason": "length", "generated_tokens": len(tokens), "tokens": tokens, "prefill": []}
        top = [[token] for token in tokens]
        return web.json_response({"generated_text": self.said(asked), "details": details | {"top_tokens": top}})

    async def stream(self, request: web.Request) -> web.StreamResponse:
        asked = await request.json()
        self.asked.append(asked)
        parameters = asked["parameters"]
        for name, least in (("temperature", 0), ("top_k", 0), ("seed", 0)):
            if name in parameters and not parameters[name] > least:
                return self.error(422, "validation", f"`{name}` must be strictly positive")
        if not 0 < parameters.get("top_p", 0.5) < 1:
            return self.error(422, "validation", "`top_p` must be > 0.0 and < 1.0")
        if len(parameters["stop"]) > 4:
            return self.error(422, "validation", "`stop` supports up to 4 stop sequences")
        answer = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await answer.prepare(request)
        self.running += 1
        try:
            await self.write(asked, answer)
        except (ConnectionError, asyncio.CancelledError):
            self.aborted.set()
            raise
        finally:
            self.running -= 1
        return answer

    async def write(self, asked: dict[str, Any], answer: web.StreamResponse) -> None:
        if self.broken:
            await self.send(answer, {"error": "it failed", "error_type": self.broken})
            return
        said, stops, most = self.said(asked), asked["parameters"]["stop"], asked["parameters"]["max_new_tokens"]
        so_far = ""
        for place, letter in enumerate(said):
            so_far += letter
            stopped = any(stop in so_far for stop in stops)
            last = stopped or place == len(said) - 1
            reason = "stop_sequence" if stopped else "length" if place + 1 == most else "eos_token"
            event: dict[str, Any] = {"index": place + 1, "token": self.token(letter, asked), "generated_text": None}
            event["top_tokens"] = [self.token(f"{letter}{n}", asked) for n in range(self.top(asked))]
            if last and reason != "eos_token":
                await self.send(answer, event | self.end(asked, so_far, place + 1, reason))
                return
            await self.send(answer, event)
            while self.slow and so_far.endswith(self.slow_behind):
                await asyncio.sleep(0.02)
                await self.send(answer, event)
            if self.cut:
                answer.force_close()
                return
        token = {"id": 258, "text": "<end>", "logprob": -0.5, "special": True}
        event = {"index": len(said) + 1, "token": token, "top_tokens": []}
        await self.send(answer, event | self.end(asked, so_far, len(said) + 1, "eos_token"))

    def end(self, asked: dict[str, Any], text: str, tokens: int, reason: str) -> dict[str, Any]:
        length = len(self.words.encode(asked["inputs"]).ids)
        details = {"finish_reason": reason, "generated_tokens": tokens, "seed": None, "input_length": length}
        return {"generated_text": text, "details": details}

    def said(self, asked: dict[str, Any]) -> str:
        text = self.words.decode(self.words.encode(asked["inputs"]).ids, skip_special_tokens=True)[::-1]
        turn = self.adapters.get(asked["parameters"].get("adapter_id", ""), "")
        return f"{turn}{text}"[: asked["parameters"]["max_new_tokens"]]

    def top(self, asked: dict[str, Any]) -> int:
        return min(asked["parameters"].get("top_n_tokens", 0), MOST_TOP)

    def token(self, text: str, asked: dict[str, Any]) -> dict[str, Any]:
        return {"id": ord(text[0]), "text": text, "logprob": -0.25 * len(text), "special": False}

    async def send(self, answer: web.StreamResponse, event: dict[str, Any]) -> None:
        await answer.write(b"data:" + json.dumps(event).encode() + b"\n\n")

    def error(self, status: int, kind: str, message: str) -> web.Response:
        return web.json_response({"error": message, "error_type": kind}, status=status)
