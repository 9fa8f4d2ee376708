"""Asks the platform as users do: the official OpenAI client, and plain HTTP for the routes of Catena's own."""

import asyncio
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from time import perf_counter
from typing import Any

import aiohttp
from openai import APIError, AsyncOpenAI
from rich.progress import Progress, TaskID

from demo.questions import Question, is_right

IN_FLIGHT = 8
MAX_TOKENS = 96


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One way to ask: a model, perhaps in a forced strategy, perhaps with an objective."""

    name: str
    model: str = "auto"
    shape: str = ""
    objective: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """One question with its answer and account; `error` holds the code of a failed request."""

    question: Question
    text: str = ""
    duration_ms: float = 0.0
    told: dict[str, Any]
    error: str = ""

    @property
    def right(self) -> bool:
        """Whether the answer is the generator's."""
        return not self.error and is_right(self.text, self.question)

    @property
    def cost_usd(self) -> float:
        """USD over every call."""
        return float(self.told.get("cost_usd", 0.0))

    @property
    def tokens(self) -> int:
        """Tokens over every call."""
        return int(self.told.get("tokens", 0))

    @property
    def stages(self) -> list[dict[str, Any]]:
        """Every call."""
        return list(self.told.get("stages", []))

    @property
    def execution_id(self) -> str:
        """What feedback refers to."""
        return str(self.told.get("execution_id", ""))


class Desk:
    """The clients of one platform, as an async context manager."""

    def __init__(self, url: str, key: str) -> None:
        """Ask the gateway at `url` with an API key."""
        self.url = url
        self.key = key
        self.openai = AsyncOpenAI(base_url=f"{url}/v1", api_key=key, max_retries=0, timeout=60)

    async def __aenter__(self) -> "Desk":
        """Open the HTTP session."""
        self._http = aiohttp.ClientSession(self.url, headers={"Authorization": f"Bearer {self.key}"})
        return self

    async def __aexit__(self, *_: object) -> None:
        """Close both clients."""
        await self._http.close()
        await self.openai.close()

    async def ask(self, question: Question, row: Row, **context: str) -> Asked:
        """Ask one question; `context` becomes `X-Catena-*` headers."""
        headers = {f"X-Catena-{name.replace('_', '-')}": value for name, value in context.items()}
        headers["Cache-Control"] = "no-cache"
        if row.shape:
            headers["X-Pipeline-Type"] = row.shape
        if row.objective:
            headers["X-Catena-Objective"] = row.objective
        started = perf_counter()
        try:
            answer = await self.openai.chat.completions.create(
                model=row.model,
                messages=[{"role": "user", "content": question.text}],
                max_tokens=MAX_TOKENS,
                temperature=0,
                extra_headers=headers,
            )
        except APIError as error:
            return Asked(question=question, told={}, error=str(error.code or error))
        told = (answer.model_extra or {})["catena"]
        text = answer.choices[0].message.content or ""
        return Asked(question=question, text=text, duration_ms=1000 * (perf_counter() - started), told=told)

    async def ask_all(
        self, questions: Sequence[Question], row: Row, progress: Progress, bar: TaskID, **context: str
    ) -> list[Asked]:
        """Ask them all, eight in flight, in order; moves the bar by one each."""
        gate = asyncio.Semaphore(IN_FLIGHT)

        async def one(number: int, question: Question) -> Asked:
            async with gate:
                asked = await self.ask(question, row, user_id=f"user-{number}", **context)
            progress.advance(bar)
            return asked

        return await asyncio.gather(*(one(number, question) for number, question in enumerate(questions)))

    async def feedback(self, asked: Asked, **told: Any) -> None:
        """Say what an answer was worth; returns once the learner has committed it."""
        await self.call("POST", "/v1/feedback", {"execution_id": asked.execution_id, **told})

    async def feedback_all(self, told: Iterable[tuple[Asked, dict[str, Any]]]) -> None:
        """Many pieces of feedback, eight in flight."""
        gate = asyncio.Semaphore(IN_FLIGHT)

        async def one(asked: Asked, what: dict[str, Any]) -> None:
            async with gate:
                await self.feedback(asked, **what)

        await asyncio.gather(*(one(asked, what) for asked, what in told))

    async def call(self, verb: str, path: str, body: Any = None) -> Any:
        """A route of Catena's own. Raises RuntimeError with the error's text."""
        async with self._http.request(verb, path, json=body) as answer:
            told = await answer.json()
            if answer.status >= 400:
                raise RuntimeError(f"{verb} {path} answered {answer.status}: {told['error']['message']}")
            return told


def accuracy(asked: Sequence[Asked]) -> float:
    """The share of right answers."""
    return sum(one.right for one in asked) / len(asked)
