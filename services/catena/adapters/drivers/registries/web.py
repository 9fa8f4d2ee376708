"""Reads from one configured web server: nowhere else, not too much, not for ever.

An index decides what is fetched, and nobody vouches for an index: so every address, also that of a redirect, must be
the registry's own or a host that the configuration allows, over TLS unless that was waived.
"""

import asyncio
import hashlib
import random
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Mapping
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import aiohttp
from yarl import URL

from catena.kit.errors import CatenaError, Denied, Exhausted, Invalid, Late, Missing, Unavailable

CHUNK = 1 << 18
CONNECT_S = 10.0
SILENCE_S = 30.0
SMALL_S = 60.0
"""Longest for a file that is read at once."""
ATTEMPTS = 4
BACKOFF_S = 0.5
REDIRECTS = 3
IDENTITY = {"Accept-Encoding": "identity"}
Result = TypeVar("Result")
Wait = Callable[[float], Awaitable[None]]


@dataclass(frozen=True, slots=True)
class Pace:
    """Chance and waiting between attempts."""

    rng: random.Random
    wait: Wait


class Web:
    """A server, and which of its addresses may be read."""

    def __init__(
        self,
        session: aiohttp.ClientSession,
        root: str,
        *,
        hosts: tuple[str, ...] = (),
        plain_http: bool = False,
        key: str = "",
        pace: Pace,
    ) -> None:
        """Read below `root`, and from `hosts`; `key` is a bearer for the root's own server alone.

        Raises Invalid for a `root` that is no https URL, or plain http where `plain_http` does not allow it.
        """
        self.root = _url(root if root.endswith("/") else f"{root}/")
        self._session = session
        others = [_url(f"{self.root.scheme}://{host}") for host in hosts]
        self._places = {(url.host, url.port) for url in (self.root, *others)}
        self._schemes = {"https", "http"} if plain_http else {"https"}
        self._key = key
        self._pace = pace
        self._check(self.root)

    async def small(self, name: str, most: int, headers: Mapping[str, str] | None = None) -> tuple[bytes | None, str]:
        """A file of at most `most` bytes and its entity tag; None: it is as `headers` know it already."""

        async def once() -> tuple[bytes | None, str]:
            async with asyncio.timeout(SMALL_S), self._get(self._url(name), headers or {}) as answer:
                if answer.status == 304:
                    return None, ""
                parts, size = [], 0
                async for part in answer.content.iter_chunked(CHUNK):
                    parts.append(part)
                    size += len(part)
                    if size > most:
                        raise too_much(str(answer.url), most)
                return b"".join(parts), answer.headers.get("ETag", "")

        return await self._patiently(once)

    async def download(self, name: str, into: Path, *, size: int, sha256: str) -> AsyncGenerator[int, None]:
        """Fetch exactly `size` bytes with that hash into a file, going on where an earlier try broke off; the count.

        Raises Denied (`offer_untrue`) for other bytes; the file is then gone.
        """
        url = self._url(name)
        for attempt in range(ATTEMPTS):
            resumed = _size(into)
            try:
                if resumed < size:
                    async with aclosing(self._append(url, into, size)) as counts:
                        async for done in counts:
                            yield done
            except (aiohttp.ClientError, TimeoutError, Unavailable, Exhausted) as error:
                await self._again(attempt, url, error)
                continue
            if await asyncio.to_thread(_sha256, into) == sha256:
                return
            _clear(into)
            if not resumed:
                break
        raise Denied(f"{url} is not what its index says, SHA-256 {sha256}; publish it again", code="offer_untrue")

    async def _append(self, url: URL, into: Path, size: int) -> AsyncGenerator[int, None]:
        there = _size(into)
        headers = IDENTITY | ({"Range": f"bytes={there}-"} if there else {})
        async with self._get(url, headers) as answer:
            if answer.status != 206 or not answer.headers.get("Content-Range", "").startswith(f"bytes {there}-"):
                _clear(into)
                there = 0
            if answer.status in (206, 416) and not there:
                raise Unavailable(f"{url} has another length than it had", code="registry_cut")
            async for part in answer.content.iter_chunked(CHUNK):
                there += len(part)
                if there > size:
                    _clear(into)
                    raise too_much(str(url), size)
                await asyncio.to_thread(_write, into, part)
                yield there
        if there < size:
            raise Unavailable(f"{url} ended after {there} of {size} bytes", code="registry_cut")

    @asynccontextmanager
    async def _get(self, url: URL, headers: Mapping[str, str]) -> AsyncIterator[aiohttp.ClientResponse]:
        limits = aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_S, sock_read=SILENCE_S)
        for _ in range(REDIRECTS + 1):
            own = {"Authorization": f"Bearer {self._key}"} if self._key and url.origin() == self.root.origin() else {}
            async with self._session.get(
                url, headers={**headers, **own}, allow_redirects=False, timeout=limits
            ) as answer:
                if answer.status in (301, 302, 303, 307, 308):
                    url = self._check(url.join(_url(answer.headers.get("Location", ""))))
                    continue
                if answer.status not in (200, 206, 304, 416):
                    raise refusal(answer.status, url)
                yield answer
                return
        raise Invalid(f"{self.root} redirects over {REDIRECTS} times; name the final address", code="bad_registry")

    def _url(self, name: str) -> URL:
        return self._check(self.root.join(_url(name)))

    def _check(self, url: URL) -> URL:
        if url.scheme not in self._schemes:
            told = f"{url.with_query(None)} cannot be read, only {', '.join(sorted(self._schemes))}"
            raise Denied(f"{told}; use https, or set plain_http where the way there is safe", code="bad_registry")
        if (url.host, url.port) not in self._places or url.user or url.password:
            cure = f"add {url.host}:{url.port} to its `hosts` if you trust that server"
            raise Denied(
                f"{self.root} sends to {url.host}:{url.port}, which is not allowed; {cure}", code="registry_strays"
            )
        return url

    async def _patiently(self, once: Callable[[], Awaitable[Result]]) -> Result:
        attempt = 0
        while True:
            try:
                return await once()
            except (aiohttp.ClientError, TimeoutError, Unavailable, Exhausted) as error:
                await self._again(attempt, self.root, error)
                attempt += 1

    async def _again(self, attempt: int, url: URL, error: Exception) -> None:
        """Wait before the next attempt. Raises when this was the last one."""
        if attempt + 1 < ATTEMPTS:
            await self._pace.wait(BACKOFF_S * 2**attempt * self._pace.rng.uniform(0.5, 1.5))
            return
        if isinstance(error, CatenaError):
            raise error
        if isinstance(error, TimeoutError):
            raise Late(f"{url} was not done in time; is it reachable from here?", code="registry_late") from error
        told = f"{url} does not answer: {error or type(error).__name__}; is it running, and is its address right?"
        raise Unavailable(told, code="registry_down") from error


def refusal(status: int, url: URL) -> CatenaError:
    """What an answer without a body for us means."""
    where = url.with_query(None)
    if status in (401, 403):
        return Denied(f"{where} answered {status}; check the registry's api_key_env", code="registry_denied")
    if status in (404, 410):
        return Missing(f"{where} answered {status}; publish to it, or correct its address", code="registry_missing")
    if status in (408, 429) or status >= 500:
        return Unavailable(f"{where} answered {status}", code="registry_down")
    return Invalid(f"{where} answered {status}, which no registry does; correct its address", code="bad_registry")


def too_much(where: str, most: int) -> Denied:
    """Longer than announced, or than any index may be."""
    return Denied(f"{where} has over {most} bytes; it was read no further", code="registry_too_large")


def _url(text: str) -> URL:
    try:
        return URL(text)
    except ValueError as error:
        raise Invalid(f"{text[:200]!r} is no address: {error}; correct it", code="bad_registry") from error


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def _clear(path: Path) -> None:
    path.unlink(missing_ok=True)


def _write(path: Path, part: bytes) -> None:
    with path.open("ab") as file:
        file.write(part)


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
