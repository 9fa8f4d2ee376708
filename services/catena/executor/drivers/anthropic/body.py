"""Requests as the Messages API wants them."""

from typing import Any

from catena.executor.core.chat import ChatRequest, Message, Tool
from catena.executor.core.ports import Ask
from catena.executor.drivers.http.turns import arguments_of, by_side, inline, system_of
from catena.executor.drivers.http.wanting import refuse, refuse_beyond_chat

DEFAULT_MAX_TOKENS = 4096
"""The API demands a limit; this is what is written where nobody named one."""
JSON_ONLY = "Answer with one JSON object and nothing else."
ANY_OBJECT = {"type": "object"}
CHOICES = {"auto": {"type": "auto"}, "none": {"type": "none"}, "required": {"type": "any"}}


def messages_body(ask: Ask) -> dict[str, Any]:
    """The body of a streamed `/messages`.

    `seed` and the penalties are hints that the API does not know; they are left out. Raises Invalid
    (`sampling_unsupported`) for what would change what the answer is.
    """
    request, sampling = ask.request, ask.request.sampling
    refuse_beyond_chat(ask)
    refuse(ask, n=sampling.n > 1, choices=bool(request.choices))
    body: dict[str, Any] = {
        "model": ask.model.upstream,
        "max_tokens": sampling.max_tokens or DEFAULT_MAX_TOKENS,
        "messages": [{"role": side, "content": _blocks(turns)} for side, turns in by_side(request.messages)],
        "system": _system(request) or None,
        "temperature": sampling.temperature,
        "top_p": sampling.top_p,
        "top_k": sampling.top_k or None,
        "stop_sequences": list(sampling.stop) or None,
        "tools": [_tool(tool) for tool in request.tools] or None,
        "stream": True,
    }
    if request.tools and (request.tool_choice or request.one_call):
        body["tool_choice"] = _choice(request)
    if request.json_schema is not None and dict(request.json_schema) != ANY_OBJECT:
        body["output_config"] = {"format": {"type": "json_schema", "schema": dict(request.json_schema)}}
    return {name: value for name, value in body.items() if value is not None}


def _choice(request: ChatRequest) -> dict[str, Any]:
    wanted = request.tool_choice or "auto"
    told = CHOICES.get(wanted, {"type": "tool", "name": wanted})
    # The choice of none takes no such word.
    return told | {"disable_parallel_tool_use": True} if request.one_call and wanted != "none" else told


def _system(request: ChatRequest) -> str:
    said = system_of(request.messages)
    if request.json_schema is None or dict(request.json_schema) != ANY_OBJECT:
        return said
    return f"{said}\n\n{JSON_ONLY}" if said else JSON_ONLY


def _blocks(turns: list[Message]) -> list[dict[str, Any]]:
    return [block for turn in turns for block in _blocks_of(turn)]


def _blocks_of(turn: Message) -> list[dict[str, Any]]:
    if turn.role == "tool":
        return [{"type": "tool_result", "tool_use_id": turn.tool_call_id, "content": turn.content}]
    images = [{"type": "image", "source": _source(turn, place)} for place in range(len(turn.images))]
    text = [{"type": "text", "text": turn.content}] if turn.content else []
    calls = [
        {"type": "tool_use", "id": call.id, "name": call.name, "input": arguments_of(call)} for call in turn.tool_calls
    ]
    return [*images, *text, *calls]


def _source(turn: Message, place: int) -> dict[str, str]:
    image = turn.images[place]
    found = inline(image)
    if found is None:
        return {"type": "url", "url": image.url}
    return {"type": "base64", "media_type": found[0], "data": found[1]}


def _tool(tool: Tool) -> dict[str, Any]:
    schema = ANY_OBJECT if tool.parameters is None else dict(tool.parameters)
    return {"name": tool.name, "description": tool.description, "input_schema": schema}
