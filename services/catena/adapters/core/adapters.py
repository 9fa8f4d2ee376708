"""The room: names become weights, weights become resident, the engine answers; and the registry behind the names."""

import asyncio
from collections import Counter
from collections.abc import AsyncGenerator, Callable
from contextlib import AsyncExitStack, aclosing
from dataclasses import replace
from pathlib import Path

import msgspec

from catena.adapters.core.asking import DRAFT_TOKENS, Answered, Question, check
from catena.adapters.core.bases import BaseLoads
from catena.adapters.core.encoders import Encoders
from catena.adapters.core.errors import WrongBase
from catena.adapters.core.eviction import History
from catena.adapters.core.manner import Manner
from catena.adapters.core.naming import Names, Target, may_stand_in, record_of, weights_of
from catena.adapters.core.ports import Bases, Engine, Gate, Registry
from catena.adapters.core.preloading import Ahead, Preloading
from catena.adapters.core.pressure import Pressure
from catena.adapters.core.records import AdapterRecord, Admitted, BaseRecord, Change, Use
from catena.adapters.core.refs import AUTO, parse
from catena.adapters.core.residency import Residency
from catena.adapters.core.resident import TierState
from catena.adapters.core.tools import Calls, demanded
from catena.adapters.core.versions import following, order
from catena.adapters.core.work import Piece, Sampling, Work
from catena.kit.clock import World
from catena.kit.errors import CatenaError, Invalid

