"""Bases on the device: each is loaded once for all who ask, and again after the engine was lost."""

import asyncio

from catena.adapters.core.errors import BaseMisplaced
from catena.adapters.core.ports import Bases, Engine
from catena.adapters.core.records import BaseState
from catena.adapters.core.work import BaseFacts, BaseSource
from catena.kit.errors import CatenaError, Unavailable


class BaseLoads:
    """The loads of bases, done and under way."""

    def __init__(self, bases: Bases, engine: Engine) -> None:
        """Nothing is loaded yet."""
        self._bases = bases
        self._engine = engine
        self._loads: dict[str, asyncio.Task[BaseFacts]] = {}

    def has(self, name: str) -> bool:
        """Whether a base is resident now."""
        load = self._loads.get(name)
        return load is not None and _loaded(load)

    async def load(self, name: str) -> BaseFacts:
        """Make a base resident. Raises the gate's refusals, and Unavailable."""
        load = self._loads.get(name)
        if load is None or (load.done() and not _loaded(load)):
            load = self._loads[name] = asyncio.create_task(self._check_and_load(name), name=f"load {name}")
            load.add_done_callback(lambda task: task.cancelled() or task.exception())
        try:
            return await asyncio.shield(load)
        except asyncio.CancelledError:
            if not load.cancelled():
                raise
            raise Unavailable(f"the load of {name} was stopped; ask again") from None

    async def load_all(self) -> list[CatenaError]:
        """Load every base, one after another; what went wrong with one does not stop the others."""
        failures: list[CatenaError] = []
        for name in self._bases.names():
            try:
                await self.load(name)
            except CatenaError as error:
                failures.append(error)
        return failures

    def states(self) -> list[BaseState]:
        """Every configured base by name, as known now; nothing is read or loaded for it."""
        return [self._state_of(name) for name in sorted(self._bases.names())]

    def lost(self) -> None:
        """Forget what was resident."""
        self._loads = {name: load for name, load in self._loads.items() if not load.done()}

    def close(self) -> None:
        """Stop loading."""
        for load in self._loads.values():
            load.cancel()

    def _state_of(self, name: str) -> BaseState:
        load, record = self._loads.get(name), self._bases.known(name)
        if load is not None and _loaded(load):
            return BaseState(name=name, record=record, facts=load.result())
        return BaseState(name=name, record=record, problem=self._bases.problem(name) or _refusal(load))

    async def _check_and_load(self, name: str) -> BaseFacts:
        record = await self._bases.check(name)
        source = BaseSource(name=record.name, folder=record.folder, context_tokens=record.context_tokens)
        return await self._engine.load_base(source)


def _refusal(load: asyncio.Task[BaseFacts] | None) -> str:
    """Why a base was not loaded; empty where the next try may well do: the engine is back, the folder is there."""
    failure = load.exception() if load is not None and load.done() and not load.cancelled() else None
    if isinstance(failure, CatenaError) and not isinstance(failure, Unavailable | BaseMisplaced):
        return failure.message
    return ""


def _loaded(load: asyncio.Task[BaseFacts]) -> bool:
    return load.done() and not load.cancelled() and load.exception() is None
