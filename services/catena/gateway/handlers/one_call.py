"""`parallel_tool_calls: false`: of the calls that a model asks for in one answer only the first is passed on.

Not every provider can be told, so it is held to here, whatever answered.
"""

from collections.abc import AsyncGenerator
from contextlib import aclosing

from catena.api.executor.v1 import executor_pb2
from catena.api.types.v1 import types_pb2

Events = AsyncGenerator[executor_pb2.RunResponse, None]


async def one_call(events: Events) -> Events:
    """The events without calls after an answer's first."""
    async with aclosing(events):
        async for event in events:
            if event.HasField("delta"):
                keep_first(event.delta)
            elif event.HasField("finished"):
                for choice in event.finished.choices:
                    keep_first(choice.message)
            yield event


def keep_first(told: types_pb2.Delta | types_pb2.ChatMessage) -> None:
    """Drop the calls whose place is not the first."""
    kept = [call for call in told.tool_calls if call.index == 0]
    if len(kept) < len(told.tool_calls):
        del told.tool_calls[:]
        told.tool_calls.extend(kept)
