"""What is asked and what is answered, as the core computes on it; `handlers` turns it from and into messages."""

import itertools
import operator
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any


@dataclass(frozen=True, slots=True, kw_only=True)
class ToolCall:
    """A tool that the model asks for; `arguments` is JSON text exactly as written, possibly a fragment in a delta."""

    id: str = ""
    name: str = ""
    arguments: str = ""
    index: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Image:
    """An image by https or data URL; `detail` empty means auto."""

    url: str
    detail: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Message:
    """One turn. `role` is `system`, `user`, `assistant` or `tool`."""

    role: str
    content: str = ""
    images: tuple[Image, ...] = ()
    tool_calls: tuple[ToolCall, ...] = ()
    tool_call_id: str = ""
    name: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Tool:
    """A function that the model may ask for; `parameters` is a JSON schema."""

    name: str
    description: str = ""
    parameters: Mapping[str, Any] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Sampling:
    """How tokens are drawn. `max_tokens` 0: as many as the context leaves; None: the model's default.

    `top_k` 0: all tokens. `logit_bias`: token numbers of the model asked, with what is added to their logits. With
    `ignore_eos` only `max_tokens` and `stop` end an answer; before `min_tokens` nothing does.
    """

    max_tokens: int = 0
    temperature: float | None = None
    top_p: float | None = None
    seed: int | None = None
    stop: tuple[str, ...] = ()
    n: int = 1
    logprobs: bool = False
    top_logprobs: int = 0
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    top_k: int = 0
    min_p: float | None = None
    repetition_penalty: float | None = None
    logit_bias: tuple[tuple[int, float], ...] = ()
    ignore_eos: bool = False
    min_tokens: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class ChatRequest:
    """What a model is asked: `messages`, or a raw `prompt` to continue.

    At most one of `json_schema`, `regex` and `choices` says what the answer must look like; none: free text.
    `begun`: the answer's beginning, which only providers that verify drafts are asked to go on from. `one_call`: an
    answer asks for one tool at most.
    """

    messages: tuple[Message, ...] = ()
    prompt: str = ""
    sampling: Sampling = Sampling()
    tools: tuple[Tool, ...] = ()
    tool_choice: str = ""
    json_schema: Mapping[str, Any] | None = None
    regex: str = ""
    choices: tuple[str, ...] = ()
    begun: str = ""
    one_call: bool = False

    @property
    def constrained(self) -> bool:
        """Whether the answer must look a certain way."""
        return self.json_schema is not None or bool(self.regex) or bool(self.choices)

    @property
    def greedy(self) -> bool:
        """Whether the answer is one free text, made of the likeliest token at each place and nothing else."""
        plain = Sampling(max_tokens=self.sampling.max_tokens, temperature=0.0, seed=self.sampling.seed)
        free = self.sampling == plain and not (self.tools or self.constrained or self.prompt)
        return free and self.messages[-1].role != "assistant"

    @property
    def needs(self) -> frozenset[str]:
        """Capabilities, as the catalogue names them, without which a model cannot take this at all."""
        tools = (self.tools and self.tool_choice != "none") or any(turn.tool_calls for turn in self.messages)
        images = any(turn.images for turn in self.messages)
        return frozenset(name for name, needed in (("tools", tools), ("vision", images)) if needed)

    @property
    def asked(self) -> str:
        """What the user asked last; of a raw prompt, all of it."""
        return next((turn.content for turn in reversed(self.messages) if turn.role == "user"), self.prompt)

    @property
    def chars(self) -> int:
        """Characters to be read, for estimates."""
        return len(self.prompt) + sum(len(message.content) for message in self.messages)


@dataclass(frozen=True, slots=True, kw_only=True)
class Usage:
    """Tokens read (those from and to the provider's cache included) and written (reasoning included)."""

    input_tokens: int = 0
    output_tokens: int = 0
    cached_input_tokens: int = 0
    reasoning_tokens: int = 0
    cache_write_tokens: int = 0

    def __add__(self, other: "Usage") -> "Usage":
        """Both together."""
        return Usage(
            input_tokens=self.input_tokens + other.input_tokens,
            output_tokens=self.output_tokens + other.output_tokens,
            cached_input_tokens=self.cached_input_tokens + other.cached_input_tokens,
            reasoning_tokens=self.reasoning_tokens + other.reasoning_tokens,
            cache_write_tokens=self.cache_write_tokens + other.cache_write_tokens,
        )


