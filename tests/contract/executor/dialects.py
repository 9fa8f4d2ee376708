"""How the providers speak on the wire: the frames of a good answer, of a tool call, of a refusal, as published."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec

WORDS = ("Hello", " from", " afar")
ANSWER = "".join(WORDS)
COUNTS = {"input": 100, "output": 7, "cached": 64, "reasoning": 3}
"""What every dialect tells of its usage, in its own way."""
WRONG = {"input": 5, "output": 0, "cached": 9, "reasoning": 0}
"""More from the cache than was read, and words of no tokens."""


@dataclass(frozen=True)
class Dialect:
    """`paths` take requests. Frames are whole server-sent events: `words` an answer's, `ending` those that close it.

    `root` is what a model's `base_url` has after the server's address. `chats`: it takes conversations and tools.
    """

    provider: str
    root: str
    paths: tuple[str, ...]
    words: Callable[[Sequence[str], Mapping[str, int]], list[bytes]]
    ending: Callable[[Mapping[str, int]], list[bytes]]
    whole: Callable[[], Any]
    tools: list[bytes]
    key_header: tuple[str, str]
    error_inside: bytes
    refusal: Callable[[int, str, str], Any]
    too_long: str
    thought: bytes = b""
    done: bytes = b""
    cached: bool = True
    reasoning: bool = True
    chats: bool = True


def sse(data: Any, event: str = "") -> bytes:
    """One server-sent event."""
    head = f"event: {event}\n".encode() if event else b""
    return head + b"data: " + msgspec.json.encode(data) + b"\n\n"


def _openai_usage(counts: Mapping[str, int]) -> dict[str, Any]:
    return {
        "prompt_tokens": counts["input"],
        "completion_tokens": counts["output"],
        "total_tokens": counts["input"] + counts["output"],
        "prompt_tokens_details": {"cached_tokens": counts["cached"]},
        "completion_tokens_details": {"reasoning_tokens": counts["reasoning"]},
    }


def _openai_chunk(delta: Any, reason: str | None = None, **more: Any) -> bytes:
    choice = {"index": 0, "delta": delta, "finish_reason": reason, **more}
    return sse({"id": "c-1", "object": "chat.completion.chunk", "model": "real-name", "choices": [choice]})


def _openai_words(words: Sequence[str], _: Mapping[str, int]) -> list[bytes]:
    logprob = {"content": [{"token": "t", "logprob": -0.5, "top_logprobs": []}]}
    opening = _openai_chunk({"role": "assistant", "content": ""})
    return [opening, *(_openai_chunk({"content": word}, logprobs=logprob) for word in words)]


def _openai_ending(counts: Mapping[str, int]) -> list[bytes]:
    if not counts:
        return [_openai_chunk({}, "stop")]
    usage = {"id": "c-1", "model": "real-name", "choices": [], "usage": _openai_usage(counts)}
    return [_openai_chunk({}, "stop"), sse(usage)]


def _called(index: int, **function: str) -> bytes:
    call: dict[str, Any] = {"index": index, "function": function}
    if "name" in function:
        call |= {"id": f"call_{'ab'[index]}", "type": "function"}
    return _openai_chunk({"tool_calls": [call]})


OPENAI = Dialect(
    provider="openai",
    root="/v1",
    paths=("/v1/chat/completions",),
    words=_openai_words,
    ending=_openai_ending,
    whole=lambda: {
        "model": "real-name",
        "choices": [{"index": 0, "message": {"role": "assistant", "content": ANSWER}, "finish_reason": "stop"}],
        "usage": _openai_usage(COUNTS),
    },
    tools=[
        _openai_chunk({"role": "assistant", "content": None}),
        _called(0, name="f", arguments=""),
        _called(0, arguments='{"x":'),
        _called(1, name="g", arguments="{}"),
        _called(0, arguments="1}"),
        _openai_chunk({}, "tool_calls"),
    ],
    key_header=("Authorization", "Bearer k-1"),
    error_inside=sse({"error": {"message": "overloaded"}}),
    refusal=lambda status, code, message: {"error": {"message": message, "type": "some_error", "code": code}},
    too_long="This model's maximum context length is 10 tokens",
    thought=_openai_chunk({"reasoning_content": "hm"}),
    done=b"data: [DONE]\n\n",
)


def _anthropic_usage(counts: Mapping[str, int]) -> dict[str, int]:
    """As the API counts: what was read from a cache is not among `input_tokens`."""
    return {
        "input_tokens": counts["input"] - counts["cached"],
        "cache_creation_input_tokens": 0,
        "cache_read_input_tokens": counts["cached"],
        "output_tokens": 1,
    }


def _anthropic(data: dict[str, Any]) -> bytes:
    return sse(data, event=data["type"])


def _anthropic_start(counts: Mapping[str, int]) -> bytes:
    message: dict[str, Any] = {
        "id": "msg_1",
        "type": "message",
        "role": "assistant",
        "model": "real-name",
        "content": [],
        "stop_reason": None,
        "stop_sequence": None,
    }
    if counts:
        message["usage"] = _anthropic_usage(counts)
    return _anthropic({"type": "message_start", "message": message})


def _anthropic_block(index: int, block: dict[str, Any], *deltas: dict[str, Any]) -> list[bytes]:
    start = _anthropic({"type": "content_block_start", "index": index, "content_block": block})
    middle = [_anthropic({"type": "content_block_delta", "index": index, "delta": delta}) for delta in deltas]
    return [start, *middle]


def _anthropic_words(words: Sequence[str], counts: Mapping[str, int]) -> list[bytes]:
    texts = [{"type": "text_delta", "text": word} for word in words]
    block = _anthropic_block(0, {"type": "text", "text": ""}, *texts)
    return [_anthropic_start(counts), _anthropic({"type": "ping"}), *block]


def _anthropic_end(reason: str, counts: Mapping[str, int]) -> bytes:
    usage = {"usage": {"output_tokens": counts["output"]}} if counts else {}
    return _anthropic({"type": "message_delta", "delta": {"stop_reason": reason, "stop_sequence": None}, **usage})


def _anthropic_stop(index: int) -> bytes:
    return _anthropic({"type": "content_block_stop", "index": index})


def _input(text: str) -> dict[str, str]:
    return {"type": "input_json_delta", "partial_json": text}


ANTHROPIC = Dialect(
    provider="anthropic",
    root="/v1",
    paths=("/v1/messages",),
    words=_anthropic_words,
    ending=lambda counts: [_anthropic_stop(0), _anthropic_end("end_turn", counts)],
    whole=lambda: {
        "id": "msg_1",
        "type": "message",
        "role": "assistant",
        "model": "real-name",
        "content": [{"type": "text", "text": ANSWER}],
        "stop_reason": "end_turn",
        "usage": _anthropic_usage(COUNTS) | {"output_tokens": COUNTS["output"]},
    },
    tools=[
        _anthropic_start(COUNTS),
        *_anthropic_block(
            0,
            {"type": "tool_use", "id": "toolu_a", "name": "f", "input": {}},
            _input(""),
            _input('{"x":'),
            _input("1}"),
        ),
        _anthropic_stop(0),
        *_anthropic_block(1, {"type": "tool_use", "id": "toolu_b", "name": "g", "input": {}}, _input("")),
        _anthropic_stop(1),
        _anthropic_end("tool_use", COUNTS),
    ],
    key_header=("x-api-key", "k-1"),
    error_inside=_anthropic({"type": "error", "error": {"type": "overloaded_error", "message": "Overloaded"}}),
    refusal=lambda status, code, message: {"type": "error", "error": {"type": code, "message": message}},
    too_long="prompt is too long: 210000 tokens > 200000 maximum",
    thought=_anthropic(
        {"type": "content_block_delta", "index": 7, "delta": {"type": "thinking_delta", "thinking": "hm"}}
    ),
    done=_anthropic({"type": "message_stop"}),
    reasoning=False,
)


def _gemini_chunk(parts: list[Any], reason: str = "", counts: Mapping[str, int] | None = None) -> bytes:
    candidate: dict[str, Any] = {"content": {"role": "model", "parts": parts}, "index": 0}
    if reason:
        candidate["finishReason"] = reason
    reply: dict[str, Any] = {"candidates": [candidate], "modelVersion": "real-name", "responseId": "r-1"}
    if counts:
        reply["usageMetadata"] = _gemini_usage(counts)
    return sse(reply)


def _gemini_usage(counts: Mapping[str, int]) -> dict[str, int]:
    """As the API counts: what was thought is not among the candidates' tokens."""
    return {
        "promptTokenCount": counts["input"],
        "cachedContentTokenCount": counts["cached"],
        "candidatesTokenCount": counts["output"] - counts["reasoning"],
        "thoughtsTokenCount": counts["reasoning"],
        "totalTokenCount": counts["input"] + counts["output"],
    }


