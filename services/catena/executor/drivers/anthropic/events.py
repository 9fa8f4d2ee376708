"""Answers of the Messages API: events of a stream, or one whole message, as deltas and usage."""

from dataclasses import dataclass, field
from typing import Any

import msgspec

from catena.executor.core.chat import Delta, ToolCall, Usage
from catena.kit.errors import CatenaError, Exhausted, Invalid, Unavailable

FINISHES = {
    "end_turn": "stop",
    "stop_sequence": "stop",
    "pause_turn": "stop",
    "tool_use": "tool_calls",
    "max_tokens": "length",
    "model_context_window_exceeded": "length",
    "refusal": "content_filter",
}
MOST_CHARS = 300


class Block(msgspec.Struct):
    """A content block, or its opening."""

    type: str = ""
    text: str = ""
    id: str = ""
    name: str = ""
    input: dict[str, Any] = {}


class Counted(msgspec.Struct):
    """Tokens; `input_tokens` leaves out those read from a cache or written to one."""

    input_tokens: int | None = None
    output_tokens: int | None = None
    cache_read_input_tokens: int | None = None
    cache_creation_input_tokens: int | None = None


class Change(msgspec.Struct):
    """What a `content_block_delta` or `message_delta` adds."""

    type: str = ""
    text: str = ""
    partial_json: str = ""
    stop_reason: str | None = None


class Told(msgspec.Struct):
    """A whole message, or the opening of one."""

    model: str = ""
    content: list[Block] = []
    stop_reason: str | None = None
    usage: Counted | None = None


class Fault(msgspec.Struct):
    """What went wrong."""

    type: str = ""
    message: str = ""


class Event(msgspec.Struct):
    """Anything that is sent; a whole message is an event of type `message` with the fields of `Told`."""

    type: str
    index: int = 0
    message: Told | None = None
    content_block: Block | None = None
    delta: Change | None = None
    usage: Counted | None = None
    error: Fault | None = None
    model: str = ""
    content: list[Block] = []
    stop_reason: str | None = None


DECODER = msgspec.json.Decoder(Event)


def thinks(event: Event) -> bool:
    """Whether the event is of a thought, which is no part of the answer."""
    return event.delta is not None and event.delta.type in ("thinking_delta", "signature_delta")


@dataclass(slots=True)
class Reading:
    """What has been read of one answer. `finished`: it has said why it ended."""

    model: str = ""
    finished: bool = False
    _counted: Counted = field(default_factory=Counted)
    _tools: dict[int, ToolCall] = field(default_factory=dict)

    @property
    def usage(self) -> Usage | None:
        """Verbatim, cache reads and writes counted as input; None: not told."""
        told = self._counted
        if told.input_tokens is None or told.output_tokens is None:
            return None
        read, kept = told.cache_read_input_tokens or 0, told.cache_creation_input_tokens or 0
        return Usage(
            input_tokens=told.input_tokens + read + kept,
            output_tokens=told.output_tokens,
            cached_input_tokens=read,
            cache_write_tokens=kept,
        )

    def read(self, event: Event) -> list[Delta]:
        """What the event adds; kinds of event and block that are not known add nothing. Raises the error told."""
        if self.finished:
            self._count(event.usage)
            return []
        match event.type:
            case "message":
                return self._whole(event)
            case "message_start" if event.message:
                self.model = event.message.model
                self._count(event.message.usage)
            case "content_block_start" if event.content_block:
                return self._open(event.index, event.content_block)
            case "content_block_delta" if event.delta:
                return self._add(event.index, event.delta)
            case "content_block_stop":
                return self._close(event.index)
            case "message_delta" if event.delta:
                self._count(event.usage)
                return self._end(event.delta.stop_reason)
            case "error":
                raise fault_of(event.error or Fault())
        return []

    def _whole(self, event: Event) -> list[Delta]:
        self.model = event.model
        self._count(event.usage)
        deltas: list[Delta] = []
        for index, block in enumerate(event.content):
            deltas += self._open(index, block)
            if block.type == "tool_use" and block.input:
                told = Change(type="input_json_delta", partial_json=msgspec.json.encode(block.input).decode())
                deltas += self._add(index, told)
            deltas += self._close(index)
        return [*deltas, *self._end(event.stop_reason)]

    def _open(self, index: int, block: Block) -> list[Delta]:
        if block.type == "text" and block.text:
            return [Delta(text=block.text)]
        if block.type != "tool_use" or index in self._tools:
            return []
        call = ToolCall(id=block.id, name=block.name, index=len(self._tools))
        self._tools[index] = call
        return [Delta(tool_calls=(call,))]

    def _add(self, index: int, change: Change) -> list[Delta]:
        if change.type == "text_delta":
            return [Delta(text=change.text)]
        call = self._tools.get(index)
        if change.type != "input_json_delta" or call is None or not change.partial_json:
            return []
        self._tools[index] = ToolCall(index=call.index, arguments=change.partial_json)
        return [Delta(tool_calls=(self._tools[index],))]

    def _close(self, index: int) -> list[Delta]:
        """A call without arguments is told as one of an empty object, which is what OpenAI's clients parse."""
        call = self._tools.get(index)
        if call is None or call.arguments:
            return []
        self._tools[index] = ToolCall(index=call.index, arguments="{}")
        return [Delta(tool_calls=(self._tools[index],))]

    def _end(self, reason: str | None) -> list[Delta]:
        if reason is None:
            return []
        self.finished = True
        return [Delta(finish_reason=FINISHES.get(reason, "stop"))]

    def _count(self, told: Counted | None) -> None:
        """Counts are cumulative; what a later event leaves out stands as told before."""
        for name in Counted.__struct_fields__ if told else ():
            value = getattr(told, name)
            if value is not None:
                setattr(self._counted, name, value)


def fault_of(fault: Fault) -> CatenaError:
    """The error kind of an `error` event."""
    says = f"the provider broke its answer off: {fault.message[:MOST_CHARS]}"
    match fault.type:
        case "rate_limit_error":
            return Exhausted(says, code="provider_busy")
        case "invalid_request_error":
            return Invalid(says, code="provider_refused")
    return Unavailable(says, code="provider_error")
