"""The room: names become weights, weights become resident, the engine answers; and the registry behind the names."""

import asyncio
import hashlib
from collections import Counter
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import AsyncExitStack, aclosing
from dataclasses import dataclass
from pathlib import Path

import msgspec

from catena.adapters.core import refs
from catena.adapters.core.asking import DRAFT_TOKENS, Answered, Question, check
from catena.adapters.core.errors import AdapterWithdrawn, BaseMisplaced
from catena.adapters.core.eviction import History
from catena.adapters.core.manner import Manner
from catena.adapters.core.ports import Bases, Engine, Gate, Registry
from catena.adapters.core.pressure import Pressure
from catena.adapters.core.records import AdapterRecord, Admitted, BaseState, Change, Use
from catena.adapters.core.residency import Residency
from catena.adapters.core.resident import Wanted
from catena.adapters.core.work import AdapterSource, BaseFacts, BaseSource, Piece, Sampling, Weights, Work
from catena.kit.clock import World
from catena.kit.errors import CatenaError, Unavailable

SHARED = "shared"


@dataclass(frozen=True, slots=True)
class _Target:
    """What a name means now: weights, the adapters behind them, and how the answer will name them."""

    weights: Weights
    resolved: str
    wanted: Wanted | None
    records: Sequence[AdapterRecord]


class Adapters:
    """Serves bases with registered adapters. `lost` is to be called when the engine had to be started anew."""

    def __init__(
        self,
        *,
        engine: Engine,
        registry: Registry,
        bases: Bases,
        gate: Gate,
        world: World,
        manner: Manner,
        free: Callable[[], int | None],
    ) -> None:
        """Take the ports; `manner` is how it decides, `free` reads the free bytes that bound it beside its budget."""
        self._engine = engine
        self._registry = registry
        self._bases = bases
        self._gate = gate
        self._world = world
        self._changes: list[Change] = []
        self._uses: Counter[Use] = Counter()
        self._writing = asyncio.Lock()
        self._loads: dict[str, asyncio.Task[BaseFacts]] = {}
        self.residency = Residency(
            engine,
            clock=world.clock,
            budget=manner.budget,
            tell=self._changes.append,
            policy=manner.eviction,
            history=History(half_life_s=manner.half_life_s),
        )
        self.pressure = Pressure(self.residency, bounds=manner.bounds, free=free)

    async def generate(self, tenant: str, question: Question) -> AsyncGenerator[Piece | Answered, None]:
        """Pieces as they come, then how it ended. Closing the generator cancels the work.

        Raises Invalid for a bad question, UnknownModel, UnknownAdapter, AdapterWithdrawn, NoRoom, the gate's refusals,
        and what `Engine.submit` raises; never answers with other weights than asked for.
        """
        check(question)
        target = await self._resolve(tenant, question.model)
        draft = await self._resolve(tenant, question.draft_model) if question.draft_model else None
        async with AsyncExitStack() as held:
            for each in (target, draft) if draft is not None else (target,):
                await self._load_base(each.weights.base)
                if each.wanted is not None:
                    await held.enter_async_context(self.residency.hold(each.wanted, beside=each is draft))
                for record in each.records:
                    self._uses[
                        Use(tenant=record.tenant, base=record.base, name=record.name, version=record.version)
                    ] += 1
            work = Work(
                weights=target.weights,
                messages=tuple(question.messages),
                prompt=question.prompt,
                sampling=self._seeded(question),
                draft=draft.weights if draft is not None else None,
                draft_tokens=question.draft_tokens or DRAFT_TOKENS,
                constraint=question.constraint,
                salt=tenant,
            )
            async with aclosing(self._engine.submit(work)) as pieces:
                async for piece in pieces:
                    yield piece if isinstance(piece, Piece) else Answered(done=piece, model=target.resolved)

    async def load(self, tenant: str, model: str) -> tuple[float, int]:
        """Make a base or adapter resident; the milliseconds that it took, 0 if it was, and its bytes."""
        began_s = self._world.clock.monotonic()
        target = await self._resolve(tenant, model)
        base = self._loads.get(target.weights.base)
        there = base is not None and _loaded(base)
        size = (await self._load_base(target.weights.base)).bytes
        if target.wanted is not None:
            there = there and self.residency.has(target.weights)
            async with self.residency.hold(target.wanted) as resident:
                size = resident.bytes
        return 0.0 if there else 1000 * (self._world.clock.monotonic() - began_s), size

    async def unload(self, tenant: str, model: str) -> int:
        """Drain and free an adapter; the bytes freed."""
        return await self.residency.unload((await self._one(tenant, model)).weights)

    async def pin(self, tenant: str, model: str, *, pinned: bool) -> None:
        """Keep an adapter from eviction, also after a restart, or let it go."""
        target = await self._one(tenant, model)
        await self._registry.set_pinned(target.records[0], pinned)
        self.residency.pin(target.weights, pinned)

    async def register(self, tenant: str, source: Path | bytes) -> AdapterRecord:
        """Take an adapter in through the gate, prove on its base that it works, and register it."""
        admitted = await self._admit(source)
        await self._load_base(admitted.base)
        record = _record(tenant, admitted)
        async with self.residency.hold(self._wanted([(record, 1.0)])):
            return await self._registry.add(tenant, admitted)

    async def get(self, tenant: str, model: str) -> AdapterRecord:
        """One adapter version, withdrawn or not."""
        base, ref = refs.parse_one(model)
        await self._bases.get(base)
        return await self._registry.find(tenant, base, ref.name, ref.tag)

    async def withdraw(self, tenant: str, model: str, reason: str) -> AdapterRecord:
        """Withdraw a version; it answers no further request, and leaves the device once idle."""
        found = await self.get(tenant, model)
        record = await self._registry.withdraw(tenant, found.base, found.name, found.version, reason)
        await self.residency.dismiss(_weights([(record, 1.0)]))
        return record

    def bases(self) -> list[BaseState]:
        """Every configured base by name, as known now; nothing is read or loaded for it."""
        return [self._state_of(name) for name in sorted(self._bases.names())]

    async def warm(self) -> list[CatenaError]:
        """Load every base and every pinned adapter; what went wrong with one does not stop the others."""
        failures: list[CatenaError] = []
        for name in self._bases.names():
            try:
                await self._load_base(name)
            except CatenaError as error:
                failures.append(error)
        for record in await self._registry.pinned():
            try:
                await self._load_base(record.base)
                async with self.residency.hold(self._wanted([(record, 1.0)])):
                    pass
            except CatenaError as error:
                failures.append(error)
        return failures

    async def tend(self) -> None:
        """What is due from time to time: act upon memory pressure."""
        await self.pressure.relieve()

    async def write_books(self) -> None:
        """Commit the uses counted and announce what came and went since the last time."""
        async with self._writing:
            if uses := dict(self._uses):
                await self._registry.count_uses(uses)
                self._uses -= Counter(uses)
            while self._changes:
                change = self._changes[0]
                await self._registry.tell_residency(change.tenant, change.model, change.tier, change.bytes)
                self._changes.pop(0)

    def lost(self) -> None:
        """Forget what was resident; it is loaded again when next asked for."""
        self._loads = {name: load for name, load in self._loads.items() if not load.done()}
        self.residency.lost()

    async def aclose(self) -> None:
        """Stop loading, and commit the books."""
        await self.residency.close()
        for load in self._loads.values():
            load.cancel()
        await self.write_books()

    async def _one(self, tenant: str, model: str) -> _Target:
        refs.parse_one(model)
        return await self._resolve(tenant, model)

    async def _resolve(self, tenant: str, model: str) -> _Target:
        ref = refs.parse(model)
        base = await self._bases.get(ref.base)
        if not ref.adapters:
            return _Target(Weights(base=base.name), f"{base.name}#{base.digest}", None, ())
        found = [(await self._registry.find(tenant, base.name, a.name, a.tag), a.weight) for a in ref.adapters]
        for record, _ in found:
            if record.status == "withdrawn":
                raise AdapterWithdrawn(f"{record.model} was withdrawn; ask for another version")
        wanted = self._wanted(found)
        return _Target(wanted.weights, f"{wanted.model}#{wanted.weights.adapter}", wanted, [r for r, _ in found])

    def _wanted(self, found: Sequence[tuple[AdapterRecord, float]]) -> Wanted:
        weights = _weights(found)

        async def source() -> AdapterSource:
            parts = [msgspec.structs.replace(await self._gate.check(r), weight=weight) for r, weight in found]
            return AdapterSource(weights=weights, parts=tuple(parts))

        record = found[0][0]
        model = record.model
        if len(found) > 1:
            model = f"{record.base}@{{{','.join(f'{r.name}:{r.version}={weight:g}' for r, weight in found)}}}"
        return Wanted(
            weights=weights,
            tenant=record.tenant,
            model=model,
            bytes=sum(r.bytes for r, _ in found),
            source=source,
            pinned=len(found) == 1 and record.pinned,
        )

    def _state_of(self, name: str) -> BaseState:
        load, record = self._loads.get(name), self._bases.known(name)
        if load is not None and _loaded(load):
            return BaseState(name=name, record=record, facts=load.result())
        return BaseState(name=name, record=record, problem=self._bases.problem(name) or _refusal(load))

    async def _load_base(self, name: str) -> BaseFacts:
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

    async def _check_and_load(self, name: str) -> BaseFacts:
        record = await self._bases.check(name)
        source = BaseSource(name=record.name, folder=record.folder, context_tokens=record.context_tokens)
        return await self._engine.load_base(source)

    async def _admit(self, source: Path | bytes) -> Admitted:
        if isinstance(source, bytes):
            return await self._gate.admit_archive(source)
        return await self._gate.admit_folder(source)

    def _seeded(self, question: Question) -> Sampling:
        sampling = question.sampling
        if sampling.seed is not None:
            return sampling
        return msgspec.structs.replace(sampling, seed=self._world.rng.getrandbits(63))


