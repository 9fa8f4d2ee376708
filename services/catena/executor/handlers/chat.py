"""Chat, usage and context: messages to the core's types and back."""

from collections.abc import Mapping
from typing import Any

import msgspec

from catena.api.types.v1 import types_pb2 as pb
from catena.executor.core.chat import (
    ChatRequest,
    Choice,
    Context,
    Delta,
    Image,
    Message,
    Sampling,
    Score,
    TokenLogprob,
    Tool,
    ToolCall,
    Usage,
)
from catena.executor.handlers.values import plain_struct, to_struct
from catena.kit.errors import Invalid


def chat_from(message: pb.ChatRequest) -> ChatRequest:
    """What is asked."""
    return ChatRequest(
        messages=tuple(turn_from(turn) for turn in message.messages),
        prompt=message.prompt,
        sampling=sampling_from(message.sampling),
        tools=tuple(
            Tool(
                name=tool.name,
                description=tool.description,
                parameters=plain_struct(tool.parameters) if tool.HasField("parameters") else None,
            )
            for tool in message.tools
        ),
        tool_choice=message.tool_choice,
        one_call=message.one_call,
        json_schema=_schema_from(message),
        regex=message.regex,
        choices=tuple(message.choices),
    )


def chat_to(request: ChatRequest) -> pb.ChatRequest:
    """The message that asks the same."""
    return pb.ChatRequest(
        messages=[turn_to(turn) for turn in request.messages],
        prompt=request.prompt,
        sampling=sampling_to(request.sampling),
        tools=[
            pb.Tool(
                name=tool.name,
                description=tool.description,
                parameters=None if tool.parameters is None else to_struct(tool.parameters),
            )
            for tool in request.tools
        ],
        tool_choice=request.tool_choice,
        one_call=request.one_call,
        json_schema_text="" if request.json_schema is None else msgspec.json.encode(request.json_schema).decode(),
        regex=request.regex,
        choices=request.choices,
    )


def _schema_from(message: pb.ChatRequest) -> Mapping[str, Any] | None:
    if not message.json_schema_text:
        return plain_struct(message.json_schema) if message.HasField("json_schema") else None
    try:
        return msgspec.json.decode(message.json_schema_text, type=dict[str, Any])
    except msgspec.DecodeError as error:
        raise Invalid(f"json_schema_text is no JSON object: {error}", code="bad_schema") from error


def turn_from(message: pb.ChatMessage) -> Message:
    """One turn."""
    return Message(
        role=message.role,
        content=message.content,
        images=tuple(Image(url=image.url, detail=image.detail) for image in message.images),
        tool_calls=tuple(tool_call_from(call) for call in message.tool_calls),
        tool_call_id=message.tool_call_id,
        name=message.name,
    )


def turn_to(turn: Message) -> pb.ChatMessage:
    """One turn as a message."""
    return pb.ChatMessage(
        role=turn.role,
        content=turn.content,
        images=[pb.ImagePart(url=image.url, detail=image.detail) for image in turn.images],
        tool_calls=[tool_call_to(call) for call in turn.tool_calls],
        tool_call_id=turn.tool_call_id,
        name=turn.name,
    )


def tool_call_from(message: pb.ToolCall) -> ToolCall:
    """A tool call or a fragment of one."""
    return ToolCall(id=message.id, name=message.name, arguments=message.arguments, index=message.index)


def tool_call_to(call: ToolCall) -> pb.ToolCall:
    """A tool call as a message."""
    return pb.ToolCall(id=call.id, name=call.name, arguments=call.arguments, index=call.index)


OPTIONAL = (
    "temperature",
    "top_p",
    "seed",
    "presence_penalty",
    "frequency_penalty",
    "min_p",
    "repetition_penalty",
)


def sampling_from(message: pb.Sampling) -> Sampling:
    """How tokens are drawn; what is absent stays the model's own."""
    given = {name: getattr(message, name) for name in OPTIONAL if message.HasField(name)}  # type: ignore[arg-type]
    return Sampling(
        max_tokens=message.max_tokens,
        stop=tuple(message.stop),
        n=message.n or 1,
        logprobs=message.logprobs,
        top_logprobs=message.top_logprobs,
        top_k=message.top_k,
        logit_bias=tuple(sorted(message.logit_bias.items())),
        ignore_eos=message.ignore_eos,
        min_tokens=message.min_tokens,
        **given,
    )