GEMINI = Dialect(
    provider="gemini",
    root="/v1beta",
    paths=("/v1beta/models/{call}",),
    words=lambda words, _: [_gemini_chunk([{"text": word}]) for word in words],
    ending=lambda counts: [_gemini_chunk([{"text": ""}], "STOP", counts)],
    whole=lambda: {
        "candidates": [{"content": {"parts": [{"text": ANSWER}]}, "finishReason": "STOP", "index": 0}],
        "usageMetadata": _gemini_usage(COUNTS),
        "modelVersion": "real-name",
    },
    tools=[
        _gemini_chunk([{"functionCall": {"name": "f", "args": {"x": 1}}, "thoughtSignature": "c2ln"}]),
        _gemini_chunk([{"functionCall": {"name": "g", "args": {}}}]),
        _gemini_chunk([], "STOP", COUNTS),
    ],
    key_header=("x-goog-api-key", "k-1"),
    error_inside=sse({"error": {"code": 503, "message": "The model is overloaded.", "status": "UNAVAILABLE"}}),
    refusal=lambda status, code, message: {"error": {"code": status, "message": message, "status": code.upper()}},
    too_long="The input token count (1200000) exceeds the maximum number of tokens allowed (1048576).",
    thought=_gemini_chunk([{"text": "hm", "thought": True}]),
)