def _weights(found: Sequence[tuple[AdapterRecord, float]]) -> Weights:
    """The engine's key for a set of adapters: the content digest, or one made of the digests and weights."""
    base = found[0][0].base
    if len(found) == 1 and found[0][1] == 1.0:
        return Weights(base=base, adapter=found[0][0].digest)
    told = "+".join(f"{record.digest}*{weight!r}" for record, weight in found)
    return Weights(base=base, adapter=hashlib.sha256(told.encode()).hexdigest())


def _record(tenant: str, admitted: Admitted) -> AdapterRecord:
    return AdapterRecord(
        tenant=tenant,
        base=admitted.base,
        name=admitted.name,
        version=admitted.version,
        digest=admitted.digest,
        base_digest=admitted.base_digest,
        bytes=admitted.bytes,
        rank=admitted.rank,
    )


def _refusal(load: asyncio.Task[BaseFacts] | None) -> str:
    """Why a base was not loaded; empty where the next try may well do: the engine is back, the folder is there."""
    failure = load.exception() if load is not None and load.done() and not load.cancelled() else None
    if isinstance(failure, CatenaError) and not isinstance(failure, Unavailable | BaseMisplaced):
        return failure.message
    return ""


def _loaded(load: asyncio.Task[BaseFacts]) -> bool:
    return load.done() and not load.cancelled() and load.exception() is None
