"""The model may search memory before it answers: think, `<search>`, `<context>`, answer.

After Search-R1 (arXiv 2503.09516).
"""

import re
from collections.abc import Callable, Sequence
from dataclasses import replace

from catena.executor.core.actions import Call, Decision, Lookup, Result, Strategy
from catena.executor.core.chat import ChatRequest, Choice, Delta, Message
from catena.executor.core.checks import fits
from catena.executor.core.prompts import context_block, one, unconstrained
from catena.executor.core.strategies.facts import Facts
from catena.executor.core.strategies.staging import staged
from catena.plan.model import Plan, Role

CLOSE = "</search>"
MOST_STOPS = 4
"""OpenAI's interface takes no more."""
IN_FORM = "Now give the final answer alone, in the form that was asked for."
_QUERY = re.compile(r"<search>(.*?)(?:</search>|\Z)", re.DOTALL)
_THOUGHT = re.compile(r"<think>.*?</think>", re.DOTALL)
_THINKING = re.compile(r"<think>.*?(?:</think>|\Z)", re.DOTALL)
_ASIDE = re.compile(r"<(think|search|context|information)>.*?(?:</\1>|\Z)", re.DOTALL)
_ANSWER = re.compile(r"<answer>(.*?)(?:</answer>|\Z)", re.DOTALL)
_PARTS = tuple("</answer>"[:length] for length in range(8, 0, -1))


def search(plan: Plan, request: ChatRequest, facts: Facts) -> Strategy:
    """The final answer, its queries and the whole trace. What is injected is input of the next call, never output.

    A constraint would keep a model from searching, so it holds for the answer alone: one that does not keep it is
    asked for once more, under it. The answer streams from `<answer>` on; unmarked, it comes when it is whole, because
    until then a query may follow.
    """
    main, settings = plan.of(Role.MAIN)[0], plan.settings
    collection = settings.collection or facts.collection
    asked = yield from staged(one(_stopping(request)), main)
    free = unconstrained(asked)
    # Of tokens with their probabilities it could not be told which of them the answer is made of.
    shows = not request.constrained and not request.sampling.logprobs
    queries: list[str] = []
    trace: list[str] = []
    while True:
        result: Result = yield Call(stage=main, request=free, stream=shows, sift=sifting if shows else None)
        said = result.must().text
        calls = bool(result.choices and result.choices[0].message.tool_calls)
        asks = query_of(said) if len(queries) < settings.max_searches and not calls else None
        if asks is None:
            trace.append(said)
            if request.constrained and not calls and fits(request, final_answer(said)) is not True:
                break
            return _decision(result, queries, trace)
        start, query = asks
        queries.append(query)
        said = f"{said[:start]}<search>{query}{CLOSE}"
        found = yield Lookup(
            query=query,
            collection=collection,
            n_results=settings.n_results,
            result_format=settings.result_format,
        )
        block = context_block(found, settings.context_tag)
        trace += [said, block]
        free = _told(free, said, block)
    formed = replace(
        _told(free, said, IN_FORM), json_schema=request.json_schema, regex=request.regex, choices=request.choices
    )
    final: Result = yield Call(stage=main, request=formed, stream=True)
    trace.append(final.must().text)
    answer = final.choices or (Choice(),)
    return Decision(
        choices=answer, model=final.model, streamed=final.streamed, queries=tuple(queries), trace="\n".join(trace)
    )


def _told(asked: ChatRequest, said: str, block: str) -> ChatRequest:
    """The conversation with what the model said and what it is told thereupon."""
    turns = asked.messages or (Message(role="user", content=asked.prompt),)
    more = (Message(role="assistant", content=said), Message(role="user", content=block))
    return replace(asked, prompt="", messages=(*turns, *more))


def query_of(text: str) -> tuple[int, str] | None:
    """Where the model asks to look something up, and what; None: it does not. Neither thoughts nor answers count.

    A thought that ends with a query did not end: the stop text cut it there, so it is asked.
    """
    bare = _blanked(text, _THOUGHT)
    found = _QUERY.search(bare)
    answered = bare.find("<answer>")
    if found is None or not found[1].strip() or 0 <= answered < found.start():
        return None
    return found.start(), found[1].strip()


def final_answer(text: str) -> str:
    """The words of the answer alone: without thoughts, queries and context; inside `<answer>` where that is used."""
    inside = _ANSWER.search(_blanked(text))
    return (text[inside.start(1) : inside.end(1)] if inside else _ASIDE.sub("", text)).strip()


def sifting() -> Callable[[Sequence[Delta]], list[Delta]]:
    """Picks the words of `<answer>` out of a stream, as `final_answer` will, and its end if there were any."""
    heard, sent = "", ""
    quiet = False

    def sift(deltas: Sequence[Delta]) -> list[Delta]:
        nonlocal heard, sent, quiet
        passed = []
        for delta in deltas:
            heard += delta.text
            # With tools asked for before its first word, the answer comes when it is whole.
            quiet = quiet or (bool(delta.tool_calls) and not sent)
            shown = "" if quiet else _shown(heard, whole=bool(delta.finish_reason))
            more, sent = shown[len(sent) :], shown
            if more or (sent and (delta.finish_reason or delta.tool_calls)):
                passed.append(replace(delta, text=more))
        return passed

    return sift


def _shown(heard: str, *, whole: bool) -> str:
    """What of an answer under way will be in it for certain."""
    bare = _blanked(heard)
    start = bare.find("<answer>")
    if start < 0 or query_of(heard) is not None:
        return ""
    if whole or "</answer>" in bare[start:]:
        return final_answer(heard)
    inside = heard[start + len("<answer>") :]
    held = next((part for part in _PARTS if inside.endswith(part)), "")
    return inside[: len(inside) - len(held)].strip()


def _blanked(text: str, thoughts: re.Pattern[str] = _THINKING) -> str:
    """`text` with its thoughts blanked out, every other letter in its place."""
    return thoughts.sub(lambda thought: " " * len(thought[0]), text)


def _stopping(request: ChatRequest) -> ChatRequest:
    if len(request.sampling.stop) >= MOST_STOPS:
        return request
    return replace(request, sampling=replace(request.sampling, stop=(*request.sampling.stop, CLOSE)))


def _decision(result: Result, queries: list[str], trace: list[str]) -> Decision:
    last = result.choices[0] if result.choices else Choice()
    answer = replace(last, message=replace(last.message, content=final_answer(last.text)))
    return Decision(
        choices=(answer,),
        model=result.model,
        streamed=result.streamed,
        queries=tuple(queries),
        trace="\n".join(trace),
    )
