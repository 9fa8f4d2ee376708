"""Tools with the real engine: told, demanded, called, answered."""

import json

import pytest

from tests.contract.adapters.conftest import Room
from tests.contract.adapters.test_room import question, text_of

pytestmark = pytest.mark.asyncio(loop_scope="module")


async def test_tools_are_called_where_they_must_be_and_their_results_are_read(room: Room) -> None:
    asked = question("demo-large", max_tokens=200, n=2, temperature=1.0)
    city = {"type": "object", "properties": {"city": {"enum": ["Rome", "Oslo"]}}, "required": ["city"]}
    city |= {"additionalProperties": False}
    asked.request.tools.add(name="weather", description="How warm it is").parameters.update(city)
    asked.request.tools.add(name="time")
    asked.request.tool_choice = "weather"

    answer = await room.stream(asked)

    deltas = [delta for response in answer for delta in response.deltas]
    calls = {delta.index: call for delta in deltas for call in delta.tool_calls}
    assert sorted(calls) == [0, 1]
    assert len({call.id for call in calls.values()}) == 2
    for call in calls.values():
        assert (call.name, call.index) == ("weather", 0)
        assert json.loads(call.arguments)["city"] in ("Rome", "Oslo")
    assert text_of(answer) == ""
    assert {delta.finish_reason for delta in deltas if delta.finish_reason} == {"tool_calls"}

    asked.request.tool_choice = "auto"
    asked.request.messages.add(role="assistant").tool_calls.append(calls[0])
    asked.request.messages.add(role="tool", content="21", tool_call_id=calls[0].id)
    told = await room.stream(asked)
    asked.request.tool_choice = "none"
    untold = await room.stream(asked)
    assert told[-1].done.usage.input_tokens - untold[-1].done.usage.input_tokens > 100