SHARED = "shared"


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
        """Take the ports; `manner` is how it decides, `free` reads the machine's free bytes, None: no matter."""
        self._engine = engine
        self._registry = registry
        self._bases = bases
        self._gate = gate
        self._world = world
        self._changes: list[Change] = []
        self._uses: Counter[Use] = Counter()
        self._writing = asyncio.Lock()
        self.base_profiles = list(manner.base_profiles.values())
        self.names = Names(registry, bases, gate, manner.profiles)
        self.residency = Residency(
            engine,
            clock=world.clock,
            budget=manner.budget,
            tell=self._changes.append,
            policy=manner.eviction,
            history=History(half_life_s=manner.half_life_s),
            host_bytes=manner.host_bytes,
        )
        self.bases = BaseLoads(bases, engine, self.residency, clock=world.clock, budget_bytes=manner.base_budget_bytes)
        self.encoders = Encoders(bases=bases, loads=self.bases, engine=engine)
        self.pressure = Pressure(self.residency, bounds=manner.bounds, free=free, unified=manner.unified)
        self.preloading = Preloading(
            self._load_ahead,
            level=self.pressure.measure,
            clock=world.clock,
            mode=manner.preload,
            workflows=manner.workflows,
        )

    async def generate(self, tenant: str, question: Question) -> AsyncGenerator[Piece | Answered, None]:
        """Pieces as they come, then how it ended. Closing the generator cancels the work.

        Raises Invalid for a bad question, UnknownModel, UnknownAdapter, AdapterWithdrawn, NoRoom, the gate's refusals,
        and what `Engine.submit` raises. Other weights than asked for answer only where that was declared (a fallback)
        or asked (`base@auto`), and the end says so.
        """
        check(question)
        async with AsyncExitStack() as held:
            began_s = self._world.clock.monotonic()
            target = await self._hold_or_stand_in(tenant, question, held)
            load_ms = 1000 * (self._world.clock.monotonic() - began_s)
            draft = None
            if question.draft_model:
                draft = await self._hold(await self.names.resolve(tenant, question.draft_model), held, beside=True)
            tools = tuple(question.tools) if question.tool_choice != "none" else ()
            # What was asked to be of a form of its own is an answer, whatever it looks like.
            reads = bool(tools) and question.constraint is None
            work = Work(
                weights=target.weights,
                messages=tuple(question.messages),
                prompt=question.prompt,
                sampling=self._seeded(question),
                draft=draft.weights if draft is not None else None,
                draft_tokens=question.draft_tokens or DRAFT_TOKENS,
                tools=tools,
                constraint=question.constraint or demanded(question.tools, question.tool_choice),
                one_call=question.one_call and reads,
                salt=tenant,
            )
            self.preloading.used(tenant, question)
            calls = Calls(tools, self._world.new_id, one=work.one_call)
            async with aclosing(self._engine.submit(work)) as pieces:
                async for piece in pieces:
                    if isinstance(piece, Piece):
                        read = calls(piece) if reads else piece
                        if read != Piece(read.index, ""):
                            yield read
                        continue
                    yield Answered(
                        done=piece,
                        model=target.resolved,
                        served=target.served,
                        reason=target.reason,
                        load_ms=load_ms,
                    )

    async def load(self, tenant: str, model: str) -> tuple[float, int]:
        """Make a base or adapter resident; the milliseconds that it took, 0 if it was, and its bytes."""
        began_s = self._world.clock.monotonic()
        target = await self.names.resolve(tenant, model)
        there = self.bases.has(target.weights.base)
        async with self.bases.hold(target.weights.base) as facts:
            size = facts.bytes
            if target.wanted is not None:
                there = there and self.residency.has(target.weights)
                async with self.residency.hold(target.wanted) as resident:
                    size = resident.bytes
        return 0.0 if there else 1000 * (self._world.clock.monotonic() - began_s), size

    async def unload(self, tenant: str, model: str) -> int:
        """Drain and free an adapter, or a base with all of its adapters; the bytes freed, a base's own."""
        if not parse(model).adapters:
            return await self.bases.unload((await self.names.resolve(tenant, model)).weights.base)
        return await self.residency.unload((await self.names.resolve_one(tenant, model)).weights)

    async def pin(self, tenant: str, model: str, *, pinned: bool) -> None:
        """Keep an adapter from eviction, also after a restart, or let it go."""
        target = await self.names.resolve_one(tenant, model)
        await self._registry.set_pinned(target.records[0], pinned)
        self.residency.pin(target.weights, pinned)

    async def register(
        self,
        tenant: str,
        source: Path | bytes,
        *,
        base: str = "",
        renumber: bool = False,
        check: Callable[[Admitted], None] = lambda admitted: None,
        called: str = "",
    ) -> AdapterRecord:
        """Take an adapter in through the gate, prove on its base that it works, and register it.

        With `renumber`, one whose version is taken by other content is given the next version instead of being refused.
        `check` raises what the caller has against it. A single file has no manifest: `called` says name:version, `base`
        its base. Raises WrongBase when `base` is given and its manifest names another.
        """
        admitted = await self._admit(source, base, called)
        check(admitted)
        if base and admitted.base != base:
            raise WrongBase(f"{admitted.name} {admitted.version} is for base {admitted.base}, not {base}; name that")
        if admitted.name == AUTO:
            raise Invalid(f"no adapter may be called {AUTO!r}, which stands for the best one; give it another name")
        if renumber:
            admitted = await self._renumbered(tenant, admitted)
        wanted = self.names.wanted([(record_of(tenant, admitted), 1.0)])
        async with self.bases.hold(admitted.base), self.residency.hold(wanted):
            return await self._registry.add(tenant, admitted)

    async def get(self, tenant: str, model: str) -> AdapterRecord:
        """One adapter version, withdrawn or not."""
        return await self.names.find(tenant, model)

    async def withdraw(self, tenant: str, model: str, reason: str) -> AdapterRecord:
        """Withdraw a version; it answers no further request, and leaves the device once idle."""
        found = await self.get(tenant, model)
        record = await self._registry.withdraw(tenant, found.base, found.name, found.version, reason)
        await self.residency.dismiss(weights_of([(record, 1.0)]))
        return record

    async def accept_base(self, name: str, digest: str) -> BaseRecord:
        """Serve a base as its files are now, where they were altered on purpose; what was loaded of it leaves."""
        before = self._bases.known(name)
        record = await self._bases.accept(name, digest)
        if before is None or before.digest != record.digest:
            await self.bases.unload(name)
        return record

    async def warm(self) -> list[CatenaError]:
        """Load every base and every pinned adapter; what went wrong with one does not stop the others."""
        return await self.bases.load_all() + await self.load_pinned()

    async def load_pinned(self) -> list[CatenaError]:
        """Load every pinned adapter, and the bases that they need."""
        failures: list[CatenaError] = []
        for record in await self._registry.pinned():
            try:
                async with self.bases.hold(record.base), self.residency.hold(self.names.wanted([(record, 1.0)])):
                    pass
            except CatenaError as error:
                failures.append(error)
        return failures

    async def tiers(self) -> list[TierState]:
        """What the device, host memory and disk hold, and how they do."""
        return self.residency.tiers(await self._gate.stored())

    async def tend(self) -> list[Ahead]:
        """What is due from time to time: act upon memory pressure, load ahead; what was loaded ahead."""
        await self.pressure.relieve()
        return await self.preloading.turn()

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
        self.bases.lost()
        self.residency.lost()

    async def aclose(self) -> None:
        """Stop loading, and commit the books."""
        await self.residency.close()
        self.bases.close()
        await self.write_books()

    async def _renumbered(self, tenant: str, admitted: Admitted) -> Admitted:
        seen = await self._registry.versions(tenant, admitted.base, admitted.name)
        own = {record.version: record.digest for record in seen if record.tenant == tenant}
        same = [version for version, digest in own.items() if digest == admitted.digest]
        if same:
            return replace(admitted, version=max(same, key=order))
        return replace(admitted, version=following(own)) if admitted.version in own else admitted

    async def _hold_or_stand_in(self, tenant: str, question: Question, held: AsyncExitStack) -> Target:
        try:
            return await self._hold(await self.names.resolve(tenant, question.model, question.task), held)
        except CatenaError as error:
            if not may_stand_in(error):
                raise
            for model in await self.names.stand_ins(tenant, question.model):
                try:
                    target = await self._hold(await self.names.resolve(tenant, model), held)
                except CatenaError:
                    # The next in line; if none can, what failed first is what the caller has to know.
                    continue
                return replace(target, served="fallback", reason=f"{question.model} cannot answer: {error.message}")
            raise

    async def _hold(self, target: Target, held: AsyncExitStack, *, beside: bool = False) -> Target:
        await self.bases.check_speaks(target.weights.base)
        async with AsyncExitStack() as both:
            await both.enter_async_context(self.bases.hold(target.weights.base, beside=beside))
            if target.wanted is not None:
                await both.enter_async_context(self.residency.hold(target.wanted, beside=beside))
            # Only now: what fails midway holds nothing while another is tried in its place.
            await held.enter_async_context(both.pop_all())
        for record in target.records:
            self._uses[Use(tenant=record.tenant, base=record.base, name=record.name, version=record.version)] += 1
        return target

    async def _load_ahead(self, tenant: str, model: str) -> bool:
        target = await self.names.resolve(tenant, model)
        base = target.weights.base
        if self.bases.budget_bytes and not self.bases.has(base):
            # Another base might have to leave for it, which only a request may ask for.
            return False
        async with self.bases.hold(base):
            return target.wanted is None or await self.residency.preload(target.wanted)

    async def _admit(self, source: Path | bytes, base: str, called: str) -> Admitted:
        if isinstance(source, bytes):
            return await self._gate.admit_archive(source)
        if called:
            return await self._gate.admit_file(source, base=base, called=called)
        return await self._gate.admit_folder(source)

    def _seeded(self, question: Question) -> Sampling:
        sampling = question.sampling
        if sampling.seed is not None:
            return sampling
        return msgspec.structs.replace(sampling, seed=self._world.rng.getrandbits(63))
