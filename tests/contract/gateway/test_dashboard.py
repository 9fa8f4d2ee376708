"""The dashboard: its figures as they change, and the page itself in a browser, wide and narrow."""

import asyncio
import json
import os
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import aiohttp
import openai
import pytest
from google.protobuf.message import Message
from prometheus_client.parser import text_string_to_metric_families

from catena.api.events.v1 import events_pb2
from catena.kit.bus import open_bus
from catena.kit.event import Event
from catena.kit.telemetry import open_admin
from catena.kit.testing import eventually
from tests.contract.gateway.browser import CHROMIUM, browser
from tests.contract.gateway.rooms import Behind, gateway_with_rooms

pytestmark = pytest.mark.contract
PANELS = (
    "Requests per model, last 30 s", "Cost saved against the baseline", "Latency by model type, last hour",
    "Success by agent type and hour of day (UTC)", "Adapters by tier of memory", "Training jobs", "Experiments",
)  # fmt: skip
SCREENS = {"wide": (1280, 900, False), "phone": (390, 844, True)}


@pytest.fixture
async def behind(tmp_path: Path) -> AsyncIterator[Behind]:
    async with gateway_with_rooms(tmp_path) as running:
        yield running


async def ask(behind: Behind, model: str, agent: str = "") -> None:
    client = openai.AsyncOpenAI(base_url=f"{behind.url}/v1", api_key=behind.key, max_retries=0)
    async with client:
        await client.chat.completions.create(
            model=model, messages=[{"role": "user", "content": "one two"}], metadata={"agent_type": agent}
        )


async def train(behind: Behind, steps: int = 40) -> None:
    """The events of a job that is under way."""
    job: dict[str, Message] = {
        "trainer.job.started": events_pb2.JobStarted(job_id="j1", adapter="code", base="base", attempt=1)
    }
    async with open_bus(behind.bus, name="test") as bus:
        for type_, message in job.items():
            await bus.publish(event(type_, "started", message))
        for step in range(1, steps + 1):
            told = events_pb2.JobProgressed(job_id="j1", step=step, total_steps=100, loss=3.0 / step + 0.2)
            await bus.publish(event("trainer.job.progressed", f"step-{step}", told))


def event(type_: str, id_: str, message: Message) -> Event:
    return Event(id=id_, type=type_, tenant="default", subject="j1", time_s=1.0, data=message.SerializeToString())


async def next_view(answer: aiohttp.ClientResponse) -> Any:
    async with asyncio.timeout(30):
        async for line in answer.content:
            if line.startswith(b"data: "):
                return json.loads(line[6:])
    raise AssertionError("the stream ended")


async def test_figures_come_at_once_and_again_when_they_change(behind: Behind) -> None:
    headers = {"Authorization": f"Bearer {behind.key}"}
    async with aiohttp.ClientSession(behind.url, headers=headers) as http, http.get("/dashboard/events") as answer:
        assert answer.content_type == "text/event-stream"
        assert (await next_view(answer))["requests"] == 0
        await ask(behind, "base")
        await ask(behind, "base@code")
        view = await next_view(answer)
        while view["requests"] < 2:
            view = await next_view(answer)
    assert set(view["latency_by_type"]) == {"base", "adapter"}
    assert view["experiments"][0]["arms"][1] == {"name": "treatment", "outcomes": 40, "quality": 0.74}


async def test_an_open_page_does_not_hold_up_the_end_of_the_gateway(tmp_path: Path) -> None:
    async with AsyncExitStack() as stack:
        behind = await stack.enter_async_context(gateway_with_rooms(tmp_path, drain_s=60.0))
        headers = {"Authorization": f"Bearer {behind.key}"}
        async with aiohttp.ClientSession(behind.url, headers=headers) as http, http.get("/dashboard/events") as answer:
            await next_view(answer)
            async with asyncio.timeout(30):
                await stack.aclose()
                await answer.content.read()


async def test_figures_need_a_key(behind: Behind) -> None:
    async with aiohttp.ClientSession(behind.url) as http, http.get("/dashboard/events") as answer:
        assert answer.status == 401


async def test_a_training_job_is_drawn_from_its_events(behind: Behind) -> None:
    await train(behind)
    headers = {"Authorization": f"Bearer {behind.key}"}
    async with aiohttp.ClientSession(behind.url, headers=headers) as http:

        async def drawn() -> bool:
            async with http.get("/dashboard/data") as answer:
                jobs = (await answer.json())["jobs"]
            return bool(jobs and jobs[0]["step"] == 40 and len(jobs[0]["curve"]) == 40)

        await eventually(drawn)


