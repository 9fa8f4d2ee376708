"""How a stage's words are put around a request: instruction, draft, context. The same for every model."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import msgspec

from catena.executor.core.chat import ChatRequest, Message
from catena.plan.model import Stage


def for_stage(request: ChatRequest, stage: Stage) -> ChatRequest:
    """`request` with the stage's instruction before the caller's own, and the stage's temperature."""
    if stage.temperature is not None:
        request = replace(request, sampling=replace(request.sampling, temperature=stage.temperature))
    return instructed(request, stage.instruction)


def instructed(request: ChatRequest, instruction: str) -> ChatRequest:
    """`request` with a system instruction first; one that the caller gave follows in the same turn."""
    if not instruction:
        return request
    turns = _turns(request)
    if turns and turns[0].role == "system":
        first = replace(turns[0], content=f"{instruction}\n\n{turns[0].content}")
        return replace(request, prompt="", messages=(first, *turns[1:]))
    return replace(request, prompt="", messages=(Message(role="system", content=instruction), *turns))


def with_draft(request: ChatRequest, draft: str) -> ChatRequest:
    """`request` with a draft behind the last user turn."""
    return _edit_last_user(request, lambda text: f"{text}\ndraft: {draft}")


def with_context(request: ChatRequest, found: Sequence[str]) -> ChatRequest:
    """`request` with what memory found before the last user turn."""
    return _edit_last_user(request, lambda text: f"{context_block(found)}\n{text}")


def context_block(found: Sequence[str]) -> str:
    """Results as a model reads them."""
    return "<context>" + "\n".join(found) + "</context>"


def with_features(request: ChatRequest, entity: str, values: Mapping[str, Any]) -> ChatRequest:
    """`request` with what is known of an entity as a system instruction."""
    told = msgspec.json.encode(values, order="sorted").decode()
    return instructed(request, f"Known about {entity}: {told}")


def plain(request: ChatRequest) -> ChatRequest:
    """`request` without tools, constraints and alternatives: for drafts and judges."""
    sampling = replace(request.sampling, n=1, logprobs=False, top_logprobs=0)
    return replace(request, tools=(), tool_choice="", json_schema=None, regex="", choices=(), sampling=sampling)


def one(request: ChatRequest) -> ChatRequest:
    """`request` for a single answer."""
    return request if request.sampling.n == 1 else replace(request, sampling=replace(request.sampling, n=1))


def question(request: ChatRequest) -> str:
    """The last thing that the user said."""
    return next((turn.content for turn in reversed(_turns(request)) if turn.role == "user"), "")


def _turns(request: ChatRequest) -> tuple[Message, ...]:
    return request.messages or (Message(role="user", content=request.prompt),)


def _edit_last_user(request: ChatRequest, edit: Callable[[str], str]) -> ChatRequest:
    turns = list(_turns(request))
    for place in range(len(turns) - 1, -1, -1):
        if turns[place].role == "user":
            turns[place] = replace(turns[place], content=edit(turns[place].content))
            return replace(request, prompt="", messages=tuple(turns))
    return replace(request, prompt="", messages=(*turns, Message(role="user", content=edit(""))))
