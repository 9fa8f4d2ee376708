"""From configuration to registries that can be asked."""

import asyncio
import random
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import aiohttp

from catena.adapters.config import RegistryConfig
from catena.adapters.core.refs import STABLE, check_alias
from catena.adapters.core.updates import Remote, Source
from catena.adapters.drivers.registries.hub import HubRegistry
from catena.adapters.drivers.registries.published import FolderRegistry, WebRegistry
from catena.adapters.drivers.registries.web import Pace, Wait, Web
from catena.kit.config import secret
from catena.kit.errors import Invalid


@asynccontextmanager
async def open_sources(
    configured: Sequence[RegistryConfig],
    *,
    folder: Callable[[str], Path],
    rng: random.Random,
    wait: Wait = asyncio.sleep,
) -> AsyncIterator[list[Source]]:
    """The registries, each with a `folder` of its own to fetch into; none is asked yet.

    Raises Invalid for a configuration that cannot mean anything.
    """
    names = [one.name for one in configured]
    if len(set(names)) != len(names):
        raise Invalid(f"adapters.registries names {', '.join(names)}; give each a name of its own", code="bad_config")
    # Nothing of the environment, no cookies, no redirects but those that were checked.
    async with aiohttp.ClientSession(trust_env=False, cookie_jar=aiohttp.DummyCookieJar()) as session:

        def remote(one: RegistryConfig) -> Remote:
            key = secret(one.api_key_env) if one.api_key_env else ""
            if one.hub:
                return HubRegistry(one.hub, endpoint=one.url, key=key, scratch=folder(one.name), most=one.max_bytes)
            if one.folder:
                return FolderRegistry(Path(one.folder), most=one.max_bytes, signed_by=one.signed_by)
            web = Web(
                session, one.url, hosts=tuple(one.hosts), plain_http=one.plain_http, key=key, pace=Pace(rng, wait)
            )
            return WebRegistry(web, scratch=folder(one.name), most=one.max_bytes, signed_by=one.signed_by)

        yield [
            Source(
                name=one.name,
                tenant=one.tenant,
                remote=remote(checked(one)),
                policy=one.policy,
                alias=one.alias,
                every_s=one.every_s,
            )
            for one in configured
        ]


def checked(one: RegistryConfig) -> RegistryConfig:
    """The configuration itself. Raises Invalid where it contradicts itself."""
    where = f"adapters.registries {one.name!r}"
    if bool(one.folder) == bool(one.url or one.hub):
        raise Invalid(f"{where} should have a folder, a url or a hub, one of them", code="bad_config")
    if one.hub and one.signed_by:
        raise Invalid(f"{where}: a hub has no index to be signed_by; leave that out", code="bad_config")
    if check_alias(one.alias) == STABLE:
        raise Invalid(f"{where}: alias {STABLE} is for a canary to move; name another", code="bad_config")
    return one
