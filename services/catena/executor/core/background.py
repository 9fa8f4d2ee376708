"""Runs that outlive their call: stored first, worked off under a lease, resumed after a crash where they stood."""

import asyncio
from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal, Protocol

import structlog

from catena.executor.core.admission import Errand
from catena.executor.core.events import Finished, Record, RunEvent, StageResult
from catena.executor.core.parts import Parts
from catena.executor.core.running import carry_out
from catena.kit.caller import Caller, as_caller
from catena.kit.errors import CatenaError, Missing

log = structlog.get_logger()
State = Literal["queued", "running", "succeeded", "failed", "cancelled"]
ENDED: frozenset[State] = frozenset({"succeeded", "failed", "cancelled"})


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredRun:
    """A background run as it stands."""

    id: str
    tenant: str
    role: str
    state: State
    created_s: float
    errand: Errand
    finished_s: float = 0.0
    stages: tuple[StageResult, ...] = ()
    result: Finished | None = None
    error: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class RunEnd:
    """How a run ended and who is charged, with the record of its execution, committed together."""

    state: State
    result: Finished | None
    error: str
    record: Record | None
    payer: str = ""


class Runs(Protocol):
    """Where background runs are kept."""

    async def submit(self, run: StoredRun, request_id: str) -> StoredRun:
        """Store a queued run, or return the one that the same `request_id` of the tenant made before.

        Raises Conflict (`request_id_reused`) where that one was asked something else.
        """
        ...

    async def get(self, tenant: str, run_id: str) -> StoredRun | None:
        """The run as it stands."""
        ...

    async def claim(self, holder: str, most: int, lease_s: float) -> Sequence[StoredRun]:
        """Take runs that nobody works on, oldest first."""
        ...

    async def renew(self, holder: str, run_ids: Sequence[str], lease_s: float) -> dict[str, bool]:
        """Keep holding; by run still held, whether its end is wished for."""
        ...

    async def release(self, holder: str) -> None:
        """Let others go on with what `holder` held."""
        ...

    async def recall(self, run_id: str, key: str) -> bytes | None:
        """What a finished call gave."""
        ...

    async def note(self, run_id: str, key: str, value: bytes) -> None:
        """Remember a finished call."""
        ...

    async def progress(self, run_id: str, stages: Sequence[StageResult]) -> None:
        """Show the stages that ended so far."""
        ...

    async def finish(self, holder: str, run_id: str, end: RunEnd) -> None:
        """Commit the end, unless the run is held by somebody else by now."""
        ...

    async def wish_end(self, tenant: str, run_id: str) -> StoredRun | None:
        """Note the wish to cancel; a queued run ends at once."""
        ...

    async def changed(self, timeout_s: float) -> None:
        """Return when some run may have changed, after `timeout_s` at the latest."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Pace:
    """`at_once` runs are worked on by this process; a lease of `lease_s` is renewed every `poll_s`."""

    at_once: int = 4
    lease_s: float = 10.0
    poll_s: float = 0.5
    longest_s: float = 3600.0


@dataclass(slots=True)
class Noting:
    """The journal of one background run."""

    runs: Runs
    run_id: str

    async def recall(self, key: str) -> bytes | None:
        """What was noted before the crash."""
        return await self.runs.recall(self.run_id, key)

    async def note(self, key: str, value: bytes) -> None:
        """Commit."""
        await self.runs.note(self.run_id, key, value)


@dataclass(slots=True)
class Holding:
    """Keeps the record back until it is committed together with the run's end."""

    record: Record | None = None

    def add(self, record: Record) -> None:
        """Hold it."""
        self.record = record


@dataclass(slots=True)
class Bay:
    """What this process works on: tasks by run, and which of them a caller wants cancelled."""

    holder: str
    tasks: dict[str, asyncio.Task[None]] = field(default_factory=dict)
    unwanted: set[str] = field(default_factory=set)


async def work_off(parts: Parts, runs: Runs, pace: Pace) -> None:
    """Claim and run until cancelled; what is under way then is let go for others, not ended.

    Runs are claimed one at a time, so that several processes that are told of many at once share them.
    """
    bay = Bay(parts.world.new_id())
    try:
        while True:
            claimed = False
            try:
                claimed = await _turn(parts, runs, pace, bay)
            except CatenaError as error:
                log.warning("background runs wait", error=error.message)
            if not claimed:
                await runs.changed(pace.poll_s)
    finally:
        for task in bay.tasks.values():
            task.cancel()
        await asyncio.gather(*bay.tasks.values(), return_exceptions=True)
        await runs.release(bay.holder)


async def _turn(parts: Parts, runs: Runs, pace: Pace, bay: Bay) -> bool:
    """Keep what is held, drop what is not, and take one more if there is room; whether there was one."""
    bay.tasks = {run_id: task for run_id, task in bay.tasks.items() if not task.done()}
    held = await runs.renew(bay.holder, list(bay.tasks), pace.lease_s)
    for run_id, task in bay.tasks.items():
        if held.get(run_id, True):
            if run_id in held:
                bay.unwanted.add(run_id)
            task.cancel()
    found = await runs.claim(bay.holder, 1, pace.lease_s) if len(bay.tasks) < pace.at_once else ()
    for run in found:
        bay.tasks[run.id] = asyncio.create_task(_work_on(parts, runs, bay, run, pace.longest_s))
    return bool(found)


async def _work_on(parts: Parts, runs: Runs, bay: Bay, run: StoredRun, longest_s: float) -> None:
    """One run to its end. Cancelled without anybody wishing it, it stays as it is, for whoever resumes it."""
    holding = Holding()
    stages: list[StageResult] = []

    async def emit(event: RunEvent) -> None:
        if isinstance(event, StageResult):
            stages.append(event)
            await runs.progress(run.id, stages)

    private = replace(parts, records=holding)
    errand = replace(run.errand, left_s=longest_s, stream=False)
    try:
        with as_caller(Caller(run.tenant, run.role)):
            result = await carry_out(private, errand, emit, Noting(runs, run.id), run.id)
        end = RunEnd(state="succeeded", result=result, error="", record=holding.record)
    except CatenaError as error:
        end = RunEnd(state="failed", result=None, error=f"{error.code}: {error.message}", record=holding.record)
    except asyncio.CancelledError:
        if run.id not in bay.unwanted:
            raise
        end = RunEnd(state="cancelled", result=None, error="cancelled: as asked", record=holding.record)
    except Exception:  # one run that fails for no known reason must not end the others
        log.exception("background run failed", run=run.id)
        end = RunEnd(state="failed", result=None, error="internal: see the log", record=holding.record)
    await runs.finish(bay.holder, run.id, replace(end, payer=run.errand.payer))


async def watch(runs: Runs, tenant: str, run_id: str, *, poll_s: float = 0.5) -> AsyncGenerator[StoredRun, None]:
    """The run now and each time it changes, until it has ended. Raises Missing (`unknown_run`)."""
    seen: StoredRun | None = None
    while seen is None or seen.state not in ENDED:
        run = await known(runs, tenant, run_id)
        if run != seen:
            seen = run
            yield run
        else:
            await runs.changed(poll_s)


async def known(runs: Runs, tenant: str, run_id: str) -> StoredRun:
    """The tenant's run. Raises Missing (`unknown_run`)."""
    run = await runs.get(tenant, run_id)
    if run is None:
        raise Missing(f"unknown run {run_id!r}; take the id that SubmitRun returned", code="unknown_run")
    return run
