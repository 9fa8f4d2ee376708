"""The model may search memory before it answers: think, `<search>`, `<context>`, answer.

After Search-R1 (arXiv 2503.09516).
"""

import re
from dataclasses import replace

from catena.executor.core.actions import Call, Decision, Lookup, Result, Strategy
from catena.executor.core.chat import ChatRequest, Choice, Message
from catena.executor.core.prompts import context_block, for_stage, one
from catena.executor.core.strategies.facts import Facts
from catena.plan.model import Plan, Role

CLOSE = "</search>"
MOST_STOPS = 4
"""OpenAI's interface takes no more."""
_QUERY = re.compile(r"<search>(.*?)(?:</search>|\Z)", re.DOTALL)
_THOUGHT = re.compile(r"<think>.*?</think>", re.DOTALL)
_ASIDE = re.compile(r"<(think|search|context|information)>.*?(?:</\1>|\Z)", re.DOTALL)
_ANSWER = re.compile(r"<answer>(.*?)(?:</answer>|\Z)", re.DOTALL)


def search(plan: Plan, request: ChatRequest, facts: Facts) -> Strategy:
    """The final answer, its queries and the whole trace. What is injected is input of the next call, never output."""
    main, settings = plan.of(Role.MAIN)[0], plan.settings
    collection = settings.collection or facts.collection
    asked = for_stage(one(_stopping(request)), main)
    queries: list[str] = []
    trace: list[str] = []
    while True:
        result: Result = yield Call(stage=main, request=asked)
        said = result.must().text
        asks = query_of(said) if len(queries) < settings.max_searches else None
        if asks is None:
            trace.append(said)
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
        block = context_block(found)
        trace += [said, block]
        turns = asked.messages or (Message(role="user", content=asked.prompt),)
        told = (Message(role="assistant", content=said), Message(role="user", content=block))
        asked = replace(asked, prompt="", messages=(*turns, *told))


def query_of(text: str) -> tuple[int, str] | None:
    """Where the model asks to look something up, and what; None: it does not. Thoughts do not count."""
    found = _QUERY.search(_THOUGHT.sub(lambda thought: " " * len(thought[0]), text))
    return (found.start(), found[1].strip()) if found and found[1].strip() else None


def final_answer(text: str) -> str:
    """The words of the answer alone: without thoughts, queries and context; inside `<answer>` where that is used."""
    inside = _ANSWER.search(text)
    return (inside[1] if inside else _ASIDE.sub("", text)).strip()


def _stopping(request: ChatRequest) -> ChatRequest:
    if len(request.sampling.stop) >= MOST_STOPS:
        return request
    return replace(request, sampling=replace(request.sampling, stop=(*request.sampling.stop, CLOSE)))


def _decision(result: Result, queries: list[str], trace: list[str]) -> Decision:
    last = result.choices[0] if result.choices else Choice()
    answer = replace(last, message=replace(last.message, content=final_answer(last.text)))
    return Decision(choices=(answer,), model=result.model, queries=tuple(queries), trace="\n".join(trace))
