"""Answers as OpenAI's interface gives them: whole, or in chunks; read leniently in form, strictly in meaning."""

import math
from typing import Any

import msgspec

from catena.executor.core.chat import Delta, TokenLogprob, ToolCall, Usage
from catena.kit.errors import CatenaError, Unavailable


class Function(msgspec.Struct):
    """A called function, or a fragment of it."""

    name: str | None = None
    arguments: str | None = None


class Called(msgspec.Struct):
    """A tool call, or a fragment of it."""

    index: int | None = None
    id: str | None = None
    function: Function | None = None


class Said(msgspec.Struct):
    """`message` of a whole answer, `delta` of a chunk. Thoughts have two names (vLLM and DeepSeek, OpenRouter)."""

    content: str | None = None
    reasoning_content: Any = None
    reasoning: Any = None
    refusal: str | None = None
    tool_calls: list[Called] | None = None


class Likely(msgspec.Struct):
    """A token's log-probability."""

    token: str
    logprob: float
    top_logprobs: list["Likely"] | None = None


class Logprobs(msgspec.Struct):
    """Log-probabilities of the content; those of raw completions are in another form and are not read."""

    content: list[Likely] | None = None


class Option(msgspec.Struct):
    """One of the answers."""

    index: int = 0
    message: Said | None = None
    delta: Said | None = None
    text: str | None = None
    finish_reason: str | None = None
    logprobs: Logprobs | None = None


class InputDetails(msgspec.Struct):
    """Of the input."""

    cached_tokens: int | None = None


class OutputDetails(msgspec.Struct):
    """Of the output."""

    reasoning_tokens: int | None = None


class Counted(msgspec.Struct):
    """Tokens as the server counted them."""

    prompt_tokens: int = 0
    completion_tokens: int | None = None
    prompt_tokens_details: InputDetails | None = None
    completion_tokens_details: OutputDetails | None = None


class Reply(msgspec.Struct):
    """A whole answer, or one chunk of it."""

    model: str | None = None
    choices: list[Option] = []
    usage: Counted | None = None
    error: Any = None


DECODER = msgspec.json.Decoder(Reply)
SILENT = Said()
REASONS = {"function_call": "tool_calls", "eos": "stop", "end_turn": "stop"}
"""Older servers say the first, others the second and third."""


def deltas_of(reply: Reply) -> tuple[Delta, ...]:
    """What the reply adds to the answers."""
    return tuple(_delta(option) for option in reply.choices)


def thinks(reply: Reply) -> bool:
    """Whether the reply has thoughts, which are no part of the answer."""
    return any(option.delta and (option.delta.reasoning_content or option.delta.reasoning) for option in reply.choices)


def usage_of(reply: Reply) -> Usage | None:
    """Usage, verbatim; None: the reply has none."""
    counted = reply.usage
    if counted is None:
        return None
    cached = counted.prompt_tokens_details.cached_tokens if counted.prompt_tokens_details else 0
    reasoning = counted.completion_tokens_details.reasoning_tokens if counted.completion_tokens_details else 0
    return Usage(
        input_tokens=counted.prompt_tokens,
        output_tokens=counted.completion_tokens or 0,
        cached_input_tokens=cached or 0,
        reasoning_tokens=reasoning or 0,
    )


def error_of(reply: Reply) -> CatenaError | None:
    """An error that came inside a stream."""
    if not reply.error:
        return None
    told = reply.error if isinstance(reply.error, dict) else {"message": reply.error}
    message = str(told.get("message", ""))[:300]
    return Unavailable(f"the provider broke its answer off: {message}", code="provider_error")


def confidence_of(deltas: list[Delta]) -> float | None:
    """Least token probability of the first answer; None without log-probabilities."""
    least = min((token.logprob for delta in deltas if delta.index == 0 for token in delta.logprobs), default=None)
    return None if least is None else math.exp(min(0.0, least))


def _delta(option: Option) -> Delta:
    said = option.delta or option.message or SILENT
    calls, likely, reason = said.tool_calls, option.logprobs, option.finish_reason or ""
    return Delta(
        index=option.index,
        text=(option.text or "") + (said.content or "") + (said.refusal or ""),
        tool_calls=tuple(_tool_call(call, place) for place, call in enumerate(calls)) if calls else (),
        logprobs=tuple(map(_token, likely.content)) if likely and likely.content else (),
        finish_reason=REASONS.get(reason, reason),
    )


def _tool_call(call: Called, place: int) -> ToolCall:
    function = call.function or Function()
    return ToolCall(
        id=call.id or "",
        name=function.name or "",
        arguments=function.arguments or "",
        index=place if call.index is None else call.index,
    )


def _token(token: Likely) -> TokenLogprob:
    return TokenLogprob(
        token=token.token,
        logprob=token.logprob,
        top=tuple(TokenLogprob(token=other.token, logprob=other.logprob) for other in token.top_logprobs or ()),
    )
