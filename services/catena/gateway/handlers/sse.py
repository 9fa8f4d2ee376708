"""Server-sent events as OpenAI streams them: chunks, usage and Catena's account in the last one, then `[DONE]`.

The status is held back until the first event, so that an early failure still gets its status code; a later one is
sent as an error event, and no `[DONE]` follows it.
"""

import base64
import struct
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import msgspec
import structlog
from starlette.responses import Response

from catena.api.executor.v1 import executor_pb2
from catena.api.types.v1 import types_pb2
from catena.gateway.handlers import openai
from catena.gateway.handlers.asking import deepest
from catena.gateway.handlers.pump import Pump, Streamed
from catena.gateway.handlers.telling import told_json
from catena.kit.telemetry import trace_id

Events = AsyncGenerator[executor_pb2.RunResponse, None]
DONE = b"data: [DONE]\n\n"
log = structlog.get_logger()


def event_bytes(data: Any) -> bytes:
    """One event."""
    return b"data: " + msgspec.json.encode(data) + b"\n\n"


def vector_json(values: Sequence[float], encoding: str) -> Any:
    """A vector as a list, or packed as little-endian float32 in base64."""
    if encoding == "base64":
        return base64.b64encode(struct.pack(f"<{len(values)}f", *values)).decode()
    return list(values)


@dataclass(slots=True, kw_only=True)
class Chunks:
    """Turns the executor's events into chunks of one stream. Answers that were never streamed are sent at the end."""

    id: str
    model: str
    chat: bool
    usage: bool
    created_s: int
    trace: str = field(default_factory=trace_id)
    _begun: set[int] = field(default_factory=set)
    _ended: set[int] = field(default_factory=set)

    def of(self, event: executor_pb2.RunResponse) -> list[dict[str, Any]]:
        """The chunks that `event` gives; none for stages."""
        if event.HasField("delta"):
            return self._delta(event.delta)
        if event.HasField("finished"):
            return self._end(event.finished)
        return []

    def _delta(self, delta: types_pb2.Delta) -> list[dict[str, Any]]:
        first = self._role(delta.index)
        if delta.finish_reason:
            self._ended.add(delta.index)
        reason = delta.finish_reason or None
        tokens = list(delta.logprobs)
        if not self.chat:
            text = {"index": delta.index, "text": delta.text, "logprobs": openai.completion_logprobs(tokens)}
            return [self._chunk([{**text, "finish_reason": reason}])]
        piece: dict[str, Any] = {"content": delta.text} if delta.text else {}
        if delta.tool_calls:
            piece["tool_calls"] = openai.calls_json(list(delta.tool_calls), streaming=True)
        if not piece and reason is None:
            return first
        choice = {"index": delta.index, "delta": piece, "logprobs": openai.logprobs_json(tokens)}
        return [*first, self._chunk([{**choice, "finish_reason": reason}])]

    def _end(self, finished: executor_pb2.Finished) -> list[dict[str, Any]]:
        chunks: list[dict[str, Any]] = []
        for choice in finished.choices:
            if choice.index not in self._begun:
                message, reason = choice.message, choice.finish_reason or "stop"
                whole = types_pb2.Delta(
                    index=choice.index,
                    text=message.content,
                    tool_calls=message.tool_calls,
                    logprobs=choice.logprobs,
                    finish_reason=reason,
                )
                chunks += self._delta(whole)
            elif choice.index not in self._ended:
                chunks += self._delta(types_pb2.Delta(index=choice.index, finish_reason=choice.finish_reason or "stop"))
        told = told_json(finished, self.trace)
        if self.usage:
            last = self._chunk([])
            last["usage"] = openai.usage_json(finished.usage)
            chunks.append(last)
        if not chunks:
            chunks.append(self._chunk([]))
        chunks[-1]["catena"] = told
        return chunks

    def _role(self, index: int) -> list[dict[str, Any]]:
        if index in self._begun:
            return []
        self._begun.add(index)
        if not self.chat:
            return []
        opening = {"role": "assistant", "content": "", "refusal": None}
        return [self._chunk([{"index": index, "delta": opening, "logprobs": None, "finish_reason": None}])]

    def _chunk(self, choices: list[dict[str, Any]]) -> dict[str, Any]:
        chunk: dict[str, Any] = {
            "id": self.id,
            "object": "chat.completion.chunk" if self.chat else "text_completion",
            "created": self.created_s,
            "model": self.model,
            "choices": choices,
        }
        if self.usage:
            chunk["usage"] = None
        return chunk


async def respond(events: Events, chunks: Chunks) -> Response:
    """A streaming response, once the first chunk is there; errors before that are raised."""
    pump = Pump(events)
    first: list[dict[str, Any]] = []
    try:
        async for event in pump:
            first = chunks.of(event)
            if first:
                break
    except BaseException:
        await pump.stop()
        raise
    return Streamed(_body(first, pump, chunks), pump)


async def _body(
    first: list[dict[str, Any]], pump: Pump[executor_pb2.RunResponse], chunks: Chunks
) -> AsyncIterator[bytes]:
    try:
        for chunk in first:
            yield event_bytes(chunk)
        async for event in pump:
            for chunk in chunks.of(event):
                yield event_bytes(chunk)
    except Exception as error:
        told = deepest(error)
        if told.code == "internal":
            log.exception("stream failed")
        yield event_bytes(openai.error_json(told))
        return
    yield DONE
