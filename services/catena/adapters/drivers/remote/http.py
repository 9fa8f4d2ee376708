"""One server of somebody else's engine: JSON and event streams over HTTP, its failures as kinds of errors."""

from collections.abc import AsyncGenerator, Callable, Mapping
from typing import Any, TypeVar

import aiohttp
import msgspec

from catena.kit.caller import deadline_s
from catena.kit.errors import CatenaError, Exhausted, Invalid, Late, Missing, Unavailable

CONNECT_S = 5.0
CONTROL_S = 120.0
"""Longest for anything but an answer; a load reads an adapter from the server's disk."""
SILENCE_S = 300.0
"""Longest without a word in a stream: a prompt may wait for its turn, but not for ever."""
RETRY_AFTER_S = 2.0
MOST_CHARS = 500
DATA = b"data:"
DONE = b"[DONE]"
Answer = TypeVar("Answer")


class Server:
    """A server at `url`. `failed` is called whenever it does not answer, for what it held may be gone."""

    def __init__(
        self, session: aiohttp.ClientSession, url: str, *, key: str = "", failed: Callable[[], None] = lambda: None
    ) -> None:
        """`key` is sent as a bearer, empty: none."""
        self.url = url.rstrip("/")
        self.failed = failed
        self._session = session
        self._headers = {"Content-Type": "application/json"} | ({"Authorization": f"Bearer {key}"} if key else {})

    async def get(self, path: str, kind: type[Answer]) -> Answer:
        """What lies at `path`. Raises the kinds of `refusal`, and Unavailable where it is not as it should be."""
        return self._read(await self._exchange("GET", path, None), path, kind)

    async def post(self, path: str, body: Mapping[str, Any], kind: type[Answer]) -> Answer:
        """The JSON answer to `body`; raises as `get` does."""
        return self._read(await self._exchange("POST", path, body), path, kind)

    async def text(self, path: str, body: Mapping[str, Any] | None = None) -> str:
        """The plain answer to a GET, or to a POST of `body`."""
        return (await self._exchange("GET" if body is None else "POST", path, body)).decode(errors="replace")

    async def stream(self, path: str, body: Mapping[str, Any]) -> AsyncGenerator[list[bytes], None]:
        """The events that arrived together, each as its data; `[DONE]` is told as any other.

        Closing the generator early closes the connection, by which the server knows to stop.
        """
        limits = aiohttp.ClientTimeout(total=self._left(None), sock_connect=CONNECT_S, sock_read=SILENCE_S)
        try:
            async with self._session.post(
                self.url + path, data=msgspec.json.encode(body), headers=self._headers, timeout=limits
            ) as answer:
                if answer.status != 200:
                    raise refusal(answer.status, await answer.read(), self.url)
                left = b""
                async for chunk in answer.content.iter_any():
                    *lines, left = (left + chunk).split(b"\n")
                    if events := [line[len(DATA) :].strip() for line in lines if line.startswith(DATA)]:
                        yield events
        except aiohttp.ClientError as error:
            raise self._gone(error) from error
        except TimeoutError as error:
            raise self._late() from error

    async def _exchange(self, verb: str, path: str, body: Mapping[str, Any] | None) -> bytes:
        limits = aiohttp.ClientTimeout(total=self._left(CONTROL_S), sock_connect=CONNECT_S)
        data = None if body is None else msgspec.json.encode(body)
        try:
            async with self._session.request(
                verb, self.url + path, data=data, headers=self._headers, timeout=limits
            ) as answer:
                told = await answer.read()
        except aiohttp.ClientError as error:
            raise self._gone(error) from error
        except TimeoutError as error:
            raise self._late() from error
        if answer.status != 200:
            raise refusal(answer.status, told, self.url)
        return told

    def _read(self, told: bytes, path: str, kind: type[Answer]) -> Answer:
        try:
            return msgspec.json.decode(told, type=kind)
        except msgspec.DecodeError as error:
            raise bad_reply(self.url + path, error) from error

    def _gone(self, error: Exception) -> Unavailable:
        self.failed()
        return Unavailable(
            f"the engine at {self.url} does not answer ({type(error).__name__}); is it running?",
            code="engine_lost",
            retry_after_s=RETRY_AFTER_S,
        )

    def _late(self) -> Late:
        """Time is up, which says nothing against the server."""
        return Late(f"the engine at {self.url} was not done in time", code="engine_late")

    def _left(self, most_s: float | None) -> float | None:
        left_s = deadline_s()
        if left_s == float("inf"):
            return most_s
        return left_s if most_s is None else min(left_s, most_s)


def refusal(status: int, body: bytes, url: str) -> CatenaError:
    """What an answer other than 200 means to us. A key that is refused is our fault, not the caller's."""
    message = message_of(body)
    says = f"the engine at {url} answered {status}: {message}"
    match status:
        case 404:
            return Missing(says, code="engine_missing")
        case 401 | 403:
            return Unavailable(f"{says}; check adapters.engine.api_key_env", code="engine_key_refused")
        case 429:
            return Exhausted(says, code="queue_full", retry_after_s=RETRY_AFTER_S)
        case _ if status >= 500:
            return Unavailable(says, code="engine_error", retry_after_s=RETRY_AFTER_S)
    too_long = "context length" in message or "max_total_tokens" in message or "max_model_len" in message
    return Invalid(says, code="context_length_exceeded" if too_long else "engine_refused")


def message_of(body: bytes) -> str:
    """The message of an error in OpenAI's, vLLM's older or TGI's form; the start of the body where it has another."""
    try:
        told = msgspec.json.decode(body)
    except msgspec.DecodeError:
        return body[:MOST_CHARS].decode(errors="replace")
    found = told.get("error", told) if isinstance(told, dict) else told
    if isinstance(found, dict):
        found = found.get("message") or found.get("detail") or found
    return str(found)[:MOST_CHARS]


def bad_reply(where: str, error: Exception) -> Unavailable:
    """What it sent cannot be read."""
    return Unavailable(f"{where} sent what cannot be read: {error}", code="engine_bad_reply")


def cut(url: str) -> Unavailable:
    """A stream ended before its answers did; what came never passes as whole."""
    return Unavailable(f"the engine at {url} broke off in the middle of an answer; ask again", code="engine_lost")
