"""Drafts verified by a server that scores prompts and continues answers as vLLM's does."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import msgspec
import pytest
from aiohttp import web

from catena.executor.core.catalogue import Model
from catena.executor.core.chat import Context, Delta, Sampling, Usage
from catena.executor.drivers.http import Door, open_session
from catena.executor.drivers.openai import OpenAiProvider, VerifyingProvider
from catena.executor.drivers.openai.verifying import read
from catena.kit.clock import SystemClock
from catena.plan.model import Role, Shape
from tests.unit.executor.fakes import Bed, bed, plan, stage

GREEDY = Sampling(temperature=0.0)
PLAN = plan(Shape.SPECULATIVE, stage(Role.DRAFT, "small"), stage(Role.MAIN, "far"))


def tokens(text: str) -> list[str]:
    """Words, each with the space before it."""
    return [word if place == 0 else f" {word}" for place, word in enumerate(text.split(" "))]


@dataclass
class Target:
    """Writes one text, whatever it is asked, and scores any other against it."""

    writes: str
    url: str = ""
    scores: bool = True
    bodies: list[dict[str, Any]] = field(default_factory=list)

    def likeliest(self, begun: str) -> str:
        """What it writes after `begun`; nothing: it ends there."""
        return next(iter(tokens(self.writes)[len(tokens(begun)) if begun else 0 :]), "")

    async def chat(self, request: web.Request) -> web.StreamResponse:
        body = msgspec.json.decode(await request.read())
        self.bodies.append(body)
        begun = body["messages"][-1]["content"] if body.get("continue_final_message") else ""
        if "prompt_logprobs" in body:
            return self.score(begun)
        left = tokens(self.writes)[len(tokens(begun)) if begun else 0 :][: body.get("max_tokens")]
        chunks = [{"choices": [{"index": 0, "delta": {"content": token}}]} for token in left]
        usage = {"prompt_tokens": 10 + len(tokens(begun)), "completion_tokens": len(left)}
        ends = [{"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]}, {"choices": [], "usage": usage}]
        lines = [b"data: " + msgspec.json.encode(one) + b"\n\n" for one in (*chunks, *ends)]
        return web.Response(body=b"".join(lines) + b"data: [DONE]\n\n", content_type="text/event-stream")

    def score(self, begun: str) -> web.Response:
        if not self.scores:
            return web.json_response({"error": {"message": "unknown field prompt_logprobs"}}, status=400)
        places: list[Any] = [None, {"1": {"decoded_token": "<assistant>\n", "rank": 1, "logprob": 0.0}}]
        said = ""
        for token in tokens(begun):
            best = self.likeliest(said) if self.writes.startswith(said) else token
            place = {"1": {"decoded_token": best, "rank": 1, "logprob": -0.1}}
            place["1"]["decoded_token"] = best or "<end>"
            if token != best:
                place["2"] = {"decoded_token": token, "rank": 7, "logprob": -9.0}
            places.append(place)
            said += token
        usage = {"prompt_tokens": 10 + len(tokens(begun)), "completion_tokens": 1}
        more = self.likeliest(said)
        choice = {"index": 0, "message": {"content": more}, "finish_reason": "length" if more else "stop"}
        return web.json_response({"model": "real", "choices": [choice], "usage": usage, "prompt_logprobs": places})


@asynccontextmanager
async def against(writes: str, draft: str) -> AsyncIterator[tuple[Bed, Target]]:
    """A local model that drafts, before a target over HTTP."""
    target, app = Target(writes), web.Application()
    app.add_routes([web.post("/v1/chat/completions", target.chat)])
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        far = Model(
            name="far",
            provider="openai",
            base_url=f"http://127.0.0.1:{runner.addresses[0][1]}/v1",
            price_input=1.0,
            price_output=10.0,
            capabilities=("prompt_logprobs",),
        )
        async with open_session() as session:
            openai = VerifyingProvider(OpenAiProvider(Door(session, secret=lambda name: "", clock=SystemClock())))
            table = bed(small=draft)
            await table.parts.catalogue.put(far)
            table.parts = replace(table.parts, providers={**table.parts.providers, "openai": openai})
            yield table, target
    finally:
        await runner.cleanup()


@pytest.mark.parametrize(
    ("draft", "accepted", "calls"),
    [
        ("the cat sat on the mat", 6, 1),
        ("the cat sat", 3, 2),
        ("the dog sat on the mat", 1, 2),
        ("a cat sat", 0, 2),
        ("the cat sat on the mat again", 6, 2),
        (" the cat sat on the mat\n", 6, 1),
    ],
)
async def test_the_answer_is_the_targets_own_whatever_the_draft(draft: str, accepted: int, calls: int) -> None:
    async with against("the cat sat on the mat", draft) as (table, target):
        finished, events = await table.run(PLAN, sampling=GREEDY, stream=True)
    assert finished.choices[0].text == "the cat sat on the mat"
    assert finished.choices[0].finish_reason == "stop"
    assert "".join(event.text for event in events if isinstance(event, Delta)) == "the cat sat on the mat"
    assert not finished.lossy
    main = finished.stages[-1]
    assert (main.accepted_tokens, main.drafted_tokens) == (accepted, len(tokens(draft.strip())))
    assert len(target.bodies) == calls


async def test_both_passes_are_billed() -> None:
    async with against("the cat sat", "the dog") as (table, _):
        finished, _ = await table.run(PLAN, sampling=GREEDY)
    # Scored: 10 and 2 read, 1 written; then 10 and 1 read, 2 written.
    assert finished.stages[-1].usage == Usage(input_tokens=23, output_tokens=3)
    assert finished.stages[-1].cost_usd == pytest.approx((23 * 1 + 3 * 10) / 1e6)


async def test_a_server_that_does_not_know_the_question_writes_the_answer_itself() -> None:
    async with against("the cat sat", "the cat") as (table, target):
        target.scores = False
        finished, _ = await table.run(PLAN, sampling=GREEDY)
    assert finished.choices[0].text == "the cat sat"
    assert "continue_final_message" not in target.bodies[-1]


@pytest.mark.parametrize("draft", ["the cat sat", "the cat ate", "the", "a"])
async def test_the_answer_ends_at_the_limit_whatever_the_draft(draft: str) -> None:
    async with against("the cat sat on", draft) as (table, _):
        finished, _ = await table.run(PLAN, sampling=Sampling(temperature=0.0, max_tokens=3))
    assert finished.choices[0].text == "the cat sat"


def test_what_stands_of_a_draft_ends_in_no_space() -> None:
    told = [("a", 1), ("\n", 1), ("b", 5)]
    places = [{"1": {"decoded_token": token, "rank": rank}} for token, rank in told]
    reply = msgspec.json.encode({"prompt_logprobs": places, "choices": [{"message": {"content": "c"}}]})
    assert (found := read(reply, "a\nb", 0)) is not None
    assert (found.text, found.accepted, found.finish) == ("a", 1, "")


def test_a_draft_of_more_tokens_than_the_answer_may_have_does_not_stand() -> None:
    places = [{"1": {"decoded_token": token, "rank": 1}} for token in ("a", "b")]
    reply = msgspec.json.encode({"prompt_logprobs": places, "choices": [{"message": {"content": "c"}}]})
    assert (found := read(reply, "ab", 1)) is not None
    assert (found.text, found.finish) == ("", "")
    assert (found := read(reply, "ab", 2)) is not None
    assert (found.text, found.finish) == ("ab", "length")
    assert (found := read(reply, "xb", 0)) is not None
    assert (found.text, found.accepted) == ("", 0)
    assert read(b"{", "ab", 0) is None


async def test_what_is_left_of_the_limit_is_what_the_target_may_still_write() -> None:
    async with against("the cat sat on the mat", "the cat") as (table, target):
        await table.run(PLAN, sampling=Sampling(temperature=0.0, max_tokens=5))
    assert target.bodies[-1]["max_tokens"] == 3


@pytest.mark.parametrize("warm", [Sampling(), Sampling(temperature=0.7), Sampling(temperature=0.0, stop=("x",))])
async def test_only_greedy_answers_are_verified_token_by_token(warm: Sampling) -> None:
    async with against("ACCEPT", "the draft") as (table, target):
        finished, _ = await table.run(PLAN, sampling=warm)
    assert finished.lossy
    assert all("prompt_logprobs" not in body for body in target.bodies)


async def test_a_failed_draft_leaves_the_answer_to_the_target() -> None:
    async with against("the cat", "") as (table, target):
        table.provider.finish["small"] = "length"
        finished, _ = await table.run(PLAN, sampling=GREEDY, context=Context(max_cost_usd=1.0))
    assert finished.choices[0].text == "the cat"
    assert len(target.bodies) == 1
