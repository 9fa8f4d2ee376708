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
    """`paths` take requests. Frames are whole server-sent events: `words` an answer's, `ending` those that close it."""

    provider: str
    paths: tuple[str, ...]
    words: Callable[[Sequence[str]], list[bytes]]
    ending: Callable[[Mapping[str, int]], list[bytes]]
    whole: Callable[[], Any]
    tools: list[bytes]
    error_inside: bytes
    refusal: Callable[[int, str, str], Any]
    too_long: str
    done: bytes = b""
    reasoning: bool = True


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


def _openai_words(words: Sequence[str]) -> list[bytes]:
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
    error_inside=sse({"error": {"message": "overloaded"}}),
    refusal=lambda status, code, message: {"error": {"message": message, "type": "some_error", "code": code}},
    too_long="This model's maximum context length is 10 tokens",
    done=b"data: [DONE]\n\n",
)
