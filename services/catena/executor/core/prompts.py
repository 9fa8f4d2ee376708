"""How a stage's words are put around a request: instruction, draft, context. The same for every model."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import msgspec

from catena.executor.core.chat import ChatRequest, Choice, Message
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
    """`request` with a draft behind the last user turn, or as a turn of its own behind the results of tools."""
    turns = _turns(request)
    if turns[-1].role != "user":
        return replace(request, prompt="", messages=(*turns, Message(role="user", content=f"draft: {draft}")))
    return _edit_last_user(request, lambda text: f"{text}\ndraft: {draft}")


def with_question(request: ChatRequest, words: str) -> ChatRequest:
    """`request` with other words in place of the user's last ones, or of its raw prompt."""
    return replace(request, prompt=words) if request.prompt else _edit_last_user(request, lambda text: words)


def with_context(request: ChatRequest, found: Sequence[str]) -> ChatRequest:
    """`request` with what memory found before the last user turn."""
    return _edit_last_user(request, lambda text: f"{context_block(found)}\n{text}")


def context_block(found: Sequence[str], tag: str = "context") -> str:
    """Results as a model reads them."""
    return f"<{tag}>" + "\n".join(found) + f"</{tag}>"


def with_features(request: ChatRequest, entity: str, values: Mapping[str, Any]) -> ChatRequest:
    """`request` with what is known of an entity as a system instruction."""
    told = msgspec.json.encode(values, order="sorted").decode()
    return instructed(request, f"Known about {entity}: {told}")


def plain(request: ChatRequest) -> ChatRequest:
    """`request` without tools, constraints and alternatives: for drafts of lines and judges."""
    return replace(drafting(request), tools=(), tool_choice="")


def drafting(request: ChatRequest) -> ChatRequest:
    """`request` without constraints and alternatives: a draft is free in form, but may say which tools it would use."""
    sampling = replace(request.sampling, n=1, logprobs=False, top_logprobs=0)
    return replace(unconstrained(request), sampling=sampling)


def unconstrained(request: ChatRequest) -> ChatRequest:
    """`request` for an answer of any form."""
    return replace(request, json_schema=None, regex="", choices=())


def spoken(choice: Choice) -> str:
    """An answer as another model reads it: its words, and the tools that it asks for."""
    calls = [f"call {call.name}({call.arguments})" for call in choice.message.tool_calls]
    return "\n".join(filter(None, (choice.text, *calls)))


def judging(request: ChatRequest, instruction: str, listed: str) -> ChatRequest:
    """A judge is asked: the conversation without tools and the caller's instructions, then what is to be judged."""
    turns = _turns(request)
    last = next((turn for turn in reversed(turns) if turn.role == "user"), Message(role="user"))
    before = [turn for turn in turns if turn is not last and turn.role in ("user", "assistant") and turn.content]
    said = tuple(replace(turn, tool_calls=()) for turn in before)
    asked = replace(last, content=f"{last.content}\n\n{listed}")
    system = Message(role="system", content=instruction)
    return ChatRequest(messages=(system, *said, asked), sampling=plain(request).sampling)


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
