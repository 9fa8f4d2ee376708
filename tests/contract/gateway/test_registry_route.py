"""A published folder behind the gateway, and another installation that reads it."""

import asyncio
import random
from collections.abc import AsyncIterator
from pathlib import Path

import aiohttp
import pytest

from catena.adapters.core.updates import Transfer
from catena.adapters.drivers.registries.published import WebRegistry
from catena.adapters.drivers.registries.web import Pace, Web
from catena.artifacts import index, manifest
from catena.kit.errors import Denied, Missing
from tests.contract.gateway.rooms import Behind, gateway_with_rooms


def published(folder: Path) -> index.Index:
    made = folder.parent / "made"
    made.mkdir()
    (made / "adapter_config.json").write_text("{}")
    (made / "adapter_model.safetensors").write_bytes(bytes(1000))
    card = {"name": "code", "version": "2", "base_name": "base", "base_digest": "b" * 64, "rank": 8, "alpha": 16}
    manifest.seal(made, manifest.Manifest(**card, target_modules=("q_proj",), metrics={"accuracy": 0.9}))
    return index.publish([made], folder)


@pytest.fixture
async def behind(tmp_path: Path) -> AsyncIterator[Behind]:
    published(tmp_path / "shelf")
    (tmp_path / "secret").write_text("nobody's business")
    async with gateway_with_rooms(tmp_path / "home", registry=str(tmp_path / "shelf")) as running:
        yield running


async def got(behind: Behind, name: str, key: str = "", **headers: str) -> tuple[int, bytes, str]:
    headers["Authorization"] = f"Bearer {key or behind.key}"
    async with (
        aiohttp.ClientSession() as http,
        http.get(f"{behind.url}/v1/registry/{name}", headers=headers) as answer,
    ):
        return answer.status, await answer.read(), answer.headers.get("ETag", "")


async def user_key(behind: Behind) -> str:
    headers = {"Authorization": f"Bearer {behind.key}"}
    async with (
        aiohttp.ClientSession(headers=headers) as http,
        http.post(f"{behind.url}/v1/keys", json={"tenant": "default"}) as answer,
    ):
        return str((await answer.json())["key"])


async def test_an_index_is_read_once_and_an_archive_in_parts(behind: Behind) -> None:
    status, raw, tag = await got(behind, "index.json")
    (entry,) = index.decode(raw).adapters

    assert status == 200
    assert (await got(behind, "index.json", **{"If-None-Match": tag}))[:2] == (304, b"")
    whole = (await got(behind, entry.url))[1]
    assert await got(behind, entry.url, Range="bytes=100-") == (206, whole[100:], (await got(behind, entry.url))[2])


@pytest.mark.parametrize("name", ["none.tar", "%2e%2e%2fsecret", "..%2fsecret"])
async def test_nothing_but_what_was_published_is_read(behind: Behind, name: str) -> None:
    status, raw, _ = await got(behind, name)

    assert (status, b"nobody" in raw) == (404, False)


async def test_only_administrators_read_it(behind: Behind) -> None:
    assert (await got(behind, "index.json", await user_key(behind)))[0] == 403
    assert (await got(behind, "index.json", "nobody"))[0] == 401


async def test_another_installation_looks_for_updates_in_it(behind: Behind, tmp_path: Path) -> None:
    pace = Pace(random.Random(1), asyncio.sleep)
    async with aiohttp.ClientSession() as session:

        def registry(key: str, url: str = f"{behind.url}/v1/registry") -> WebRegistry:
            web = Web(session, url, plain_http=True, key=key, pace=pace)
            return WebRegistry(web, scratch=tmp_path, most=1 << 20, signed_by="")

        (offer,) = await registry(behind.key).offers()
        told = [step async for step in registry(behind.key).fetch(offer)]
        with pytest.raises(Denied, match="api_key_env"):
            await registry("").offers()
        with pytest.raises(Missing):
            await registry(behind.key, behind.url).offers()

    assert (offer.name, offer.version, offer.metrics) == ("code", "2", {"accuracy": 0.9})
    assert isinstance(told[-2], Transfer) and isinstance(told[-1], bytes)
    assert len(told[-1]) == offer.bytes


async def test_without_a_published_folder_the_answer_says_how_to_have_one(tmp_path: Path) -> None:
    async with gateway_with_rooms(tmp_path) as behind:
        status, raw, _ = await got(behind, "index.json")

    assert status == 404
    assert b"catena adapters publish" in raw