async def test_curves_and_news_outlive_the_gateway(tmp_path: Path) -> None:
    for life in range(2):
        async with gateway_with_rooms(tmp_path) as behind:
            if life == 0:
                await train(behind)
                ended = events_pb2.JobFinished(job_id="j1", state="succeeded", model="base@code:1")
                async with open_bus(behind.bus, name="test") as bus:
                    await bus.publish(event("trainer.job.finished", "finished", ended))
            headers = {"Authorization": f"Bearer {behind.key}"}
            async with aiohttp.ClientSession(behind.url, headers=headers) as http:

                async def drawn(http: aiohttp.ClientSession = http) -> bool:
                    async with http.get("/dashboard/data") as answer:
                        view = await answer.json()
                    jobs, news = view["jobs"], [one["what"] for one in view["news"]]
                    told = news == ["trainer.job.finished", "trainer.job.started"]
                    return told and (jobs[0]["state"], len(jobs[0]["curve"])) == ("succeeded", 40)

                await eventually(drawn)


async def test_prometheus_reads_what_the_page_shows(behind: Behind) -> None:
    def told(families: Any, name: str, **labels: str) -> float:
        samples = [one for one in families[name].samples if not one.name.endswith("_created")]
        return sum(one.value for one in samples if labels.items() <= one.labels.items())

    async def read() -> Any:
        async with (
            open_admin(0, dict) as port,
            aiohttp.ClientSession() as http,
            http.get(f"http://127.0.0.1:{port}/metrics") as answer,
        ):
            return {family.name: family for family in text_string_to_metric_families(await answer.text())}

    before = await read()
    await ask(behind, "base@code", "coder")
    await train(behind, 3)
    name, labels = "catena_gateway_requests", {"model_type": "adapter", "agent_type": "other", "outcome": "succeeded"}

    async def counted() -> bool:
        now = await read()
        more = told(now, name, **labels) - (told(before, name, **labels) if name in before else 0)
        return more == 1 and told(now, "catena_gateway_training_loss", base="base") == pytest.approx(1.2)

    await eventually(counted)


needs_chromium = pytest.mark.skipif(CHROMIUM is None, reason="there is no chromium; install it, by apt-get say")


@pytest.mark.browser
@needs_chromium
async def test_an_empty_page_and_one_without_a_key_say_what_to_do(behind: Behind, tmp_path: Path) -> None:
    width, height, mobile = SCREENS["phone"]
    async with browser(tmp_path / "profile") as page:
        await page.open(f"{behind.url}/dashboard#key=wrong", width=width, height=height, mobile=mobile)
        await page.until("document.body?.innerText.includes('that key is not known')")
        assert "keys/development.key" in await page.value("document.body.innerText")
        # Another address of the same page, as a click on a link with a key gives it.
        await page.value(f"location.hash = 'key={behind.key}'")
        await page.until("document.querySelector('.tile b')?.textContent == '0'")
        assert behind.key not in await page.value("location.href")
        assert f"curl {behind.url}/v1/chat/completions" in await page.value("document.querySelector('pre').textContent")
        assert await page.value("document.documentElement.scrollWidth <= innerWidth")


@pytest.mark.browser
@needs_chromium
@pytest.mark.parametrize("screen", SCREENS)
async def test_the_page_shows_every_panel_live_and_fits_its_screen(behind: Behind, tmp_path: Path, screen: str) -> None:
    for model, agent in (("base", "assistant"), ("base@code", "coder"), ("base@code", "coder"), ("pipeline:mod", "")):
        await ask(behind, model, agent)
    await train(behind)
    width, height, mobile = SCREENS[screen]
    async with browser(tmp_path / "profile") as page:
        await page.open(f"{behind.url}/dashboard#key={behind.key}", width=width, height=height, mobile=mobile)
        await page.until("document.querySelectorAll('.card svg polyline').length == 1")
        titles = await page.value("[...document.querySelectorAll('h2')].map(h => h.textContent)")
        assert set(PANELS) <= set(titles)
        assert "The first request" not in titles
        said = await page.value("document.body.innerText")
        assert "Training of base@code began" in said
        assert "treatment: quality 74.0%, 40 judged" in said
        assert behind.key not in await page.value("location.href")
        await ask(behind, "base")
        await page.until("document.querySelector('.tile b').textContent == '5'")
        assert await page.value("document.documentElement.scrollWidth <= innerWidth")
        assert await page.value("[...document.querySelectorAll('section')].every(s => s.scrollWidth <= s.clientWidth)")
        if folder := os.environ.get("CATENA_SCREENSHOTS"):
            await page.screenshot(Path(folder) / f"dashboard-{screen}.png")


@pytest.mark.browser
@pytest.mark.skipif(CHROMIUM is None, reason="there is no chromium; install it, for example by apt-get")
async def test_the_page_asks_for_a_key_and_says_when_one_is_unknown(behind: Behind, tmp_path: Path) -> None:
    async with browser(tmp_path / "profile") as page:
        await page.open(f"{behind.url}/dashboard", width=800, height=600, mobile=False)
        await page.until("!!document.getElementById('key')")
        await page.value("document.getElementById('key').value = 'ck-wrong'; document.forms[0].requestSubmit()")
        await page.until("document.getElementById('state').textContent == 'that key is not known'")
        await page.value(f"document.getElementById('key').value = '{behind.key}'; document.forms[0].requestSubmit()")
        await page.until("document.getElementById('state').textContent.startsWith('live')")