def sampling_to(sampling: Sampling) -> pb.Sampling:
    """The message that says the same."""
    return pb.Sampling(
        max_tokens=sampling.max_tokens,
        temperature=sampling.temperature,
        top_p=sampling.top_p,
        seed=sampling.seed,
        stop=sampling.stop,
        n=sampling.n,
        logprobs=sampling.logprobs,
        top_logprobs=sampling.top_logprobs,
        presence_penalty=sampling.presence_penalty,
        frequency_penalty=sampling.frequency_penalty,
        top_k=sampling.top_k,
        min_p=sampling.min_p,
        repetition_penalty=sampling.repetition_penalty,
        logit_bias=dict(sampling.logit_bias),
        ignore_eos=sampling.ignore_eos,
        min_tokens=sampling.min_tokens,
    )


def usage_from(message: pb.Usage) -> Usage:
    """Tokens."""
    return Usage(
        input_tokens=message.input_tokens,
        output_tokens=message.output_tokens,
        cached_input_tokens=message.cached_input_tokens,
        reasoning_tokens=message.reasoning_tokens,
        cache_write_tokens=message.cache_write_tokens,
    )


def usage_to(usage: Usage) -> pb.Usage:
    """Tokens as a message."""
    return pb.Usage(
        input_tokens=usage.input_tokens,
        output_tokens=usage.output_tokens,
        cached_input_tokens=usage.cached_input_tokens,
        reasoning_tokens=usage.reasoning_tokens,
        cache_write_tokens=usage.cache_write_tokens,
    )


def delta_from(message: pb.Delta) -> Delta:
    """A piece of an answer."""
    return Delta(
        index=message.index,
        text=message.text,
        tool_calls=tuple(tool_call_from(call) for call in message.tool_calls),
        logprobs=tuple(token_from(token) for token in message.logprobs),
        finish_reason=message.finish_reason,
    )


def delta_to(delta: Delta) -> pb.Delta:
    """A piece of an answer as a message."""
    return pb.Delta(
        index=delta.index,
        text=delta.text,
        tool_calls=[tool_call_to(call) for call in delta.tool_calls],
        logprobs=[token_to(token) for token in delta.logprobs],
        finish_reason=delta.finish_reason,
    )


def choice_to(choice: Choice) -> pb.Choice:
    """A whole answer as a message."""
    return pb.Choice(
        index=choice.index,
        message=turn_to(choice.message),
        finish_reason=choice.finish_reason,
        logprobs=[token_to(token) for token in choice.logprobs],
    )


def token_from(message: pb.TokenLogprob) -> TokenLogprob:
    """A token with its log-probability."""
    return TokenLogprob(
        token=message.token, logprob=message.logprob, top=tuple(token_from(other) for other in message.top)
    )


def token_to(token: TokenLogprob) -> pb.TokenLogprob:
    """A token with its log-probability, as a message."""
    return pb.TokenLogprob(token=token.token, logprob=token.logprob, top=[token_to(other) for other in token.top])


PLAIN = (
    "agent_type",
    "agent_id",
    "user_id",
    "workflow_type",
    "task",
    "critical",
    "objective",
    "max_latency_ms",
    "max_cost_usd",
    "feature_vector",
    "memory_collection",
)


def context_from(message: pb.RequestContext) -> Context:
    """Who asks, and within which bounds."""
    return Context(metadata=dict(message.metadata), **{name: getattr(message, name) for name in PLAIN})


def context_to(context: Context) -> pb.RequestContext:
    """The message that says the same."""
    return pb.RequestContext(metadata=context.metadata, **{name: getattr(context, name) for name in PLAIN})


def score_to(score: Score) -> pb.Score:
    """A score as a message."""
    return pb.Score(value=score.value, source=score.source)
