"""What stands around every route: browsers' origins, methods, limits, and what is never logged."""

from pathlib import Path
from typing import Any

import aiohttp
import pytest

from tests.contract.gateway.rooms import Behind, gateway_with_rooms

pytestmark = pytest.mark.contract
ORIGIN = "https://app.example"
PREFLIGHT = {
    "Origin": ORIGIN,
    "Access-Control-Request-Method": "POST",
    "Access-Control-Request-Headers": "authorization",
}
SECRET_WORDS = "the-prompt-that-nobody-reads"


async def chat(behind: Behind, key: str = "", **change: Any) -> tuple[int, Any]:
    body = {"model": "base", "messages": [{"role": "user", "content": SECRET_WORDS}], **change}
    headers = {"Authorization": f"Bearer {key or behind.key}", "Origin": ORIGIN}
    async with (
        aiohttp.ClientSession(behind.url, headers=headers) as http,
        http.post("/v1/chat/completions", json=body) as answer,
    ):
        return answer.status, dict(answer.headers)


async def preflight(behind: Behind) -> dict[str, str]:
    async with aiohttp.ClientSession(behind.url) as http, http.options("/v1/models", headers=PREFLIGHT) as answer:
        return dict(answer.headers)


async def test_no_browsers_origin_is_let_in_unless_it_is_named(tmp_path: Path) -> None:
    async with gateway_with_rooms(tmp_path / "closed") as behind:
        assert not [name for name in (await chat(behind))[1] if name.lower().startswith("access-control")]
        assert not [name for name in await preflight(behind) if name.lower().startswith("access-control")]
    async with gateway_with_rooms(tmp_path / "open", cors_origins=[ORIGIN]) as behind:
        assert (await chat(behind))[1]["Access-Control-Allow-Origin"] == ORIGIN
        assert (await preflight(behind))["Access-Control-Allow-Origin"] == ORIGIN
    async with gateway_with_rooms(tmp_path / "other", cors_origins=["https://other.example"]) as behind:
        assert "Access-Control-Allow-Origin" not in (await chat(behind))[1]


async def test_neither_key_nor_prompt_reaches_the_log(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    async with gateway_with_rooms(tmp_path) as behind:
        for model in ("base", "cut", "busy", "nothing"):
            for stream in (False, True):
                await chat(behind, model=model, stream=stream)
        await chat(behind, key="ck-a-key-that-is-wrong")
        await chat(behind, temperature=9)
        await chat(behind, messages=[{"role": SECRET_WORDS, "content": "x"}])
        told = "".join(capfd.readouterr())
        assert "room open" in told
        assert behind.key not in told
        assert "ck-a-key-that-is-wrong" not in told
        assert SECRET_WORDS not in told


async def test_a_verb_that_is_not_served_is_told_which_ones_are(tmp_path: Path) -> None:
    async with gateway_with_rooms(tmp_path) as behind, aiohttp.ClientSession(behind.url) as http:
        for path, verbs in (("/v1/keys", {"GET", "HEAD", "POST"}), ("/v1/chat/completions", {"POST"})):
            async with http.delete(path) as answer:
                assert answer.status == 405
                assert set(answer.headers["allow"].split(", ")) == verbs
                assert (await answer.json())["error"]["code"] == "method_not_allowed"


async def test_images_past_the_limits_are_refused_before_any_room_sees_them(tmp_path: Path) -> None:
    async with gateway_with_rooms(tmp_path, max_images=1, max_image_bytes=30) as behind:
        image = {"type": "image_url", "image_url": {"url": "data:image/png;base64," + "A" * 36}}
        for count, status in ((1, 200), (2, 400)):
            parts = [{"type": "text", "text": "look"}, *[image] * count]
            assert (await chat(behind, messages=[{"role": "user", "content": parts}]))[0] == status
        large = {"type": "image_url", "image_url": {"url": "data:image/png;base64," + "A" * 80}}
        assert (await chat(behind, messages=[{"role": "user", "content": [large]}]))[0] == 400
        assert len(behind.executor.asked) == 1
