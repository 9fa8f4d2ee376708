"""Answers of generateContent: each chunk of a stream is a response of its own, with the pieces that are new."""

from dataclasses import dataclass, field
from typing import Any

import msgspec

from catena.executor.core.chat import Delta, ToolCall, Usage
from catena.executor.drivers.gemini.body import MADE_UP, SIGNED
from catena.kit.errors import Invalid, Unavailable

FINISHES = {"STOP": "stop", "MAX_TOKENS": "length"}
FILTERED = frozenset(
    {"SAFETY", "RECITATION", "BLOCKLIST", "PROHIBITED_CONTENT", "SPII", "LANGUAGE", "IMAGE_SAFETY", "MODEL_ARMOR"}
)


class Called(msgspec.Struct):
    """A function call, whole."""

    name: str = ""
    args: dict[str, Any] = {}
    id: str = ""


class Part(msgspec.Struct, rename="camel"):
    """A piece of an answer; a `thought` is not part of it."""

    text: str = ""
    thought: bool = False
    function_call: Called | None = None
    thought_signature: str = ""


class Content(msgspec.Struct):
    """The pieces."""

    parts: list[Part] = []


class Candidate(msgspec.Struct, rename="camel"):
    """One of the answers."""

    index: int = 0
    content: Content | None = None
    finish_reason: str | None = None


class Counted(msgspec.Struct, rename="camel"):
    """Tokens; those of thoughts are not among the candidates'."""

    prompt_token_count: int | None = None
    cached_content_token_count: int = 0
    candidates_token_count: int = 0
    thoughts_token_count: int = 0
    tool_use_prompt_token_count: int = 0


class Feedback(msgspec.Struct, rename="camel"):
    """What was found about the prompt."""

    block_reason: str | None = None


class Fault(msgspec.Struct):
    """What went wrong, told within a stream."""

    message: str = ""


class Reply(msgspec.Struct, rename="camel"):
    """A chunk, or a whole answer."""

    candidates: list[Candidate] = []
    prompt_feedback: Feedback | None = None
    usage_metadata: Counted | None = None
    model_version: str = ""
    response_id: str = ""
    error: Fault | None = None


DECODER = msgspec.json.Decoder(Reply)


def thinks(reply: Reply) -> bool:
    """Whether the chunk has thoughts, which are no part of the answer."""
    return any(part.thought for one in reply.candidates if one.content for part in one.content.parts)


@dataclass(slots=True)
class Reading:
    """What has been read of one call."""

    model: str = ""
    usage: Usage | None = None
    _begun: set[int] = field(default_factory=set)
    _ended: set[int] = field(default_factory=set)
    _calls: dict[int, int] = field(default_factory=dict)

    @property
    def finished(self) -> bool:
        """Whether every answer has said why it ended."""
        return bool(self._begun) and self._begun == self._ended

    def read(self, reply: Reply) -> list[Delta]:
        """What the chunk adds. Raises Invalid (`content_filter`) for a blocked prompt, Unavailable for a failure."""
        if reply.error is not None:
            told = reply.error.message[:300]
            raise Unavailable(f"the provider broke its answer off: {told}", code="provider_error")
        if reply.prompt_feedback and reply.prompt_feedback.block_reason:
            reason = reply.prompt_feedback.block_reason
            raise Invalid(f"the provider blocked the prompt: {reason}", code="content_filter")
        self.model = reply.model_version or self.model
        self.usage = _usage(reply.usage_metadata) or self.usage
        return [delta for one in reply.candidates if one.index not in self._ended for delta in self._added(one, reply)]

    def _added(self, candidate: Candidate, reply: Reply) -> list[Delta]:
        index = candidate.index
        self._begun.add(index)
        parts = candidate.content.parts if candidate.content else []
        deltas = [self._piece(part, index, reply.response_id) for part in parts if not part.thought]
        if candidate.finish_reason:
            self._ended.add(index)
            deltas.append(Delta(index=index, finish_reason=self._finish(candidate.finish_reason, index)))
        return deltas

    def _piece(self, part: Part, index: int, response_id: str) -> Delta:
        called = part.function_call
        if called is None:
            return Delta(index=index, text=part.text)
        place = self._calls.get(index, 0)
        self._calls[index] = place + 1
        name = called.id or f"{MADE_UP}{response_id}_{index}_{place}"
        call = ToolCall(
            id=f"{name}{SIGNED}{part.thought_signature}" if part.thought_signature else name,
            name=called.name,
            arguments=msgspec.json.encode(called.args).decode(),
            index=place,
        )
        return Delta(index=index, tool_calls=(call,))

    def _finish(self, reason: str, index: int) -> str:
        if reason in FILTERED:
            return "content_filter"
        if reason not in FINISHES:
            raise Unavailable(f"the provider broke its answer off: {reason}", code="provider_error")
        return "tool_calls" if reason == "STOP" and self._calls.get(index) else FINISHES[reason]


def _usage(told: Counted | None) -> Usage | None:
    if told is None or told.prompt_token_count is None:
        return None
    return Usage(
        input_tokens=told.prompt_token_count + told.tool_use_prompt_token_count,
        output_tokens=told.candidates_token_count + told.thoughts_token_count,
        cached_input_tokens=told.cached_content_token_count,
        reasoning_tokens=told.thoughts_token_count,
    )
