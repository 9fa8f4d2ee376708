"""Several prompts of one completion, put together as one answer."""

from collections.abc import AsyncIterator
from types import SimpleNamespace
from typing import Any

import pytest

from catena.api.executor.v1 import executor_pb2
from catena.api.types.v1 import types_pb2
from catena.gateway.handlers.in_turn import in_turn

pytestmark = pytest.mark.unit


def finished(id_: str, *, saved_usd: float | None) -> executor_pb2.Finished:
    usage = types_pb2.Usage(input_tokens=3, cache_write_tokens=2)
    choice = types_pb2.Choice(message=types_pb2.ChatMessage(content=id_))
    made = executor_pb2.Finished(execution_id=id_, choices=[choice], usage=usage, cost_usd=1.0)
    if saved_usd is not None:
        made.cached = True
        made.saved.CopyFrom(executor_pb2.Saved(usage=usage, cost_usd=saved_usd, execution_id=f"of {id_}"))
    return made


async def joined(*parts: executor_pb2.Finished) -> executor_pb2.Finished:
    left = iter(parts)

    async def run(question: Any) -> AsyncIterator[executor_pb2.RunResponse]:
        yield executor_pb2.RunResponse(finished=next(left))

    asking: Any = SimpleNamespace(run=run)
    one: Any = SimpleNamespace(request=types_pb2.ChatRequest())
    events = [event async for event in in_turn(asking, [one] * len(parts))]
    return events[-1].finished


async def test_choices_are_numbered_on_and_figures_added_up() -> None:
    whole = await joined(finished("a", saved_usd=None), finished("b", saved_usd=None))
    assert [(one.index, one.message.content) for one in whole.choices] == [(0, "a"), (1, "b")]
    assert (whole.execution_id, whole.cost_usd, whole.cached) == ("a", 2.0, False)
    assert (whole.usage.input_tokens, whole.usage.cache_write_tokens) == (6, 4)
    assert not whole.HasField("saved")


@pytest.mark.parametrize(
    ("saved", "usd", "first"),
    [((0.5, 0.25), 0.75, "of a"), ((None, 0.25), 0.25, "of b"), ((0.5, None), 0.5, "of a")],
)
async def test_what_caches_saved_is_added_up(saved: tuple[float | None, float | None], usd: float, first: str) -> None:
    whole = await joined(finished("a", saved_usd=saved[0]), finished("b", saved_usd=saved[1]))
    told = [one for one in saved if one is not None]
    assert whole.saved.cost_usd == usd
    assert whole.saved.usage.input_tokens == 3 * len(told)
    assert whole.saved.execution_id == first
    assert whole.cached is (len(told) == 2)
