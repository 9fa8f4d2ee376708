"""The provider `openai` against a real server: what comes through, what is made of its faults, what is retried."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any

import pytest

from catena.executor.core.catalogue import Model
from catena.executor.core.chat import ChatRequest, Delta, Image, Message, Sampling, Tool, ToolCall, Usage, gather
from catena.executor.core.ports import Ask, Ended
from catena.executor.drivers.http import Door, open_session
from catena.executor.drivers.openai import OpenAiProvider
from catena.executor.drivers.openai.body import chat_body
from catena.kit.clock import SystemClock
from catena.kit.errors import CatenaError, Exhausted, Invalid, Late, Unavailable
from tests.contract.executor.dialects import sse
from tests.contract.executor.upstream import Upstream, upstream


@asynccontextmanager
async def provider(*script: str, pace_s: float = 0.0) -> AsyncIterator[tuple[OpenAiProvider, Model, Upstream]]:
    async with upstream(*script) as server, open_session() as session:
        model = Model(
            name="far",
            provider="openai",
            base_url=f"{server.url}/v1",
            upstream_name="real",
            api_key_env="KEY",
            price_output=1e6,
        )
        door = Door(session, secret=lambda name: {"KEY": "k-1"}.get(name, ""), clock=SystemClock(), pace_s=pace_s)
        yield OpenAiProvider(door), model, server


async def heard(
    provider: OpenAiProvider, model: Model, request: ChatRequest | None = None, timeout_s: float = 5.0
) -> tuple[list[Delta], Ended | None]:
    asked = request or ChatRequest(messages=(Message(role="user", content="hi"),))
    deltas: list[Delta] = []
    ended = None
    async for piece in provider.generate(Ask(model=model, request=asked, timeout_s=timeout_s)):
        deltas += piece.deltas
        ended = piece.ended or ended
    return deltas, ended


@pytest.mark.parametrize("how", ["well", "no done"])
async def test_a_stream_comes_through_with_usage_verbatim(how: str) -> None:
    async with provider(how) as (far, model, server):
        deltas, ended = await heard(far, model)
    assert gather(deltas)[0].text == "Hello from afar"
    assert ended is not None
    assert ended.usage is not None
    assert (ended.usage.input_tokens, ended.usage.output_tokens) == (100, 7)
    assert (ended.usage.cached_input_tokens, ended.usage.reasoning_tokens) == (64, 3)
    assert ended.resolved_model == "real-name"
    assert ended.confidence == pytest.approx(0.6065, abs=1e-3)
    assert server.keys == ["Bearer k-1"]
    assert server.bodies[0]["model"] == "real"
    assert server.bodies[0]["stream_options"] == {"include_usage": True}


async def test_a_server_that_does_not_stream_is_understood() -> None:
    async with provider("whole") as (far, model, _):
        deltas, ended = await heard(far, model)
    assert gather(deltas)[0].text == "Hello from afar"
    assert ended is not None
    assert ended.usage is not None


async def test_tool_calls_keep_their_indices_ids_and_arguments() -> None:
    tool = Tool(name="f", parameters={"type": "object"})
    asked = ChatRequest(messages=(Message(role="user", content="hi"),), tools=(tool,), tool_choice="f")
    async with provider("tools") as (far, model, server):
        deltas, _ = await heard(far, model, asked)
    choice = gather(deltas)[0]
    assert choice.finish_reason == "tool_calls"
    assert choice.message.tool_calls == (
        ToolCall(id="call_a", name="f", arguments='{"x":1}', index=0),
        ToolCall(id="call_b", name="g", arguments="{}", index=1),
    )
    assert server.bodies[0]["tool_choice"] == {"type": "function", "function": {"name": "f"}}


async def test_requests_say_all_that_was_asked() -> None:
    turns = (
        Message(role="user", content="look", images=(Image(url="data:image/png;base64,AA==", detail="low"),)),
        Message(role="assistant", tool_calls=(ToolCall(id="c", name="f", arguments="{}"),)),
        Message(role="tool", content="42", tool_call_id="c"),
    )
    sampling = Sampling(
        **{"max_tokens": 5, "temperature": 0.0, "seed": 1, "stop": ("x",), "logprobs": True, "top_logprobs": 2, "n": 2},
        **{"top_k": 7, "min_p": 0.1, "repetition_penalty": 1.2, "logit_bias": ((50256, -100.0),)},
    )
    asked = ChatRequest(messages=turns, sampling=sampling, json_schema={"type": "string"})
    async with provider("well") as (far, model, server):
        await heard(far, model, asked)
    body = server.bodies[0]
    assert body["messages"][0]["content"][1]["image_url"] == {"url": "data:image/png;base64,AA==", "detail": "low"}
    assert body["messages"][1]["tool_calls"][0]["function"] == {"name": "f", "arguments": "{}"}
    assert body["messages"][2]["tool_call_id"] == "c"
    assert body["response_format"]["json_schema"]["schema"] == {"type": "string"}
    assert (body["top_k"], body["min_p"], body["repetition_penalty"]) == (7, 0.1, 1.2)
    assert body["logit_bias"] == {"50256": -100.0}
    told = {name: body[name] for name in ("max_tokens", "temperature", "seed", "stop", "logprobs", "top_logprobs", "n")}
    assert told == {
        "max_tokens": 5, "temperature": 0.0, "seed": 1, "stop": ["x"], "logprobs": True, "top_logprobs": 2, "n": 2
    }  # fmt: skip


async def test_one_call_at_a_time_is_told_where_there_are_tools() -> None:
    hello = (Message(role="user", content="hi"),)
    async with provider("well", "well", "well") as (far, model, server):
        await heard(far, model, ChatRequest(messages=hello, tools=(Tool(name="f"),), one_call=True))
        await heard(far, model, ChatRequest(messages=hello, tools=(Tool(name="f"),)))
        await heard(far, model, ChatRequest(messages=hello, one_call=True))
    assert [body.get("parallel_tool_calls") for body in server.bodies] == [False, None, None]


async def test_vllms_ways_to_lengthen_an_answer_go_to_servers_that_may_know_them_and_never_to_openai() -> None:
    hello = (Message(role="user", content="hi"),)
    asked = ChatRequest(messages=hello, sampling=Sampling(ignore_eos=True, min_tokens=3))
    async with provider("well") as (far, model, server):
        await heard(far, model, asked)
        with pytest.raises(Invalid, match="far ends its answers itself; ask it without") as caught:
            await heard(far, replace(model, base_url=""), asked)
    assert [(body["ignore_eos"], body["min_tokens"]) for body in server.bodies] == [(True, 3)]
    assert caught.value.code == "sampling_unsupported"


@pytest.mark.parametrize(
    ("asked", "sent"),
    [
        ({}, {}),
        ({"json_schema": {"type": "object"}}, {"response_format": {"type": "json_object"}}),
        ({"regex": "[ab]+"}, {"structured_outputs": {"regex": "[ab]+"}}),
        ({"choices": ("yes", "no")}, {"structured_outputs": {"choice": ["yes", "no"]}}),
    ],
    ids=["nothing", "any object", "regex", "choices"],
)
async def test_constraints_go_out_in_the_words_of_openai_or_vllm(asked: dict[str, Any], sent: dict[str, Any]) -> None:
    async with provider("well") as (far, model, server):
        await heard(far, model, ChatRequest(messages=(Message(role="user", content="hi"),), **asked))
    body = server.bodies[0]
    assert {name: body[name] for name in ("response_format", "structured_outputs") if name in body} == sent
    assert not {"ignore_eos", "min_tokens", "top_k", "min_p", "repetition_penalty", "logit_bias"} & body.keys()


@pytest.mark.parametrize(
    ("how", "kind", "code"),
    [
        ("busy", Exhausted, "provider_busy"),
        ("broken", Unavailable, "provider_error"),
        ("reset", Unavailable, "provider_gone"),
        ("silent", Late, "provider_timeout"),
        ("stall", Late, "provider_timeout"),
        ("cut", Unavailable, "stream_cut"),
        ("garbage", Unavailable, "bad_reply"),
        ("error inside", Unavailable, "provider_error"),
        ("too long", Invalid, "context_length_exceeded"),
        ("filtered", Invalid, "content_filter"),
        ("bad key", Unavailable, "provider_key_refused"),
    ],
)
async def test_faults_become_error_kinds(how: str, kind: type[CatenaError], code: str) -> None:
    async with provider(how) as (far, model, _):
        with pytest.raises(kind) as caught:
            await heard(far, model, timeout_s=0.3)
    assert caught.value.code == code


async def test_after_its_first_words_a_stream_is_read_in_gulps() -> None:
    words = [f" {number}" for number in range(60)]
    async with provider("well", pace_s=0.05) as (far, model, server):
        server.between_s = 0.002
        server.frames = [
            *(sse({"choices": [{"delta": {"content": word}}]}) for word in words),
            sse({"choices": [{"delta": {}, "finish_reason": "stop"}]}),
        ]
        asked = ChatRequest(messages=(Message(role="user", content="hi"),))
        pieces = [piece async for piece in far.generate(Ask(model=model, request=asked, timeout_s=30.0))]
    assert pieces[0].deltas[0].text == " 0"
    assert "".join(delta.text for piece in pieces for delta in piece.deltas) == "".join(words)
    assert pieces[-1].ended is not None
    assert len(pieces) < 30


async def test_a_stream_without_finish_reason_has_no_end() -> None:
    async with provider("ended early") as (far, model, _):
        _, ended = await heard(far, model)
    assert ended is None


async def test_leaving_a_stream_closes_the_connection() -> None:
    async with provider("stall") as (far, model, server):
        request = ChatRequest(messages=(Message(role="user", content="hi"),))
        pieces: Any = far.generate(Ask(model=model, request=request, timeout_s=5.0))
        await anext(pieces)
        await pieces.aclose()
        await asyncio.wait_for(server.left.wait(), 30)


async def test_embeddings_come_in_the_order_of_the_texts() -> None:
    async with provider() as (far, model, _):
        found = await far.embed(model, ["a", "abc"], 5.0)
    assert [row[0] for row in found.vectors] == [1.0, 3.0]
    assert found.usage.input_tokens == 5


async def test_a_missing_key_is_named() -> None:
    async with provider() as (far, model, _):
        with pytest.raises(Unavailable, match="NO_SUCH_KEY is not set"):
            await heard(far, replace(model, api_key_env="NO_SUCH_KEY"))


@pytest.mark.parametrize(
    ("usage_with_choices", "after_finish"), [(True, False), (False, True)], ids=["with the finish", "after it"]
)
async def test_usage_is_taken_wherever_the_server_puts_it(usage_with_choices: bool, after_finish: bool) -> None:
    usage = {"prompt_tokens": 9, "completion_tokens": 2}
    end: dict[str, Any] = {"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]}
    last: dict[str, Any] = {"choices": [{"index": 0, "delta": {"content": ""}}], "usage": usage}
    frames = [sse(end | {"usage": usage})] if usage_with_choices else [sse(end), sse(last)]
    async with provider("well") as (far, model, server):
        server.dialect = replace(server.dialect, ending=lambda counts: frames)
        deltas, ended = await heard(far, model)
    assert gather(deltas)[0].text == "Hello from afar"
    assert ended is not None
    assert ended.usage == Usage(input_tokens=9, output_tokens=2)


async def test_usage_that_counts_up_through_the_stream_is_its_last_count() -> None:
    def words(texts: Any, _: Any) -> list[bytes]:
        return [
            sse(
                {
                    "choices": [{"index": 0, "delta": {"content": text}}],
                    "usage": {"prompt_tokens": 9, "completion_tokens": place},
                }
            )
            for place, text in enumerate(texts, 1)
        ]

    async with provider("no usage") as (far, model, server):
        server.dialect = replace(server.dialect, words=words)
        _, ended = await heard(far, model)
    assert ended is not None
    assert ended.usage == Usage(input_tokens=9, output_tokens=3)


async def test_what_comes_after_an_answers_end_is_no_part_of_it() -> None:
    late = sse({"choices": [{"index": 0, "delta": {"content": " afar"}}]})
    async with provider("well") as (far, model, server):
        ending = server.dialect.ending
        server.dialect = replace(server.dialect, ending=lambda counts: [*ending(counts), late, *ending(counts)])
        deltas, _ = await heard(far, model)
    assert gather(deltas)[0].text == "Hello from afar"
    assert [delta.finish_reason for delta in deltas if delta.finish_reason] == ["stop"]


@pytest.mark.parametrize(
    ("base_url", "prompt", "name"),
    [
        ("", "", "max_completion_tokens"),
        ("https://api.openai.com/v1", "", "max_completion_tokens"),
        ("https://api.openai.com/v1", "once", "max_tokens"),
        ("https://api.openai.com.example.org/v1", "", "max_tokens"),
    ],
)
def test_openais_own_service_is_told_the_limit_by_its_new_name(base_url: str, prompt: str, name: str) -> None:
    turns = () if prompt else (Message(role="user", content="hi"),)
    asked = ChatRequest(messages=turns, prompt=prompt, sampling=Sampling(max_tokens=5))
    model = Model(name="far", provider="openai", base_url=base_url)
    body = chat_body(Ask(model=model, request=asked, timeout_s=1.0), stream=True)
    assert {key: value for key, value in body.items() if key.startswith("max_")} == {name: 5}
