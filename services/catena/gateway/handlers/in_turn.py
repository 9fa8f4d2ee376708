"""Several prompts of one completion, answered as one run: OpenAI numbers their choices on and adds up their tokens."""

from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing

from catena.api.executor.v1 import executor_pb2
from catena.api.types.v1 import types_pb2
from catena.gateway.handlers.asking import Asking, Question


async def in_turn(asking: Asking, questions: Sequence[Question]) -> AsyncGenerator[executor_pb2.RunResponse, None]:
    """The executor's events for one question after the other, each admitted by itself; one `finished` last.

    It bears the first execution's id, and what caches saved names the first of theirs.
    """
    whole = executor_pb2.Finished()
    for number, question in enumerate(questions):
        first = number * (question.request.sampling.n or 1)
        async with aclosing(asking.run(question)) as events:
            async for event in events:
                if event.HasField("finished"):
                    _add(whole, event.finished, first)
                    continue
                if event.HasField("delta"):
                    event.delta.index += first
                yield event
    yield executor_pb2.RunResponse(finished=whole)


def _add(whole: executor_pb2.Finished, part: executor_pb2.Finished, first: int) -> None:
    for choice in part.choices:
        choice.index += first
    if not whole.execution_id:
        whole.CopyFrom(part)
        return
    whole.choices.extend(part.choices)
    whole.stages.extend(part.stages)
    whole.scores.extend(part.scores)
    _count(whole.usage, part.usage)
    whole.cost_usd += part.cost_usd
    whole.duration_ms += part.duration_ms
    whole.cached = whole.cached and part.cached
    whole.lossy = whole.lossy or part.lossy
    if part.HasField("saved") and not whole.HasField("saved"):
        whole.saved.CopyFrom(part.saved)
    elif part.HasField("saved"):
        _count(whole.saved.usage, part.saved.usage)
        whole.saved.cost_usd += part.saved.cost_usd


def _count(whole: types_pb2.Usage, part: types_pb2.Usage) -> None:
    for field in part.DESCRIPTOR.fields:
        setattr(whole, field.name, getattr(whole, field.name) + getattr(part, field.name))
