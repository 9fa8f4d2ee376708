"""The loop itself: feedback to data set, data set to job, job to canary, canary to promotion or roll-back.

Every step first does what is harmless to repeat in other rooms, then commits its own state with its event; a crash in
between repeats the step.
"""

import asyncio
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace

from catena.kit.clock import World
from catena.kit.errors import Conflict, Invalid, Missing
from catena.learner.core.judging import domain_of, enough, rows_of, sample_of, scored
from catena.learner.core.ports import Executions, Library, Registry, Routing, Training
from catena.learner.core.records import (
    ENDED,
    Dataset,
    Executed,
    Feedback,
    JobResult,
    Promotion,
    PromotionState,
    Sample,
    Verdict,
)

EXAMPLES = 60


@dataclass(frozen=True, slots=True, kw_only=True)
class Rules:
    """When to act; see `LearnerConfig`."""

    threshold: int = 100
    capsule_threshold: int = 500
    min_corrections: float = 0.1
    good_score: float = 0.9
    verifiers: tuple[str, ...] = ("exact", "tests")
    capsule_score: float = 0.85


@dataclass(frozen=True, slots=True, kw_only=True)
class Capsule:
    """A finished piece of work; `tasks` as (prompt, context, output)."""

    id: str
    stack: tuple[str, ...]
    score: float
    tasks: tuple[tuple[str, str, str], ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Rooms:
    """The rooms that the learner asks."""

    executions: Executions
    training: Training
    routing: Routing
    registry: Registry


class Learner:
    """Decides what becomes of feedback, jobs and verdicts."""

    def __init__(self, library: Library, rooms: Rooms, rules: Rules, world: World) -> None:
        """Keep state in `library`, act through `rooms`."""
        self._library = library
        self._rooms = rooms
        self._rules = rules
        self._world = world
        self._ending = asyncio.Lock()

    async def record(self, tenant: str, feedback: Feedback, thumbs: int) -> str:
        """Commit feedback; its id. Raises Invalid."""
        stamped = replace(feedback, id=self._world.new_id(), created_s=self._world.clock.now())
        return await self._library.keep_feedback(tenant, scored(stamped, thumbs))

    async def learn_from(self, tenant: str, feedback_id: str) -> None:
        """Make a sample of feedback that teaches something; `learn_from_executions` does if it overtook its execution.

        That which names an execution that never was is thus never learnt from, and nobody waits for it.
        """
        await self._learn_from(tenant, await self._library.feedback(tenant, feedback_id))

    async def learn_from_executions(self, *several: Executed) -> None:
        """Make samples of executions, once they are recorded.

        Of the feedback that came before their record; where nobody said anything, if trusted verifiers judged it good.
        """
        heard = await self._library.feedback_on([(one.tenant, one.execution_id) for one in several])
        for one, told in zip(several, heard, strict=True):
            for feedback in told:
                await self._learn_from(one.tenant, feedback)
            good = [value for source, value in one.scores if source in self._rules.verifiers]
            if not told and good and min(good) > self._rules.good_score:
                praise = Feedback(id="", execution_id=one.execution_id, score=min(good))
                await self._learn_from(one.tenant, praise, source=f"execution {one.execution_id}")

    async def _learn_from(self, tenant: str, feedback: Feedback, source: str = "") -> None:
        praised = feedback.score is not None and feedback.score > self._rules.good_score
        if not feedback.correction and not praised:
            return
        execution = await self._rooms.executions.execution(feedback.execution_id)
        sample = sample_of(feedback, execution, self._rules.good_score) if execution else None
        if sample is not None:
            await self._collect(tenant, source or f"feedback {feedback.id}", [sample], self._rules.threshold)

    async def take(self, tenant: str, capsules: Sequence[Capsule]) -> tuple[int, int]:
        """Add capsules' tasks to the data set of their domain; how many were taken and refused."""
        taken = 0
        for capsule in capsules:
            samples = capsule_samples(capsule, self._rules.capsule_score)
            if samples:
                await self._collect(tenant, f"capsule {capsule.id}", samples, self._rules.capsule_threshold)
            taken += len(samples)
        return taken, sum(len(capsule.tasks) for capsule in capsules) - taken

    async def train(self, dataset_id: str) -> None:
        """Start the job of a frozen data set; then, should it have ended already, go on with its result."""
        dataset = await self._library.dataset(dataset_id)
        if dataset.state == "done":
            return
        rows = rows_of(await self._library.samples(dataset_id))
        try:
            job = await self._rooms.training.start(dataset, rows)
        except (Invalid, Missing) as error:
            await self._give_up(dataset_id, error.message)
            return
        await self._library.trained_by(dataset_id, job.job_id)
        if job.ended:
            await self.judge_job(job)

    async def judge_job(self, job: JobResult) -> None:
        """Start a canary for an accepted adapter, or end the promotion of another; jobs of others are left alone.

        While another canary runs in the domain, the promotion stays in training; the other's end brings it back.
        """
        promotion = await self._library.promotion(job_id=job.job_id)
        if promotion is not None and promotion.state == "training":
            if job.state == "succeeded":
                promotion = await self._try_out(promotion, job)
            else:
                state: PromotionState = "rejected" if job.state == "rejected" else "failed"
                ended = replace(promotion, state=state, reason=job.reason or job.state, metrics=dict(job.metrics))
                await self._end(promotion, ended)
        if promotion is not None and promotion.state == "canary":
            await self.judge_canary(await self._rooms.routing.verdict(promotion.experiment_id))

    async def _try_out(self, promotion: Promotion, job: JobResult) -> Promotion:
        samples = await self._library.samples(promotion.dataset_id)
        examples = [sample.prompt for sample in samples[:EXAMPLES]]
        specialist = await self._rooms.routing.introduce(promotion.domain, examples)
        candidate = replace(
            promotion,
            metrics=dict(job.metrics),
            updated_s=self._world.clock.now(),
            candidate=job.model,
            incumbent=specialist or job.model.partition("@")[0],
            previous=await self._rooms.registry.stable(job.model),
        )
        try:
            experiment = await self._rooms.routing.canary(candidate)
        except Conflict as error:
            if error.code != "experiment_running":
                raise
            return promotion
        reason = "accepted by its evaluation; tried on live traffic"
        trial = replace(candidate, state="canary", experiment_id=experiment, reason=reason)
        await self._library.move(promotion, trial)
        return trial

    async def judge_canary(self, verdict: Verdict) -> None:
        """Promote the candidate that won; withdraw any other; then let the next one of the domain try."""
        if verdict.state == "running":
            return
        async with self._ending:
            promotion = await self._library.promotion(experiment_id=verdict.experiment_id)
            if promotion is None:
                return
            if promotion.state == "canary":
                known = replace(promotion, metrics={**promotion.metrics, **verdict.metrics})
                if verdict.state == "won":
                    await self._promote(known, verdict.reason)
                else:
                    await self._withdraw(known, f"canary {verdict.state}: {verdict.reason}")
        await self._next_in(promotion.tenant, promotion.domain)

    async def promote(self, tenant: str, id_: str, reason: str) -> Promotion:
        """Promote a canary without its verdict. Raises Missing, Conflict (`not_in_canary`)."""
        async with self._ending:
            promotion = await self.get(tenant, id_)
            if promotion.state != "canary":
                raise Conflict(f"promotion {id_} is {promotion.state}, not in its canary", code="not_in_canary")
            await self._promote(promotion, reason or "promoted by hand")
        await self._rooms.routing.stop(promotion.experiment_id, "promoted by hand")
        return await self.get(tenant, id_)

    async def roll_back(self, tenant: str, id_: str, reason: str) -> Promotion:
        """Put the former version back. Raises Missing, Conflict (`nothing_to_roll_back`)."""
        async with self._ending:
            promotion = await self.get(tenant, id_)
            if promotion.state not in ("canary", "promoted"):
                raise Conflict(
                    f"promotion {id_} is {promotion.state}; only canaries and promoted ones are rolled back",
                    code="nothing_to_roll_back",
                )
            if promotion.state == "promoted":
                await self._reinstate(promotion)
            await self._withdraw(promotion, reason or "rolled back by hand")
        if promotion.state == "canary":
            await self._rooms.routing.stop(promotion.experiment_id, "rolled back by hand")
        return await self.get(tenant, id_)

    async def get(self, tenant: str, id_: str) -> Promotion:
        """One promotion of the tenant. Raises Missing."""
        promotion = await self._library.promotion(id_=id_)
        if promotion is None or promotion.tenant != tenant:
            raise Missing(f"no promotion {id_!r}; list them with ListPromotions", code="unknown_promotion")
        return promotion

    async def promotions(self, tenant: str, state: str) -> list[Promotion]:
        """The tenant's promotions, newest first; `state` empty: all."""
        return await self._library.promotions(tenant, state)

    async def datasets(self, tenant: str) -> list[Dataset]:
        """The tenant's data sets, newest first."""
        return await self._library.datasets(tenant)

    async def _collect(self, tenant: str, source: str, samples: Sequence[Sample], threshold: int) -> None:
        for dataset in await self._library.collect(tenant, source, samples, threshold):
            if enough(dataset.rows, dataset.corrections, dataset.threshold, self._rules.min_corrections):
                await self._freeze(dataset)

    async def _freeze(self, dataset: Dataset) -> None:
        now_s = self._world.clock.now()
        digest = hashlib.sha256(rows_of(await self._library.samples(dataset.id))).hexdigest()
        promotion = Promotion(
            id=self._world.new_id(),
            tenant=dataset.tenant,
            dataset_id=dataset.id,
            domain=dataset.task,
            reason=f"{dataset.rows} samples collected",
            created_s=now_s,
            updated_s=now_s,
        )
        await self._library.freeze(dataset, f"sha256:{digest}", promotion)

    async def _give_up(self, dataset_id: str, reason: str) -> None:
        promotion = await self._library.promotion(dataset_id=dataset_id)
        if promotion is not None and promotion.state == "training":
            await self._end(promotion, replace(promotion, state="failed", reason=reason))

    async def _next_in(self, tenant: str, domain: str) -> None:
        for waiting in reversed(await self._library.promotions(tenant, "training")):
            if waiting.domain == domain and waiting.job_id:
                job = await self._rooms.training.job(waiting.job_id)
                if job.ended:
                    await self.judge_job(job)

    async def _reinstate(self, promotion: Promotion) -> None:
        """Undo a promotion, unless a later one took its place."""
        registry = self._rooms.registry
        name, _, version = promotion.candidate.rpartition(":")
        if await registry.stable(promotion.candidate) != version:
            return
        kept = promotion.previous and await registry.lives(f"{name}:{promotion.previous}")
        former = promotion.incumbent if "@" in promotion.incumbent else ""
        await self._rooms.routing.appoint(promotion.domain, "" if former == name and not kept else former)
        await registry.set_stable(promotion.candidate, promotion.previous if kept else "")

    async def _promote(self, promotion: Promotion, reason: str) -> None:
        model, _, version = promotion.candidate.rpartition(":")
        await self._rooms.registry.set_stable(promotion.candidate, version)
        await self._rooms.routing.appoint(promotion.domain, model)
        await self._end(promotion, replace(promotion, state="promoted", reason=reason))

    async def _withdraw(self, promotion: Promotion, reason: str) -> None:
        await self._rooms.registry.withdraw(promotion.candidate, reason)
        await self._end(promotion, replace(promotion, state="rolled_back", reason=reason))

    async def _end(self, before: Promotion, after: Promotion) -> None:
        assert after.state in ENDED
        await self._library.move(before, replace(after, updated_s=self._world.clock.now()))


def capsule_samples(capsule: Capsule, above: float) -> list[Sample]:
    """What a capsule teaches: its complete tasks, if it was validated `above` that score."""
    if capsule.score <= above:
        return []
    domain = domain_of([text for task in capsule.tasks for text in task], capsule.stack)
    return [
        Sample(task=domain, prompt=prompt, context=context, completion=output, corrected=True)
        for prompt, context, output in capsule.tasks
        if prompt and output
    ]