def _tgi_token(text: str, **more: Any) -> bytes:
    token = {"id": 1, "text": text, "logprob": -0.5, "special": False}
    return sse({"index": 1, "token": token | more.pop("token", {}), "generated_text": None, "details": None, **more})


def _tgi_ending(counts: Mapping[str, int]) -> list[bytes]:
    details: dict[str, Any] = {"finish_reason": "eos_token", "seed": None}
    if counts:
        details |= {"generated_tokens": counts["output"], "input_length": counts["input"]}
    return [_tgi_token("</s>", token={"special": True}, generated_text=ANSWER, details=details)]


TGI = Dialect(
    provider="tgi",
    root="",
    paths=("/generate_stream", "/v1/chat/completions"),
    words=lambda words, _: [_tgi_token(word) for word in words],
    ending=_tgi_ending,
    whole=lambda: {
        "generated_text": ANSWER,
        "details": {"finish_reason": "length", "generated_tokens": COUNTS["output"], "input_length": COUNTS["input"]},
    },
    tools=[],
    key_header=("Authorization", "Bearer k-1"),
    error_inside=sse({"error": "Request failed during generation: oops", "error_type": "generation"}),
    refusal=lambda status, code, message: {"error": message, "error_type": code},
    too_long="Input validation error: `inputs` tokens + `max_new_tokens` must be <= 2048. Given: 2049",
    cached=False,
    reasoning=False,
    chats=False,
)
