"""Conversations as chat templates take them: with tools where a template knows of them, else in plain words.

Templates that know no tools get them as most models are trained to read them (the convention of Hermes and Qwen): told
in the system's turn, called between tags, answered in the user's.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec

from catena.adapters.core.tools import CLOSE, OPEN
from catena.adapters.core.work import Call, Message, Tool
from catena.kit.errors import Invalid

TOLD = """You may call tools to answer. These are they, a JSON object each:
<tools>
{tools}
</tools>
To call one, write nothing but its name and arguments, between these tags, and do so once for each call:
<tool_call>
{{"name": "...", "arguments": {{...}}}}
</tool_call>"""


@dataclass(frozen=True, slots=True)
class Turn:
    """One turn: its text, in which no word is a special token, and what else the template reads of it."""

    role: str
    content: str
    more: Mapping[str, Any]

    @property
    def spoken(self) -> bool:
        """Whether a template that leaves out its text has lost something."""
        return bool(self.content) or not self.more


def known(messages: Sequence[Message]) -> list[Turn]:
    """For a template that knows tools."""
    names = {call.id: call.name for message in messages for call in message.calls}
    turns = []
    for message in messages:
        more: dict[str, Any] = {}
        if message.calls:
            more["tool_calls"] = [_call(call) for call in message.calls]
        if message.answers:
            more |= {"tool_call_id": message.answers, "name": names.get(message.answers, "")}
        turns.append(Turn(message.role, message.content, more))
    return turns


def plain(messages: Sequence[Message], tools: Sequence[Tool]) -> list[Turn]:
    """For a template that knows none."""
    turns = [Turn(*_plainly(message), {}) for message in messages]
    if not tools:
        return turns
    told = TOLD.format(tools="\n".join(json.dumps(function(tool)) for tool in tools))
    if turns and turns[0].role == "system":
        return [Turn("system", f"{turns[0].content}\n\n{told}", {}), *turns[1:]]
    return [Turn("system", told, {}), *turns]


def function(tool: Tool) -> dict[str, Any]:
    """A tool as OpenAI and all templates write it."""
    parameters = json.loads(tool.parameters) if tool.parameters else {"type": "object", "properties": {}}
    told = {"name": tool.name, "description": tool.description, "parameters": parameters}
    return {"type": "function", "function": told}


def _plainly(message: Message) -> tuple[str, str]:
    if message.role == "tool":
        return "user", f"<tool_response>\n{message.content}\n</tool_response>"
    calls = [f'{OPEN}\n{{"name": {json.dumps(c.name)}, "arguments": {c.arguments}}}\n{CLOSE}' for c in message.calls]
    return message.role, "\n".join([message.content] * bool(message.content) + calls) if calls else message.content


def _call(call: Call) -> dict[str, Any]:
    try:
        arguments = msgspec.json.decode(call.arguments, type=dict[str, Any])
    except msgspec.DecodeError as error:
        told = f"the arguments of the call {call.id[:80]!r} are no JSON object; send them back as the model wrote them"
        raise Invalid(told, code="bad_messages") from error
    return {"id": call.id, "type": "function", "function": {"name": call.name, "arguments": arguments}}