NOTHING_USED = Usage()


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenLogprob:
    """A token with its natural log-probability and the likeliest alternatives."""

    token: str
    logprob: float
    top: tuple["TokenLogprob", ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Delta:
    """A piece to append to answer `index`; `finish_reason` empty: not finished."""

    index: int = 0
    text: str = ""
    tool_calls: tuple[ToolCall, ...] = ()
    logprobs: tuple[TokenLogprob, ...] = ()
    finish_reason: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """A whole answer. `finish_reason` is `stop`, `length`, `tool_calls` or `content_filter`."""

    index: int = 0
    message: Message = Message(role="assistant")
    finish_reason: str = "stop"
    logprobs: tuple[TokenLogprob, ...] = ()

    @property
    def text(self) -> str:
        """The words of the answer."""
        return self.message.content


@dataclass(frozen=True, slots=True, kw_only=True)
class Context:
    """Who asks, for what, within which bounds; empty and 0 as the proto says."""

    agent_type: str = ""
    agent_id: str = ""
    user_id: str = ""
    workflow_type: str = ""
    task: str = ""
    critical: bool = False
    objective: str = ""
    max_latency_ms: float = 0.0
    max_cost_usd: float = 0.0
    feature_vector: str = ""
    memory_collection: str = ""
    metadata: Mapping[str, str] = field(default_factory=dict)


NOBODY = Context()


@dataclass(frozen=True, slots=True, kw_only=True)
class Score:
    """How good an answer is, 0 to 1, and who says so."""

    value: float
    source: str


def gather(deltas: Iterable[Delta]) -> tuple[Choice, ...]:
    """Whole answers from their pieces, by index. Fragments of a tool call are joined by its index."""
    parts: dict[int, list[Delta]] = {}
    for delta in deltas:
        parts.setdefault(delta.index, []).append(delta)
    return tuple(_join(index, parts[index]) for index in sorted(parts))


def _join(index: int, pieces: list[Delta]) -> Choice:
    message = Message(
        role="assistant",
        content="".join(piece.text for piece in pieces),
        tool_calls=_whole_calls(call for piece in pieces for call in piece.tool_calls),
    )
    reason = next((piece.finish_reason for piece in reversed(pieces) if piece.finish_reason), "")
    logprobs = tuple(token for piece in pieces for token in piece.logprobs)
    return Choice(index=index, message=message, finish_reason=reason, logprobs=logprobs)


def _whole_calls(fragments: Iterable[ToolCall]) -> tuple[ToolCall, ...]:
    """One call an index, in their order, from its successive fragments."""
    found: dict[int, ToolCall] = {}
    for call in fragments:
        before = found.get(call.index)
        if before is not None:
            arguments = before.arguments + call.arguments
            call = replace(before, id=before.id or call.id, name=before.name or call.name, arguments=arguments)
        found[call.index] = call
    return tuple(found[index] for index in sorted(found))


def as_deltas(choices: Iterable[Choice]) -> list[Delta]:
    """Whole answers as one piece each, for a stream that begins when the answer is known."""
    return [
        Delta(
            index=choice.index,
            text=choice.text,
            tool_calls=choice.message.tool_calls,
            logprobs=choice.logprobs,
            finish_reason=choice.finish_reason,
        )
        for choice in choices
    ]


def joined(deltas: Iterable[Delta]) -> tuple[Delta, ...]:
    """The same pieces, neighbours of one answer as one."""
    return tuple(merged(list(several)) for _, several in itertools.groupby(deltas, key=_INDEX))


def first_call(calls: tuple[ToolCall, ...]) -> tuple[ToolCall, ...]:
    """The calls, or fragments of calls, that belong to an answer's first."""
    return tuple(call for call in calls if call.index == 0)


def merged(several: Sequence[Delta]) -> Delta:
    """Successive pieces of one answer as one.

    A call has one fragment in it: clients take the fragments of one piece for different calls.
    """
    if len(several) == 1:
        return several[0]
    return Delta(
        index=several[0].index,
        text="".join(delta.text for delta in several),
        tool_calls=_whole_calls(call for delta in several for call in delta.tool_calls),
        logprobs=tuple(token for delta in several for token in delta.logprobs),
        finish_reason=next((delta.finish_reason for delta in reversed(several) if delta.finish_reason), ""),
    )


_INDEX = operator.attrgetter("index")
