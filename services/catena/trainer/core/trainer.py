"""The trainer itself: takes jobs in, sees each through to its end, and answers what is asked about them."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from dataclasses import dataclass, replace

import msgspec
import structlog

from catena.kit.clock import World
from catena.kit.errors import CatenaError, Exhausted, Invalid, Late, Unavailable
from catena.trainer.core.estimate import BaseFacts, Estimate, Load, Speed, estimate, mean, targets_of
from catena.trainer.core.job import ENDED, STATES, ClaimLost, Job, Material, Progress, State, VersionTaken, data_digest
from catena.trainer.core.order import Failure, Measuring, Order, Point, Result, figures
from catena.trainer.core.portions import measured, portions, step_count
from catena.trainer.core.ports import Bases, Files, Hold, Jobs, Registry, Workers
from catena.trainer.core.rows import read_rows
from catena.trainer.core.spec import Submission, checked
from catena.trainer.core.verdict import rejection

LONGEST_PAUSE_S = 5.0
MANY = 100_000
log = structlog.get_logger()


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """See `TrainerConfig`; `threads` is resolved. `pause_s`: between looks at the queue, and before a first repeat."""

    concurrency: int
    threads: int
    device: str
    lease_s: float
    max_stalled: int
    point_s: float
    event_s: float
    eval_rows: int
    keep_folders: int
    pause_s: float = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Ports:
    """All that the trainer stands on."""

    jobs: Jobs
    workers: Workers
    bases: Bases
    files: Files
    registry: Registry


class Trainer:
    """Keeps jobs and runs them, `concurrency` at a time."""

    def __init__(self, ports: Ports, *, settings: Settings, world: World) -> None:
        """Stand on these ports; nothing runs before `run`."""
        self._jobs = ports.jobs
        self._workers = ports.workers
        self._bases = ports.bases
        self._files = ports.files
        self._registry = ports.registry
        self._settings = settings
        self._world = world

    async def create(self, tenant: str, asked: Submission, request_id: str) -> Job:
        """Accept a job; it is stored when this returns. Raises Invalid when it could never run, Missing for the base.

        BadRow names the line of a row that cannot be used.
        """
        spec = checked(asked.spec)
        targets_of(spec.peft, await self._bases.facts(spec.base))
        material = await self._material(asked)
        step_count(spec, portions(spec, material))
        now_s = self._world.clock.now()
        job = Job(
            id=self._world.new_id(),
            tenant=tenant,
            spec=spec,
            version=spec.version,
            data_digest=data_digest(material),
            created_s=now_s,
        )
        return await self._jobs.create(job, material, request_id)

    async def plan(self, asked: Submission) -> Estimate:
        """What the job would take. Raises as `create` does."""
        spec = checked(asked.spec)
        base = await self._bases.facts(spec.base)
        material = await self._material(asked)
        parts = portions(spec, material)
        rows = [row for part in parts for row in part.rows]
        lengths = await self._bases.lengths(base, rows, spec.training)
        load = Load(
            steps=step_count(spec, parts),
            rows=len(rows),
            batch_size=spec.training.batch_size,
            accumulation=spec.training.accumulation,
            mean_tokens=mean(lengths),
            most_tokens=max(lengths, default=0),
        )
        told = estimate(spec.peft, base, load, Speed())
        tokens_per_s = await self._jobs.speed(spec.base)
        if not tokens_per_s:
            return told
        return replace(told, duration_s=load.steps * spec.training.step_rows * load.mean_tokens / tokens_per_s)

    async def get(self, tenant: str, job_id: str) -> Job:
        """One job. Raises Missing."""
        return await self._jobs.get(tenant, job_id)

    async def find(self, tenant: str, state: str, limit: int, after: str) -> list[Job]:
        """Jobs, newest first."""
        if state and state not in STATES:
            raise Invalid(f"state {state!r} is unknown; known: {', '.join(STATES)}")
        return await self._jobs.find(tenant, state, limit, after)

    async def cancel(self, tenant: str, job_id: str) -> Job:
        """Ask a job to stop; one that has ended stays as it is. Raises Missing."""
        return await self._jobs.cancel(tenant, job_id)

    async def watch(self, tenant: str, job_id: str) -> AsyncIterator[Job]:
        """The job, now and each time it changes, until it ends. Raises Missing."""
        seen = -1
        while True:
            job = await self._jobs.get(tenant, job_id)
            if job.revision != seen:
                seen = job.revision
                yield job
            if job.ended:
                return
            await self._jobs.changed(self._settings.pause_s)

    async def run(self) -> None:
        """Run jobs as they come, until cancelled."""
        async with asyncio.TaskGroup() as group:
            for _ in range(self._settings.concurrency):
                group.create_task(self._take())

    async def _take(self) -> None:
        while True:
            try:
                job = await self._jobs.claim()
            except CatenaError as error:
                log.warning("queue does not answer", error=str(error))
                job = None
            if job is None:
                await self._jobs.changed(self._settings.pause_s)
                continue
            try:
                await self._hold(job)
            except Exception:  # one job must never stop the queue; its stall counter ends it
                log.exception("job interrupted", job=job.id)
                await asyncio.sleep(self._settings.pause_s)

    async def _hold(self, job: Job) -> None:
        """See a claimed job through while its lease is kept; stop when that is lost or somebody cancels."""
        work = asyncio.create_task(self._see_through(job))
        try:
            hold = await self._keep_lease(job, work)
        except asyncio.CancelledError:
            # A room that closes hands its jobs back at once instead of after the lease.
            await _stopped(work)
            with contextlib.suppress(CatenaError):
                await asyncio.shield(self._jobs.release(job.id))
            raise
        if hold == "held":
            await work
        else:
            await _stopped(work)
            if hold == "cancel":
                latest = await self._jobs.get(job.tenant, job.id)
                await self._end(replace(latest, reason="cancelled on request"), "cancelled")
        await self._tidy()

    async def _keep_lease(self, job: Job, work: "asyncio.Task[None]") -> Hold:
        """Renew until `work` is done, and then `held`; else why it has to stop."""
        while True:
            await asyncio.wait({work}, timeout=min(self._settings.lease_s / 3, self._settings.pause_s))
            if work.done():
                return "held"
            try:
                hold = await self._jobs.renew(job.id)
            except Unavailable as error:
                log.warning("lease not renewed", job=job.id, error=error.message)
                continue
            if hold != "held":
                log.info("job has to stop", job=job.id, reason=hold)
                return hold

    async def _see_through(self, job: Job) -> None:
        try:
            if job.stalled >= self._settings.max_stalled:
                raise Invalid(f"{job.stalled} attempts in a row got no further than the one before; {job.reason}")
            if job.state == "registering" and self._workers.holds(job.id):
                await self._register(job, await self._bases.facts(job.spec.base))
            else:
                await self._train(job)
        except ClaimLost:
            log.warning("job lost to another trainer", job=job.id)
        except (Unavailable, Late, Exhausted):
            raise
        except CatenaError as error:
            latest = await self._jobs.get(job.tenant, job.id)
            await self._end(replace(latest, reason=error.message), "failed")

    async def _train(self, job: Job) -> None:
        base = await self._bases.facts(job.spec.base)
        order = self._order(job, base, await self._jobs.material(job.id))
        if job.state == "queued":
            job = await self._jobs.save(replace(job, state="running"))
        result: Result | None = None
        async with self._workers.run(order, job.attempts) as worker:
            told_s = -self._settings.event_s
            async for report in worker.reports():
                if isinstance(report, Failure):
                    raise Invalid(report.message, code=report.code)
                if isinstance(report, Result):
                    result = report
                else:
                    tell = self._world.clock.monotonic() - told_s >= self._settings.event_s
                    told_s = self._world.clock.monotonic() if tell else told_s
                    job = await self._jobs.save(_noted(job, report), "progressed" if tell else "nothing")
            code, last_words = await worker.ended()
        if result is None:
            log.warning("training process died", job=job.id, code=code, last_words=last_words)
            await self._jobs.release(job.id, died=f"its process ended with code {code}: {last_words[-500:]}")
            return
        await self._judge(replace(job, metrics=dict(figures(result))), base)

    async def _judge(self, job: Job, base: BaseFacts) -> None:
        why_not = rejection(job.metrics, job.spec.acceptance)
        if why_not:
            await self._end(replace(job, reason=why_not), "rejected")
            return
        await self._register(await self._jobs.save(replace(job, state="registering", digest="")), base)

    async def _register(self, job: Job, base: BaseFacts) -> None:
        """Seal, sign and hand over; tried until the registry answers, since an accepted adapter is never lost."""
        pause_s = self._settings.pause_s
        while True:
            try:
                job = await self._sealed(job, base)
                model = await self._registry.register(job) if job.spec.register else ""
                await self._end(replace(job, model=model), "succeeded")
                return
            except (Unavailable, Late, Exhausted) as error:
                log.warning("registration waits", job=job.id, error=error.message, again_in_s=pause_s)
            except VersionTaken as error:
                if job.spec.version:
                    raise
                log.warning("version taken, choosing the next", job=job.id, version=job.version, error=error.message)
                job = await self._jobs.save(replace(job, version="", digest=""))
            await asyncio.sleep(pause_s)
            pause_s = min(2 * pause_s, LONGEST_PAUSE_S)

    async def _sealed(self, job: Job, base: BaseFacts) -> Job:
        """The job with its adapter sealed and signed; the version stays the same however often this is done."""
        if job.digest:
            return job
        if not job.version:
            free = await self._registry.next_version(job) if job.spec.register else "1"
            job = replace(job, version=free)
        return await self._jobs.save(replace(job, digest=await self._registry.seal(job, base)))

    async def _end(self, job: Job, state: State) -> None:
        now_s = self._world.clock.now()
        job = await self._jobs.save(replace(job, state=state, finished_s=now_s), "finished")
        log.info("job ended", job=job.id, state=job.state, reason=job.reason)

    async def _tidy(self) -> None:
        try:
            newest = await self._jobs.find("", "", self._settings.keep_folders, "")
            going_on = [await self._jobs.find("", state, MANY, "") for state in STATES if state not in ENDED]
            await self._workers.tidy([job.id for jobs in (newest, *going_on) for job in jobs])
        except (CatenaError, OSError) as error:
            log.warning("old folders stay", error=str(error))

    async def _material(self, asked: Submission) -> Material:
        """The rows of every source, read and frozen."""
        sources = []
        for source, jsonl in zip(asked.spec.sources, asked.jsonl, strict=True):
            raw = await self._files.read(source.path, anywhere=asked.anywhere) if source.path else jsonl
            sources.append(await asyncio.to_thread(read_rows, raw, source.path or source.name))
        return Material(tuple(sources), read_rows(asked.trusted, "trusted rows"))

    def _order(self, job: Job, base: BaseFacts, material: Material) -> Order:
        spec = job.spec
        return Order(
            job=job.id,
            base=spec.base,
            base_folder=base.folder,
            peft=msgspec.structs.replace(spec.peft, targets=targets_of(spec.peft, base)),
            training=spec.training,
            portions=tuple(portions(spec, material)),
            measured=measured(spec, material, self._settings.eval_rows),
            threads=self._settings.threads,
            device=self._settings.device,
            point_s=self._settings.point_s,
        )


def _noted(job: Job, report: Point | Measuring) -> Job:
    if isinstance(report, Measuring):
        return replace(job, state="evaluating", reason="")
    fields = {name: getattr(report, name) for name in Progress.__struct_fields__}
    return replace(job, state="running", reason="", progress=Progress(**fields), checkpoint=report.checkpoint)


async def _stopped(work: "asyncio.Task[None]") -> None:
    work.cancel()
    await asyncio.gather(work, return_exceptions=True)
