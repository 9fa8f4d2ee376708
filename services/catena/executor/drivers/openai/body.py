"""Requests as OpenAI's interface wants them."""

from collections.abc import Callable
from typing import Any

from catena.executor.core.catalogue import Model
from catena.executor.core.chat import ChatRequest, Message, Sampling, Tool
from catena.executor.core.ports import Ask
from catena.kit.errors import Invalid

CHOICES = ("auto", "none", "required")
ANY_OBJECT = {"type": "object"}
"""What the gateway makes of `json_object`; as a strict schema OpenAI would refuse it."""


Constrain = Callable[[ChatRequest], dict[str, Any]]


def chat_body(ask: Ask, *, stream: bool, constrain: Constrain | None = None) -> dict[str, Any]:
    """The body of `/chat/completions`, or of `/completions` for a raw prompt.

    `constrain` spells what the answer must look like for servers with words of their own.
    Raises Invalid (`sampling_unsupported`) for what OpenAI's own service does not know; other servers answer for
    themselves.
    """
    request, own = ask.request, _openais_own(ask.model)
    if own and (request.sampling.ignore_eos or request.sampling.min_tokens):
        raise Invalid(
            f"{ask.model.name} ends its answers itself; ask it without ignore_eos and min_tokens",
            code="sampling_unsupported",
        )
    body: dict[str, Any] = {"model": ask.model.upstream}
    if request.prompt:
        body["prompt"] = request.prompt
    else:
        body["messages"] = [_message(turn) for turn in request.messages]
        if request.begun:
            body["messages"].append({"role": "assistant", "content": request.begun})
            body |= {"continue_final_message": True, "add_generation_prompt": False}
        body |= _tools(request)
    body |= _sampling(request.sampling, raw=bool(request.prompt))
    body |= (constrain or _constraint)(request)
    if own and not request.prompt and "max_tokens" in body:
        # Its reasoning models refuse the old name; other servers may not know the new one.
        body["max_completion_tokens"] = body.pop("max_tokens")
    if stream:
        body |= {"stream": True, "stream_options": {"include_usage": True}}
    return body


def _openais_own(model: Model) -> bool:
    return model.provider == "openai" and (not model.base_url or "//api.openai.com/" in f"{model.base_url}/")


def _constraint(request: ChatRequest) -> dict[str, Any]:
    """OpenAI's `response_format`; regex and choices in the spelling of vLLM, as OpenAI itself has none."""
    if request.regex:
        return {"structured_outputs": {"regex": request.regex}}
    if request.choices:
        return {"structured_outputs": {"choice": list(request.choices)}}
    if request.json_schema is None:
        return {}
    if dict(request.json_schema) == ANY_OBJECT:
        return {"response_format": {"type": "json_object"}}
    shape = {"name": "answer", "schema": dict(request.json_schema), "strict": True}
    return {"response_format": {"type": "json_schema", "json_schema": shape}}


def _message(turn: Message) -> dict[str, Any]:
    told: dict[str, Any] = {"role": turn.role, "content": turn.content}
    if turn.images:
        text = [{"type": "text", "text": turn.content}] if turn.content else []
        images = [
            {"type": "image_url", "image_url": {"url": image.url} | ({"detail": image.detail} if image.detail else {})}
            for image in turn.images
        ]
        told["content"] = [*text, *images]
    if turn.tool_calls:
        told["content"] = turn.content or None
        told["tool_calls"] = [
            {"id": call.id, "type": "function", "function": {"name": call.name, "arguments": call.arguments}}
            for call in turn.tool_calls
        ]
    if turn.tool_call_id:
        told["tool_call_id"] = turn.tool_call_id
    if turn.name:
        told["name"] = turn.name
    return told


def _tools(request: ChatRequest) -> dict[str, Any]:
    if not request.tools:
        return {}
    told: dict[str, Any] = {"tools": [{"type": "function", "function": _function(tool)} for tool in request.tools]}
    if request.tool_choice in CHOICES:
        told["tool_choice"] = request.tool_choice
    elif request.tool_choice:
        told["tool_choice"] = {"type": "function", "function": {"name": request.tool_choice}}
    if request.one_call:
        told["parallel_tool_calls"] = False
    return told


def _function(tool: Tool) -> dict[str, Any]:
    told: dict[str, Any] = {"name": tool.name, "description": tool.description}
    return told if tool.parameters is None else told | {"parameters": dict(tool.parameters)}


def _sampling(sampling: Sampling, *, raw: bool) -> dict[str, Any]:
    told: dict[str, Any] = {
        "temperature": sampling.temperature,
        "top_p": sampling.top_p,
        "seed": sampling.seed,
        "presence_penalty": sampling.presence_penalty,
        "frequency_penalty": sampling.frequency_penalty,
        "max_tokens": sampling.max_tokens or None,
        "stop": list(sampling.stop) or None,
        "n": sampling.n if sampling.n > 1 else None,
        "top_k": sampling.top_k or None,
        "min_p": sampling.min_p,
        "repetition_penalty": sampling.repetition_penalty,
        "ignore_eos": sampling.ignore_eos or None,
        "min_tokens": sampling.min_tokens or None,
        "logit_bias": {str(token): bias for token, bias in sampling.logit_bias} or None,
    }
    if sampling.logprobs:
        told["logprobs"] = sampling.top_logprobs if raw else True
        told["top_logprobs"] = None if raw else sampling.top_logprobs or None
    return {name: value for name, value in told.items() if value is not None}
