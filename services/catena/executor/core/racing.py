"""Two copies of one call: the first that shows life is the answer, the other is given up."""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from catena.executor.core.hearing import Heard
from catena.kit.errors import CatenaError


@dataclass(slots=True)
class Race:
    """`second` is set by who sends it, if it is sent at all."""

    leader: Heard | None = None
    second: asyncio.Task[None] | None = None
    _way_out: asyncio.Timeout | None = None

    def claim(self, heard: Heard) -> bool:
        """Whether `heard` leads, now that it shows life; a first copy that is behind is called off."""
        if self.leader is None:
            self.leader, heard.leads = heard, True
            if self._way_out is not None and asyncio.current_task() is self.second:
                self._way_out.reschedule(asyncio.get_running_loop().time())
        return self.leader is heard

    async def first(self, listen: Callable[[], Awaitable[None]], heard: Heard) -> None:
        """Hear the first copy, or, where the second overtakes it or outlives its failure, the second.

        Raises what ended the leader, and what ended the first where neither did.
        """
        way_out = asyncio.timeout(None)
        try:
            async with way_out:
                self._way_out = way_out
                try:
                    await listen()
                finally:
                    self._way_out = None
        except TimeoutError:
            if self.leader in (None, heard):
                raise
        except CatenaError:
            if self.second is None or self.leader is heard:
                raise
            await asyncio.wait([self.second])
            if self.leader is None:
                raise
        if self.second is not None and self.leader is not heard:
            await self.second
