"""Requests as generateContent wants them."""

from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from catena.executor.core.chat import ChatRequest, Image, Message, Tool, ToolCall
from catena.executor.core.ports import Ask
from catena.executor.drivers.http.turns import arguments_of, by_side, inline, system_of
from catena.executor.drivers.http.wanting import refuse_beyond_chat

SIGNED = ".signed."
"""Parts a tool call's id from the signature of the thought behind it, which has to come back with the call's result."""
MADE_UP = "call_"
"""Begins ids that are ours, where the API gave none; it is not told of them."""
ANY_OBJECT = {"type": "object"}


def generate_body(ask: Ask) -> dict[str, Any]:
    """The body of `:streamGenerateContent`. Raises Invalid (`sampling_unsupported`)."""
    request = ask.request
    refuse_beyond_chat(ask)
    names = {call.id: call.name for turn in request.messages for call in turn.tool_calls}
    body: dict[str, Any] = {
        "contents": [
            {"role": "model" if side == "assistant" else "user", "parts": _parts(turns, names)}
            for side, turns in by_side(request.messages)
        ]
    }
    system = system_of(request.messages)
    if system:
        body["systemInstruction"] = {"parts": [{"text": system}]}
    if request.tools:
        body["tools"] = [{"functionDeclarations": [_function(tool) for tool in request.tools]}]
    if request.tools and request.tool_choice:
        body["toolConfig"] = {"functionCallingConfig": _calling(request.tool_choice)}
    config = _config(request)
    return body | ({"generationConfig": config} if config else {})


def _config(request: ChatRequest) -> dict[str, Any]:
    sampling = request.sampling
    told: dict[str, Any] = {
        "temperature": sampling.temperature,
        "topP": sampling.top_p,
        "topK": sampling.top_k or None,
        "maxOutputTokens": sampling.max_tokens or None,
        "stopSequences": list(sampling.stop) or None,
        "candidateCount": sampling.n if sampling.n > 1 else None,
        "seed": sampling.seed,
        "presencePenalty": sampling.presence_penalty,
        "frequencyPenalty": sampling.frequency_penalty,
    }
    if request.json_schema is not None:
        told["responseMimeType"] = "application/json"
        if dict(request.json_schema) != ANY_OBJECT:
            told["responseJsonSchema"] = dict(request.json_schema)
    if request.choices:
        told["responseMimeType"] = "text/x.enum"
        told["responseSchema"] = {"type": "STRING", "enum": list(request.choices)}
    return {name: value for name, value in told.items() if value is not None}


def _parts(turns: Sequence[Message], names: Mapping[str, str]) -> list[dict[str, Any]]:
    return [part for turn in turns for part in _parts_of(turn, names)]


def _parts_of(turn: Message, names: Mapping[str, str]) -> list[dict[str, Any]]:
    if turn.role == "tool":
        told = {"name": names.get(turn.tool_call_id, turn.name), "response": _result(turn.content)}
        return [{"functionResponse": told | _known(turn.tool_call_id)}]
    text = [{"text": turn.content}] if turn.content else []
    return [*map(_image, turn.images), *text, *map(_call, turn.tool_calls)]


def _image(image: Image) -> dict[str, Any]:
    found = inline(image)
    if found is None:
        return {"fileData": {"fileUri": image.url}}
    return {"inlineData": {"mimeType": found[0], "data": found[1]}}


def _call(call: ToolCall) -> dict[str, Any]:
    _, signed, signature = call.id.partition(SIGNED)
    part: dict[str, Any] = {"functionCall": {"name": call.name, "args": arguments_of(call)} | _known(call.id)}
    return part | ({"thoughtSignature": signature} if signed else {})


def _known(call_id: str) -> dict[str, str]:
    """The id, where the API gave it."""
    plain = call_id.partition(SIGNED)[0]
    return {"id": plain} if plain and not plain.startswith(MADE_UP) else {}


def _result(content: str) -> dict[str, Any]:
    """What a tool gave, as the object that the API wants."""
    try:
        return msgspec.json.decode(content, type=dict[str, Any])
    except msgspec.DecodeError:
        return {"result": content}


def _function(tool: Tool) -> dict[str, Any]:
    told: dict[str, Any] = {"name": tool.name, "description": tool.description}
    return told if tool.parameters is None else told | {"parametersJsonSchema": dict(tool.parameters)}


def _calling(choice: str) -> dict[str, Any]:
    modes = {"auto": "AUTO", "none": "NONE", "required": "ANY"}
    if choice in modes:
        return {"mode": modes[choice]}
    return {"mode": "ANY", "allowedFunctionNames": [choice]}
