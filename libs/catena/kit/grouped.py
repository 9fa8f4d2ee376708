"""Work that costs nearly as much for many as for one, done for all who ask at about the same time: group commit."""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import Generic, TypeVar

from catena.kit.errors import CatenaError, Late, Unavailable

Item = TypeVar("Item")


class Grouped(Generic[Item]):
    """`await grouped(item)` returns once `work` is done for a group that holds it, and raises what `work` raised.

    Whoever comes first waits `linger_s` for others, `most` at most, and works for all of them. Where a part that
    `work` needs is down, all hear it; any other error is its own item's: then each is worked upon alone.
    """

    def __init__(self, work: Callable[[Sequence[Item]], Awaitable[None]], *, linger_s: float, most: int) -> None:
        """Nothing is started."""
        self._work = work
        self._linger_s = linger_s
        self._most = most
        self._open: _Group[Item] | None = None

    async def __call__(self, item: Item) -> None:
        """See the item through."""
        group = self._open
        if group is None:
            group = self._open = _Group()
            group.items.append(item)
            alone = await self._lead(group)
        else:
            group.items.append(item)
            if len(group.items) >= self._most:
                self._close(group)
            alone = await asyncio.shield(group.done)
        if alone:
            await self._work([item])

    async def _lead(self, group: "_Group[Item]") -> bool:
        """Work for the group; whether each has to be worked upon alone."""
        alone = False
        try:
            try:
                async with asyncio.timeout(self._linger_s):
                    await group.full.wait()
            except TimeoutError:
                self._close(group)
            await self._work(group.items)
        except (Unavailable, Late) as error:
            _fail(group, error)
            raise
        except CatenaError:
            if len(group.items) == 1:
                raise
            alone = True
        except BaseException:
            _fail(group, Unavailable("the group that this was part of broke off; it is to be tried again"))
            raise
        finally:
            self._close(group)
            if not group.done.done():
                group.done.set_result(alone)
        return alone

    def _close(self, group: "_Group[Item]") -> None:
        group.full.set()
        if self._open is group:
            self._open = None


class _Group(Generic[Item]):
    """Those who came together."""

    def __init__(self) -> None:
        self.items: list[Item] = []
        self.full = asyncio.Event()
        self.done: asyncio.Future[bool] = asyncio.get_running_loop().create_future()


def _fail(group: "_Group[Item]", error: CatenaError) -> None:
    if len(group.items) > 1:
        group.done.set_exception(error)
