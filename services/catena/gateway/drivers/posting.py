"""Posts webhooks to the outside: no redirects, no addresses inside, at most a few bytes of the answer."""

import socket
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

import aiohttp
from aiohttp.abc import AbstractResolver, ResolveResult
from aiohttp.resolver import ThreadedResolver

from catena.gateway.core.webhooks import check_url, reachable, refused
from catena.kit.errors import Invalid


class Outward(AbstractResolver):
    """Resolves names, and refuses those that lead inside: what was checked is what is connected to."""

    def __init__(self, networks: Sequence[str]) -> None:
        """Allow public addresses and those in `networks`."""
        self._networks = networks
        self._inner = ThreadedResolver()

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_INET
    ) -> list[ResolveResult]:
        """The addresses. Raises Invalid where one of them is inside."""
        found = await self._inner.resolve(host, port, family)
        if not all(reachable(one["host"], self._networks) for one in found):
            raise refused(host)
        return found

    async def close(self) -> None:
        """Nothing is held."""
        await self._inner.close()


class Posting:
    """Sends one body at a time; no connection is kept, for targets are many and seldom."""

    def __init__(self, session: aiohttp.ClientSession, networks: Sequence[str]) -> None:
        """Use a session made by `open_posting`."""
        self._session = session
        self._networks = networks

    async def __call__(self, url: str, body: bytes, headers: dict[str, str]) -> str:
        """Why the target did not take it; empty: it answered 2xx."""
        try:
            check_url(url, self._networks)
            async with self._session.post(url, data=body, headers=headers, allow_redirects=False) as answer:
                return "" if 200 <= answer.status < 300 else f"status {answer.status}"
        except Invalid as error:
            return error.message
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            return type(error).__name__


@asynccontextmanager
async def open_posting(networks: Sequence[str], timeout_s: float) -> AsyncIterator[Posting]:
    """Ready to post until the block ends; one post takes at most `timeout_s`."""
    connector = aiohttp.TCPConnector(resolver=Outward(networks), use_dns_cache=False, force_close=True)
    timeout = aiohttp.ClientTimeout(total=timeout_s)
    async with aiohttp.ClientSession(
        connector=connector, timeout=timeout, cookie_jar=aiohttp.DummyCookieJar(), trust_env=False
    ) as session:
        yield Posting(session, networks)
