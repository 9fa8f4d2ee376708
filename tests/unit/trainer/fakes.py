"""The trainer's ports in memory."""

import asyncio
from contextlib import asynccontextmanager, suppress
from dataclasses import replace

from catena.kit.errors import Missing
from catena.trainer.core.estimate import BaseFacts
from catena.trainer.core.job import ClaimLost
from catena.trainer.core.order import Measuring, Point, Result

BASE = BaseFacts(
    name="tiny",
    folder="/nowhere",
    digest="d" * 64,
    architecture="LlamaForCausalLM",
    parameters=1000,
    item_bytes=4,
    hidden=8,
    layers=1,
    vocabulary=64,
    shape={"model.embed_tokens": (8, 64), "model.layers.0.q_proj": (8, 8), "model.layers.0.down_proj": (16, 8)},
)


class MemoryJobs:
    """`Jobs` in a dictionary, held by `holder`; others of the same `shelf` are other trainers."""

    def __init__(self, world, *, holder="me", lease_s=10.0, shelf=None):
        self.world, self.holder, self.lease_s = world, holder, lease_s
        self.shelf = {"jobs": {}, "rows": {}, "asked": {}, "held": {}} if shelf is None else shelf
        self.told = []
        self.news = asyncio.Event()

    async def create(self, job, material, request_id):
        key = (job.tenant, request_id)
        if request_id and key in self.shelf["asked"]:
            return self.shelf["jobs"][self.shelf["asked"][key]]
        self.shelf["asked"][key] = job.id
        self.shelf["rows"][job.id] = material
        return self._put(job, 0)

    async def get(self, tenant, job_id):
        job = self.shelf["jobs"].get(job_id)
        if job is None or job.tenant != tenant:
            raise Missing(job_id)
        return job

    async def find(self, tenant, state, limit, after):
        found = [j for j in self.shelf["jobs"].values() if tenant in ("", j.tenant) and state in ("", j.state)]
        found.sort(key=lambda job: (job.created_s, job.id), reverse=True)
        if after:
            found = found[[job.id for job in found].index(after) + 1 :]
        return found[:limit]

    async def material(self, job_id):
        return self.shelf["rows"][job_id]

    async def cancel(self, tenant, job_id):
        job = await self.get(tenant, job_id)
        if job.ended:
            return job
        if self._free(job):
            now_s = self.world.clock.now()
            job = replace(job, state="cancelled", reason="cancelled on request", finished_s=now_s)
            self.told.append("finished")
        return self._put(replace(job, cancelling=True))

    async def claim(self):
        waiting = sorted(self.shelf["jobs"].values(), key=lambda job: (job.created_s, job.id))
        for job in waiting:
            if not job.ended and self._free(job):
                self._hold(job.id)
                stalled = job.stalled + 1 if job.mark >= job.checkpoint else 0
                self.told.append("started")
                return self._put(replace(job, attempts=job.attempts + 1, stalled=stalled, mark=job.checkpoint))
        return None

    async def renew(self, job_id):
        if self.shelf["held"].get(job_id, ("", 0))[0] != self.holder:
            return "lost"
        self._hold(job_id)
        return "cancel" if self.shelf["jobs"][job_id].cancelling else "held"

    async def save(self, job, news="nothing"):
        if self.shelf["held"].get(job.id, ("", 0))[0] != self.holder:
            raise ClaimLost(job.id)
        if news != "nothing":
            self.told.append(news)
        if job.ended:
            del self.shelf["held"][job.id]
        return self._put(replace(job, cancelling=self.shelf["jobs"][job.id].cancelling))

    async def release(self, job_id, *, died=""):
        if self.shelf["held"].get(job_id, ("", 0))[0] == self.holder:
            del self.shelf["held"][job_id]
            job = self.shelf["jobs"][job_id]
            self._put(replace(job, reason=died) if died else replace(job, mark=-1))

    async def take_back(self):
        for job_id in [key for key, (holder, _) in self.shelf["held"].items() if holder == self.holder]:
            del self.shelf["held"][job_id]

    async def speed(self, base):
        done = [
            j.progress.tokens_per_s
            for j in self.shelf["jobs"].values()
            if j.spec.base == base and j.progress and j.state in ("succeeded", "rejected")
        ]
        return sum(done) / len(done) if done else None

    async def changed(self, timeout_s):
        with suppress(TimeoutError):
            await asyncio.wait_for(self.news.wait(), min(timeout_s, 0.01))
        self.news.clear()

    def _free(self, job):
        return self.shelf["held"].get(job.id, ("", 0))[1] < self.world.clock.now()

    def _hold(self, job_id):
        self.shelf["held"][job_id] = (self.holder, self.world.clock.now() + self.lease_s)

    def _put(self, job, step=1):
        job = replace(job, revision=job.revision + step)
        self.shelf["jobs"][job.id] = job
        self.news.set()
        return job


class ScriptedWorkers:
    """Each attempt plays the next script: reports, then an exit code; `None` waits until it is ended."""

    def __init__(self, *scripts):
        self.scripts = list(scripts)
        self.orders, self.running, self.kept, self.adapter_here = [], 0, None, True

    @asynccontextmanager
    async def run(self, order, attempt):
        self.orders.append((order, attempt))
        self.running += 1
        try:
            yield ScriptedWorker(self.scripts.pop(0))
        finally:
            self.running -= 1

    def holds(self, job_id):
        return self.adapter_here

    async def tidy(self, keep):
        self.kept = list(keep)


class ScriptedWorker:
    def __init__(self, script):
        self.script = script

    async def reports(self):
        for report in self.script:
            if report is None:
                await asyncio.Event().wait()
            if not isinstance(report, int):
                yield report

    async def ended(self):
        last = self.script[-1]
        return (last, "Killed") if isinstance(last, int) else (0, "")


class OneBase:
    async def facts(self, name):
        if name != "tiny":
            raise Missing(f"no base {name!r}")
        return BASE

    async def lengths(self, base, rows, training):
        return [10 for _ in rows]


class NoFiles:
    async def read(self, path, *, anywhere):
        raise Missing(path)


class FakeRegistry:
    """Refuses with each of `errors` in turn, then registers."""

    def __init__(self, *errors, free="1"):
        self.errors, self.free = list(errors), free
        self.sealed, self.registered = [], []

    async def next_version(self, job):
        return self.free

    async def seal(self, job, base):
        self.sealed.append(job.version)
        return f"digest {job.version}"

    async def register(self, job):
        if self.errors:
            self.free = str(int(self.free) + 1)
            raise self.errors.pop(0)
        self.registered.append((job.id, job.digest))
        return f"{job.spec.base}@{job.spec.adapter}:{job.version}"


def point(step, checkpoint=0):
    return Point(
        step=step, total_steps=10, loss=1.0, learning_rate=0.1, tokens_per_s=5.0, remaining_s=1.0, rows=step,
        checkpoint=checkpoint,
    )  # fmt: skip


def result(**metrics):
    return Result(metrics={"heldout_accuracy": 1.0, "base_heldout_accuracy": 0.0, "loss": 0.1} | metrics, steps=10,
                  rows=9, skipped=0, trainable_parameters=5)  # fmt: skip


DONE = (point(10, 10), Measuring(), result())
