"""Encoders at Hugging Face, by its own client, against an endpoint that speaks its published format."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import msgspec
import pytest
from aiohttp import web
from huggingface_hub import constants

from catena.executor.core.catalogue import Model
from catena.executor.drivers.http import open_session
from catena.kit.errors import CatenaError, Exhausted, Invalid, Late, Unavailable
from tests.contract.executor.test_providers import providers


@asynccontextmanager
async def endpoint(*answers: Any) -> AsyncIterator[tuple[Any, str, list[tuple[Any, str]]]]:
    """An endpoint for encoders with `answers` in order, a number for a status; what it was asked, with which key."""
    asked: list[tuple[Any, str]] = []
    left = list(answers)

    async def handle(request: web.Request) -> web.Response:
        asked.append((msgspec.json.decode(await request.read()), request.headers.get("Authorization", "")))
        told = left.pop(0) if len(left) > 1 else left[0]
        if isinstance(told, int):
            return web.json_response({"error": "not now"}, status=told, headers={"Retry-After": "3"})
        return web.json_response(told)

    app = web.Application()
    app.add_routes([web.post("/", handle)])
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        async with open_session() as session:
            yield providers(session)["huggingface"], f"http://127.0.0.1:{runner.addresses[0][1]}/", asked
    finally:
        await runner.cleanup()


def encoder(url: str, kind: Any, **more: Any) -> Model:
    return Model(name="far", provider="huggingface", type=kind, base_url=url, **{"api_key_env": "KEY", **more})


@pytest.fixture(autouse=True)
def online(monkeypatch: pytest.MonkeyPatch) -> None:
    """The library may ask servers, whatever the environment says; here they are all on loopback."""
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)


async def test_a_library_that_was_told_to_stay_offline_says_how_to_let_it_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    async with endpoint([[0.5]]) as (provider, url, asked):
        with pytest.raises(Unavailable, match="HF_HUB_OFFLINE") as caught:
            await provider.embed(encoder(url, "embedding"), ["a"], 5.0)
    assert (caught.value.code, asked) == ("provider_offline", [])


async def test_hugging_face_embeds_all_texts_in_one_call() -> None:
    async with endpoint([[0.5, 1.5], [2.5, 3.5]]) as (provider, url, asked):
        found = await provider.embed(encoder(url, "embedding"), ["a", "b"], 5.0, truncate=True)
    assert (found.vectors, found.usage) == ([[0.5, 1.5], [2.5, 3.5]], None)
    assert asked == [({"inputs": ["a", "b"], "truncate": True}, "Bearer k-1")]


async def test_vectors_of_tokens_are_no_embedding() -> None:
    async with endpoint([[[0.5], [1.5]]]) as (provider, url, _):
        with pytest.raises(Unavailable, match="is it a sentence embedder") as caught:
            await provider.embed(encoder(url, "embedding"), ["a"], 5.0)
    assert caught.value.code == "bad_reply"


async def test_hugging_face_labels_each_text_and_finds_spans_in_the_form_of_local_models() -> None:
    labels = [[{"label": "sad", "score": 0.25}, {"label": "glad", "score": 0.75}]]
    async with endpoint(labels) as (provider, url, asked):
        told = await provider.predict(encoder(url, "classification"), ["x", "y"], {}, 5.0)
    assert told.values == [{"label": "glad", "scores": {"glad": 0.75, "sad": 0.25}}] * 2
    assert sorted(body["inputs"] for body, _ in asked) == ["x", "y"]
    spans = [{"entity_group": "PER", "score": 0.9, "word": "Ada", "start": 0, "end": 3}]
    async with endpoint(spans) as (provider, url, _):
        told = await provider.predict(encoder(url, "token-classification"), ["Ada sat"], {}, 5.0)
    assert told.values == [[{"label": "PER", "score": 0.9, "start": 0, "end": 3, "text": "Ada"}]]


async def test_a_model_without_a_key_never_shows_its_users_own() -> None:
    async with endpoint([[0.5]]) as (provider, url, asked):
        await provider.embed(encoder(url, "embedding", api_key_env=""), ["a"], 5.0)
    assert asked[0][1] == "Bearer none"


@pytest.mark.parametrize(
    ("status", "kind", "code"),
    [
        (429, Exhausted, "provider_busy"),
        (503, Unavailable, "provider_error"),
        (401, Unavailable, "provider_key_refused"),
        (400, Invalid, "provider_refused"),
    ],
)
async def test_the_librarys_errors_become_ours(status: int, kind: type[CatenaError], code: str) -> None:
    async with endpoint(status) as (provider, url, _):
        with pytest.raises(kind) as caught:
            await provider.embed(encoder(url, "embedding"), ["a"], 5.0)
        assert (caught.value.code, caught.value.retry_after_s) == (code, 3.0 if status in (429, 503) else 0.0)
        with pytest.raises(kind):
            await provider.predict(encoder(url, "classification"), ["a", "b"], {}, 5.0)


async def test_an_endpoint_that_is_not_there_or_says_nothing_of_use_is_told_apart() -> None:
    async with endpoint("nonsense") as (provider, url, _):
        with pytest.raises(Unavailable) as caught:
            await provider.embed(encoder(url, "embedding"), ["a"], 5.0)
        assert caught.value.code == "bad_reply"
        with pytest.raises(Unavailable) as gone:
            await provider.embed(encoder("http://127.0.0.1:9/", "embedding"), ["a"], 5.0)
        assert gone.value.code == "provider_gone"
        with pytest.raises(Late):
            await provider.embed(encoder(url, "embedding"), ["a"], 0.0001)
