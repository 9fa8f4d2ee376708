"""What each provider sends and reads beyond a plain answer, against servers that speak its published format."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any

import pytest

from catena.executor.app import outside_providers
from catena.executor.core.catalogue import Model
from catena.executor.core.chat import (
    ChatRequest,
    Choice,
    Delta,
    Image,
    Message,
    Sampling,
    Tool,
    ToolCall,
    Usage,
    gather,
)
from catena.executor.core.ports import Ask, Ended, Vectors
from catena.executor.drivers.gemini.body import SIGNED
from catena.executor.drivers.http import Door, open_session
from catena.kit.clock import SystemClock
from catena.kit.errors import CatenaError, Exhausted, Invalid, Unavailable
from tests.contract.executor.dialects import ANTHROPIC, GEMINI, OPENAI, TGI, Dialect, sse
from tests.contract.executor.upstream import Upstream, upstream

PNG = "data:image/png;base64,iVBORw0KGgo="
SCHEMA = {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]}
CONVERSATION = (
    Message(role="system", content="Be brief."),
    Message(role="user", content="what is this?", images=(Image(url=PNG), Image(url="https://example.org/a.png"))),
    Message(
        role="assistant",
        content="Let me look.",
        tool_calls=(ToolCall(id="c1", name="look", arguments='{"at": 1}'), ToolCall(id="c2", name="stop", index=1)),
    ),
    Message(role="tool", content="a cat", tool_call_id="c1"),
    Message(role="tool", content='{"ok": true}', tool_call_id="c2"),
    Message(role="user", content="so?"),
)
TOOLS = (Tool(name="look", description="looks", parameters={"type": "object"}), Tool(name="stop"))
SAMPLING = Sampling(max_tokens=9, temperature=0.5, top_p=0.9, top_k=4, stop=("END",))


@asynccontextmanager
async def asking(dialect: Dialect, *script: str, **more: Any) -> AsyncIterator[tuple[Any, Model, Upstream]]:
    async with upstream(*script, dialect=dialect) as server, open_session() as session:
        name = more.pop("provider", dialect.provider)
        fields = {"base_url": f"{server.url}{dialect.root}", "upstream_name": "real", "api_key_env": "KEY", **more}
        yield providers(session)[name], Model(name="far", provider=name, **fields), server


def providers(session: Any) -> dict[str, Any]:
    door = Door(session, secret=lambda name: {"KEY": "k-1"}.get(name, ""), clock=SystemClock())
    return dict(outside_providers(door, SystemClock()))


async def answer(provider: Any, model: Model, request: ChatRequest) -> tuple[Choice, Ended | None, list[Delta]]:
    deltas: list[Delta] = []
    ended = None
    async for piece in provider.generate(Ask(model=model, request=request, timeout_s=5.0)):
        deltas += piece.deltas
        ended = piece.ended or ended
    return gather(deltas)[0], ended, deltas


async def sent(dialect: Dialect, request: ChatRequest, **more: Any) -> dict[str, Any]:
    """The body that the provider made of a request."""
    async with asking(dialect, "well", **more) as (provider, model, server):
        await answer(provider, model, request)
    return server.bodies[0]


async def test_anthropic_is_told_the_whole_conversation_in_its_own_blocks() -> None:
    body = await sent(ANTHROPIC, ChatRequest(messages=CONVERSATION, tools=TOOLS, tool_choice="look", sampling=SAMPLING))
    assert body == {
        "model": "real",
        "system": "Be brief.",
        "messages": [
            {
                "role": "user",
                "content": [
                    {
                        "type": "image",
                        "source": {"type": "base64", "media_type": "image/png", "data": "iVBORw0KGgo="},
                    },
                    {"type": "image", "source": {"type": "url", "url": "https://example.org/a.png"}},
                    {"type": "text", "text": "what is this?"},
                ],
            },
            {
                "role": "assistant",
                "content": [
                    {"type": "text", "text": "Let me look."},
                    {"type": "tool_use", "id": "c1", "name": "look", "input": {"at": 1}},
                    {"type": "tool_use", "id": "c2", "name": "stop", "input": {}},
                ],
            },
            {
                "role": "user",
                "content": [
                    {"type": "tool_result", "tool_use_id": "c1", "content": "a cat"},
                    {"type": "tool_result", "tool_use_id": "c2", "content": '{"ok": true}'},
                    {"type": "text", "text": "so?"},
                ],
            },
        ],
        "tools": [
            {"name": "look", "description": "looks", "input_schema": {"type": "object"}},
            {"name": "stop", "description": "", "input_schema": {"type": "object"}},
        ],
        "tool_choice": {"type": "tool", "name": "look"},
        "max_tokens": 9,
        "temperature": 0.5,
        "top_p": 0.9,
        "top_k": 4,
        "stop_sequences": ["END"],
        "stream": True,
    }


@pytest.mark.parametrize(
    ("choice", "told"),
    [
        ("", {"type": "auto", "disable_parallel_tool_use": True}),
        ("required", {"type": "any", "disable_parallel_tool_use": True}),
        ("look", {"type": "tool", "name": "look", "disable_parallel_tool_use": True}),
        ("none", {"type": "none"}),
    ],
)
async def test_anthropic_is_told_to_ask_for_one_tool_at_a_time(choice: str, told: dict[str, Any]) -> None:
    request = ChatRequest(messages=CONVERSATION[:2], tools=TOOLS, tool_choice=choice, one_call=True)
    assert (await sent(ANTHROPIC, request))["tool_choice"] == told


async def test_anthropic_is_given_its_version_a_limit_and_a_schema() -> None:
    hello = (Message(role="user", content="hi"),)
    async with asking(ANTHROPIC, "well") as (provider, model, server):
        await answer(provider, model, ChatRequest(messages=hello, json_schema=SCHEMA))
        await answer(provider, model, ChatRequest(messages=hello, json_schema={"type": "object"}))
    assert server.headers[0]["anthropic-version"] == "2023-06-01"
    assert server.bodies[0]["max_tokens"] == 4096
    assert server.bodies[0]["output_config"] == {"format": {"type": "json_schema", "schema": SCHEMA}}
    assert "output_config" not in server.bodies[1]
    assert "JSON object" in server.bodies[1]["system"]


@pytest.mark.parametrize(
    ("reason", "finish"),
    [
        ("end_turn", "stop"),
        ("stop_sequence", "stop"),
        ("max_tokens", "length"),
        ("model_context_window_exceeded", "length"),
        ("refusal", "content_filter"),
        ("something new", "stop"),
    ],
)
async def test_anthropics_reasons_to_stop_become_openais(reason: str, finish: str) -> None:
    end = sse({"type": "message_delta", "delta": {"stop_reason": reason}, "usage": {"output_tokens": 7}})
    async with asking(ANTHROPIC, "well") as (provider, model, server):
        server.frames = [*ANTHROPIC.words(("hi",), {"input": 3, "cached": 0, "output": 7, "reasoning": 0}), end]
        choice, ended, _ = await answer(provider, model, ChatRequest(messages=CONVERSATION[:2]))
    assert choice.finish_reason == finish
    assert ended is not None
    assert ended.usage is not None
    assert (ended.usage.input_tokens, ended.usage.output_tokens) == (3, 7)


async def test_what_anthropic_writes_to_its_cache_was_read_as_well_and_thoughts_are_not_the_answer() -> None:
    usage = {"input_tokens": 10, "cache_creation_input_tokens": 20, "cache_read_input_tokens": 30, "output_tokens": 1}
    start = {"type": "message_start", "message": {"model": "real-name", "usage": usage}}
    thought = {"type": "content_block_start", "index": 0, "content_block": {"type": "thinking", "thinking": ""}}
    thinks = {"type": "content_block_delta", "index": 0, "delta": {"type": "thinking_delta", "thinking": "hm"}}
    said = {"type": "content_block_delta", "index": 1, "delta": {"type": "text_delta", "text": "yes"}}
    end = {"type": "message_delta", "delta": {"stop_reason": "end_turn"}, "usage": {"output_tokens": 5}}
    async with asking(ANTHROPIC, "well") as (provider, model, server):
        server.frames = [sse(event) for event in (start, thought, thinks, said, end)]
        choice, ended, _ = await answer(provider, model, ChatRequest(messages=CONVERSATION[:2]))
    assert choice.text == "yes"
    assert ended is not None
    assert ended.usage is not None
    used = Usage(input_tokens=60, cached_input_tokens=30, cache_write_tokens=20, output_tokens=5)
    assert ended.usage == used


@pytest.mark.parametrize("dialect", [OPENAI, ANTHROPIC, GEMINI], ids=lambda dialect: dialect.provider)
async def test_a_server_that_does_not_stream_is_understood(dialect: Dialect) -> None:
    async with asking(dialect, "whole") as (provider, model, _):
        choice, ended, _ = await answer(provider, model, ChatRequest(messages=CONVERSATION[:2]))
    assert (choice.text, choice.finish_reason) == ("Hello from afar", "stop")
    assert ended is not None
    assert ended.usage is not None
    assert (ended.usage.input_tokens, ended.usage.output_tokens, ended.resolved_model) == (100, 7, "real-name")


@pytest.mark.parametrize("dialect", [ANTHROPIC, GEMINI], ids=lambda dialect: dialect.provider)
@pytest.mark.parametrize(
    "request_",
    [
        ChatRequest(prompt="once"),
        ChatRequest(messages=CONVERSATION[:2], regex="a+"),
        ChatRequest(messages=CONVERSATION[:2], sampling=Sampling(logprobs=True)),
        ChatRequest(messages=CONVERSATION[:2], sampling=Sampling(logit_bias=((1, 2.0),))),
    ],
    ids=["prompt", "regex", "logprobs", "logit_bias"],
)
async def test_what_a_provider_cannot_do_is_refused_before_it_is_asked(dialect: Dialect, request_: ChatRequest) -> None:
    async with asking(dialect, "well") as (provider, model, server):
        with pytest.raises(Invalid, match="far cannot be asked with") as caught:
            await answer(provider, model, request_)
    assert caught.value.code == "sampling_unsupported"
    assert not server.bodies


@pytest.mark.parametrize(
    ("turn", "code"),
    [
        (Message(role="assistant", tool_calls=(ToolCall(id="c", name="f", arguments="{"),)), "bad_tool_call"),
        (Message(role="user", images=(Image(url="data:image/png,plain"),)), "bad_image"),
        (Message(role="user", images=(Image(url="data:image/png;base64,%%%"),)), "bad_image"),
    ],
)
@pytest.mark.parametrize("dialect", [ANTHROPIC, GEMINI], ids=lambda dialect: dialect.provider)
async def test_what_is_malformed_is_refused_with_the_cure(dialect: Dialect, turn: Message, code: str) -> None:
    async with asking(dialect, "well") as (provider, model, _):
        with pytest.raises(Invalid) as caught:
            await answer(provider, model, ChatRequest(messages=(turn,)))
    assert caught.value.code == code


async def test_gemini_is_told_the_whole_conversation_in_its_own_parts() -> None:
    sampling = Sampling(max_tokens=9, temperature=0.5, top_p=0.9, top_k=4, stop=("END",), seed=3, n=2)
    body = await sent(
        GEMINI,
        ChatRequest(messages=CONVERSATION, tools=TOOLS, tool_choice="look", sampling=sampling, json_schema=SCHEMA),
    )
    assert body == {
        "systemInstruction": {"parts": [{"text": "Be brief."}]},
        "contents": [
            {
                "role": "user",
                "parts": [
                    {"inlineData": {"mimeType": "image/png", "data": "iVBORw0KGgo="}},
                    {"fileData": {"fileUri": "https://example.org/a.png"}},
                    {"text": "what is this?"},
                ],
            },
            {
                "role": "model",
                "parts": [
                    {"text": "Let me look."},
                    {"functionCall": {"name": "look", "args": {"at": 1}, "id": "c1"}},
                    {"functionCall": {"name": "stop", "args": {}, "id": "c2"}},
                ],
            },
            {
                "role": "user",
                "parts": [
                    {"functionResponse": {"name": "look", "response": {"result": "a cat"}, "id": "c1"}},
                    {"functionResponse": {"name": "stop", "response": {"ok": True}, "id": "c2"}},
                    {"text": "so?"},
                ],
            },
        ],
        "tools": [
            {
                "functionDeclarations": [
                    {"name": "look", "description": "looks", "parametersJsonSchema": {"type": "object"}},
                    {"name": "stop", "description": ""},
                ]
            }
        ],
        "toolConfig": {"functionCallingConfig": {"mode": "ANY", "allowedFunctionNames": ["look"]}},
        "generationConfig": {
            "temperature": 0.5,
            "topP": 0.9,
            "topK": 4,
            "maxOutputTokens": 9,
            "stopSequences": ["END"],
            "candidateCount": 2,
            "seed": 3,
            "responseMimeType": "application/json",
            "responseJsonSchema": SCHEMA,
        },
    }


async def test_gemini_is_asked_for_a_stream_of_events_and_for_one_of_several_words() -> None:
    async with asking(GEMINI, "well") as (provider, model, server):
        await answer(provider, model, ChatRequest(messages=CONVERSATION[:2], choices=("yes", "no")))
    assert server.paths == ["/v1beta/models/real:streamGenerateContent?alt=sse"]
    config = server.bodies[0]["generationConfig"]
    assert config == {"responseMimeType": "text/x.enum", "responseSchema": {"type": "STRING", "enum": ["yes", "no"]}}


async def test_the_signature_of_a_gemini_call_comes_back_with_it_and_an_id_that_we_made_up_does_not() -> None:
    async with asking(GEMINI, "tools", "well") as (provider, model, server):
        choice, _, _ = await answer(provider, model, ChatRequest(messages=CONVERSATION[:2], tools=TOOLS))
        first, second = choice.message.tool_calls
        results = tuple(Message(role="tool", content="1", tool_call_id=call.id) for call in (first, second))
        asked = ChatRequest(messages=(*CONVERSATION[:2], choice.message, *results), tools=TOOLS)
        await answer(provider, model, asked)
    assert first.id.endswith(f"{SIGNED}c2ln")
    model_turn, tool_turn = server.bodies[1]["contents"][1:]
    assert model_turn["parts"] == [
        {"functionCall": {"name": "f", "args": {"x": 1}}, "thoughtSignature": "c2ln"},
        {"functionCall": {"name": "g", "args": {}}},
    ]
    assert [part["functionResponse"]["name"] for part in tool_turn["parts"]] == ["f", "g"]
    assert all("id" not in part["functionResponse"] for part in tool_turn["parts"])


@pytest.mark.parametrize(
    ("frame", "kind", "code"),
    [
        ({"promptFeedback": {"blockReason": "SAFETY"}}, Invalid, "content_filter"),
        ({"candidates": [{"finishReason": "MALFORMED_FUNCTION_CALL"}]}, Unavailable, "provider_error"),
    ],
)
async def test_gemini_failures_told_in_an_answer_are_errors(
    frame: dict[str, Any], kind: type[CatenaError], code: str
) -> None:
    async with asking(GEMINI, "well") as (provider, model, server):
        server.frames = [sse(frame)]
        with pytest.raises(kind) as caught:
            await answer(provider, model, ChatRequest(messages=CONVERSATION[:2]))
    assert caught.value.code == code


@pytest.mark.parametrize(("reason", "finish"), [("MAX_TOKENS", "length"), ("SAFETY", "content_filter")])
async def test_geminis_reasons_to_stop_become_openais(reason: str, finish: str) -> None:
    async with asking(GEMINI, "well") as (provider, model, server):
        server.frames = [
            sse({"candidates": [{"content": {"parts": [{"text": "hi"}]}, "finishReason": reason}]}),
        ]
        choice, _, _ = await answer(provider, model, ChatRequest(messages=CONVERSATION[:2]))
    assert choice.finish_reason == finish


async def test_several_gemini_candidates_are_whole_only_when_each_has_ended() -> None:
    def chunk(index: int, reason: str = "") -> bytes:
        told = {"content": {"parts": [{"text": "hi"}]}, "index": index}
        return sse({"candidates": [told | ({"finishReason": reason} if reason else {})]})

    async with asking(GEMINI, "well") as (provider, model, server):
        server.frames = [chunk(0), chunk(1), chunk(0, "STOP")]
        _, ended, _ = await answer(provider, model, ChatRequest(messages=CONVERSATION[:2]))
        assert ended is None
        server.frames = [chunk(0), chunk(1), chunk(0, "STOP"), chunk(1, "STOP")]
        _, ended, deltas = await answer(provider, model, ChatRequest(messages=CONVERSATION[:2]))
    assert ended is not None
    assert [choice.text for choice in gather(deltas)] == ["hihi", "hihi"]


async def test_tgi_is_told_of_sampling_only_where_there_is_any() -> None:
    sampling = Sampling(max_tokens=9, temperature=0.0, top_p=1.0, seed=3, stop=("END",))
    body = await sent(TGI, ChatRequest(prompt="once", sampling=sampling, choices=("a.b", "c")))
    assert body == {
        "inputs": "once",
        "parameters": {
            "details": True,
            "return_full_text": False,
            "do_sample": False,
            "max_new_tokens": 9,
            "seed": 3,
            "stop": ["END"],
            "grammar": {"type": "regex", "value": r"(a\.b)|(c)"},
        },
    }
    body = await sent(
        TGI, ChatRequest(prompt="once", sampling=Sampling(temperature=0.7, top_p=0.9), json_schema=SCHEMA)
    )
    assert (body["parameters"]["do_sample"], body["parameters"]["temperature"]) == (True, 0.7)
    assert body["parameters"]["grammar"] == {"type": "json", "value": SCHEMA}


async def test_tgi_measures_each_token_and_leaves_its_end_mark_out() -> None:
    asked = ChatRequest(prompt="once", sampling=Sampling(logprobs=True))
    async with asking(TGI, "well") as (provider, model, _):
        choice, ended, _ = await answer(provider, model, asked)
    assert choice.text == "Hello from afar"
    assert [token.token for token in choice.logprobs] == ["Hello", " from", " afar"]
    assert ended is not None
    assert ended.confidence == pytest.approx(0.6065, abs=1e-3)


@pytest.mark.parametrize(
    ("kind", "error"), [("overloaded", Exhausted), ("validation", Invalid), ("incomplete_generation", Unavailable)]
)
async def test_tgi_errors_within_a_stream_keep_their_kind(kind: str, error: type[CatenaError]) -> None:
    async with asking(TGI, "well") as (provider, model, server):
        server.frames = [sse({"error": "no", "error_type": kind})]
        with pytest.raises(error):
            await answer(provider, model, ChatRequest(prompt="once"))


async def test_conversations_with_tgi_take_its_chat_route_and_its_words_for_schemas() -> None:
    dialect = OPENAI
    async with asking(dialect, "well", provider="tgi") as (provider, model, server):
        choice, _, _ = await answer(provider, model, ChatRequest(messages=CONVERSATION[:2], json_schema=SCHEMA))
    assert choice.text == "Hello from afar"
    assert server.paths == ["/v1/chat/completions"]
    assert server.bodies[0]["response_format"] == {"type": "json", "value": SCHEMA}


async def test_a_tgi_that_answers_whole_is_understood() -> None:
    async with asking(TGI, "whole") as (provider, model, _):
        choice, ended, _ = await answer(provider, model, ChatRequest(prompt="once"))
    assert (choice.text, choice.finish_reason) == ("Hello from afar", "length")
    assert ended is not None
    assert ended.usage is not None
    assert (ended.usage.input_tokens, ended.usage.output_tokens) == (100, 7)


async def test_a_tgi_without_an_address_says_so() -> None:
    async with asking(TGI, "well", base_url="") as (provider, model, _):
        with pytest.raises(Unavailable, match="far names no server; set its base_url"):
            await answer(provider, model, ChatRequest(prompt="once"))


async def test_conversations_with_hugging_face_are_openais() -> None:
    async with asking(OPENAI, "well", provider="huggingface") as (provider, model, server):
        choice, ended, _ = await answer(provider, model, ChatRequest(messages=CONVERSATION[:2]))
    assert choice.text == "Hello from afar"
    assert ended is not None
    assert server.headers[0]["Authorization"] == "Bearer k-1"


def embeds(**more: Any) -> Dialect:
    told = {"embeddings": [{"values": [0.5, 1.0]}, {"values": [2.0, 3.0]}], **more}
    return replace(GEMINI, whole=lambda: told)


async def test_gemini_embeds_many_texts_in_one_call_and_counts_their_tokens_where_it_tells() -> None:
    async with asking(embeds(usageMetadata={"promptTokenCount": 7}), "whole", type="embedding") as (far, model, server):
        made = await far.embed(model, ["a", "b"], 5.0)
    assert made == Vectors(vectors=[[0.5, 1.0], [2.0, 3.0]], usage=Usage(input_tokens=7))
    assert server.paths == ["/v1beta/models/real:batchEmbedContents"]
    assert server.headers[0]["x-goog-api-key"] == "k-1"
    assert server.bodies[0]["requests"] == [
        {"model": "models/real", "content": {"parts": [{"text": text}]}} for text in ("a", "b")
    ]
    async with asking(embeds(), "whole", type="embedding") as (far, model, _):
        assert (await far.embed(model, ["a", "b"], 5.0)).usage is None


async def test_more_texts_than_gemini_takes_at_once_are_asked_in_turn() -> None:
    told = {"embeddings": [{"values": [1.0]}] * 100, "usageMetadata": {"promptTokenCount": 5}}
    dialect = replace(GEMINI, whole=lambda: told)
    async with asking(dialect, "whole", type="embedding") as (far, model, server):
        made = await far.embed(model, ["a"] * 200, 5.0)
    assert [len(body["requests"]) for body in server.bodies] == [100, 100]
    assert (len(made.vectors), made.usage) == (200, Usage(input_tokens=10))


@pytest.mark.parametrize(
    ("how", "kind", "code"), [("whole", Unavailable, "bad_reply"), ("busy", Exhausted, "provider_busy")]
)
async def test_geminis_failures_to_embed_are_told_by_kind(how: str, kind: type[CatenaError], code: str) -> None:
    async with asking(embeds(), how, type="embedding") as (far, model, _):
        with pytest.raises(kind) as caught:
            await far.embed(model, ["only one"], 5.0)
    assert caught.value.code == code
