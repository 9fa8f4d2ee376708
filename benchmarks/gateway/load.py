"""Asks servers alike: one at a time, many at once, streamed."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from time import perf_counter
from typing import Any

import aiohttp
import msgspec

from benchmarks.gateway.servers import Server

QUESTION = "x" * 1000
WORDS = "Tell me in plain words how the tide comes in, and why it is late by so much each day. "


@dataclass(frozen=True, slots=True)
class Load:
    """A client of one server."""

    server: Server
    http: aiohttp.ClientSession

    async def ask(self, model: str, **more: Any) -> Any:
        """A whole answer. Raises RuntimeError for any but 200."""
        headers, question = more.pop("headers", None), more.pop("question", QUESTION)
        body = {"model": model, "messages": [{"role": "user", "content": question}], **more}
        async with self.http.post(f"{self.server.url}/chat/completions", json=body, headers=headers) as answer:
            told = await answer.read()
            if answer.status != 200:
                raise RuntimeError(f"{self.server.name} answers {answer.status}: {told[:300]!r}")
            return told

    async def post(self, path: str, body: Any) -> None:
        """Any other route, below `/v1`."""
        async with self.http.post(f"{self.server.url}{path}", json=body) as answer:
            if answer.status != 200:
                raise RuntimeError(f"{self.server.name} answers {answer.status}: {await answer.text()}")
            await answer.read()

    async def times_ms(self, model: str, count: int, **more: Any) -> list[float]:
        """`count` answers one after the other, in order of their time."""
        told = []
        for _ in range(count):
            began = perf_counter()
            await self.ask(model, **more)
            told.append(1000 * (perf_counter() - began))
        return sorted(told)

    async def beyond_ms(self, model: str, count: int) -> list[float]:
        """What `count` answers, each to another question of 1 KB, took beyond their calls in turn; in order."""
        told = []
        for number in range(count):
            began = perf_counter()
            answer = msgspec.json.decode(await self.ask(model, question=f"{number} at {began}: {12 * WORDS}"[:1000]))
            took = 1000 * (perf_counter() - began)
            calls = [stage["duration_ms"] for stage in answer["catena"]["stages"]]
            told.append(took - (max(calls) if answer["catena"]["plan"]["shape"] == "consensus" else sum(calls)))
        return sorted(told)

    async def first_ms(self, model: str, count: int) -> list[float]:
        """Times until the first words of streamed answers, in order."""
        told = []
        for _ in range(count):
            body = {"model": model, "messages": [{"role": "user", "content": QUESTION}], "stream": True}
            began = perf_counter()
            async with self.http.post(f"{self.server.url}/chat/completions", json=body) as answer:
                async for line in answer.content:
                    if b'"content":"x' in line or b'"content": "x' in line or b'"content":"tok' in line:
                        told.append(1000 * (perf_counter() - began))
                        break
                await answer.read()
        return sorted(told)

    async def stream(self, model: str) -> None:
        """A streamed answer, read to its end. Raises RuntimeError where it is not whole."""
        body = {"model": model, "messages": [{"role": "user", "content": QUESTION}], "stream": True}
        async with self.http.post(f"{self.server.url}/chat/completions", json=body) as answer:
            told = await answer.read()
        if b"[DONE]" not in told:
            raise RuntimeError(f"{self.server.name} broke a stream off: {told[-300:]!r}")

    async def at_once(self, model: str, clients: int, seconds: float) -> tuple[float, float]:
        """Answers a second, and p99 in ms, with `clients` that ask again as soon as they are answered."""
        took: list[float] = []
        until = perf_counter() + seconds

        async def client() -> None:
            while (began := perf_counter()) < until:
                await self.ask(model)
                took.append(1000 * (perf_counter() - began))

        began = perf_counter()
        await asyncio.gather(*(client() for _ in range(clients)))
        spent = perf_counter() - began
        took.sort()
        return len(took) / spent, took[int(0.99 * (len(took) - 1))]


@asynccontextmanager
async def loads(servers: list[Server]) -> AsyncIterator[list[Load]]:
    """A client for each."""
    sessions = []
    try:
        for server in servers:
            connector = aiohttp.TCPConnector(limit=0)
            headers = {"Authorization": f"Bearer {server.key}"}
            sessions.append(aiohttp.ClientSession(headers=headers, connector=connector))
        yield [Load(server, session) for server, session in zip(servers, sessions, strict=True)]
    finally:
        for session in sessions:
            await session.close()
