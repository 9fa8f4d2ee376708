"""The events that move the loop on. Each may come twice: every step looks at its own state first."""

from collections.abc import Sequence
from dataclasses import dataclass

from catena.api.events.v1 import events_pb2
from catena.kit.event import Event
from catena.learner.core.learner import Learner
from catena.learner.core.records import Executed, JobResult, Verdict

COLLECTED, EXECUTED, DATASET, JOB, VERDICT = (
    "learner.feedback.recorded",
    "executor.execution.completed",
    "learner.dataset.ready",
    "trainer.job.finished",
    "router.experiment.decided",
)


@dataclass(frozen=True, slots=True)
class Hearing:
    """Events in, core calls out."""

    learner: Learner

    async def feedback(self, event: Event) -> None:
        """Its own feedback, once committed."""
        told = events_pb2.FeedbackRecorded.FromString(event.data)
        await self.learner.learn_from(event.tenant, told.feedback_id)

    async def executions(self, events: Sequence[Event]) -> None:
        """Executions that are recorded now, with what verifiers made of them."""
        await self.learner.learn_from_executions(*map(executed_of, events))

    async def step(self, event: Event) -> None:
        """A data set, a job or a verdict."""
        if event.type == DATASET:
            await self.learner.train(events_pb2.DatasetReady.FromString(event.data).dataset_id)
        elif event.type == JOB:
            await self.learner.judge_job(job_of(events_pb2.JobFinished.FromString(event.data)))
        else:
            await self.learner.judge_canary(verdict_of(events_pb2.ExperimentDecided.FromString(event.data)))


def executed_of(event: Event) -> Executed:
    """Which execution was recorded."""
    told = events_pb2.ExecutionCompleted.FromString(event.data)
    scores = tuple((score.source, score.value) for score in told.scores)
    return Executed(tenant=event.tenant, execution_id=told.execution_id, scores=scores)


def job_of(told: events_pb2.JobFinished) -> JobResult:
    """How a job ended."""
    return JobResult(
        job_id=told.job_id, state=told.state, model=told.model, reason=told.reason, metrics=dict(told.metrics)
    )


def verdict_of(told: events_pb2.ExperimentDecided) -> Verdict:
    """How a canary ended."""
    metrics = {
        "canary_p": told.p_quality,
        "canary_control": told.control_quality,
        "canary_candidate": told.treatment_quality,
        "canary_outcomes": float(told.outcomes),
    }
    return Verdict(experiment_id=told.experiment_id, state=told.state, reason=told.reason, metrics=metrics)
