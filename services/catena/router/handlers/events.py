"""What the router hears on the bus: executions, feedback, news of adapters."""

from collections.abc import Awaitable, Callable, Mapping, Sequence

from catena.api.events.v1.events_pb2 import ExecutionCompleted, FeedbackRecorded
from catena.kit.event import Event
from catena.router.core.ports import Seen, Verdict
from catena.router.core.router import Router
from catena.router.core.verdicts import FEEDBACK, verdict_of
from catena.router.handlers.messages import observation_from

EXECUTED = "executor.execution.completed"
JUDGED = "learner.feedback.recorded"
ADAPTERS = "adapters.adapter.*"
RESIDENCY = "adapters.residency.changed"


def hearing(router: Router) -> Mapping[str, Callable[[Sequence[Event]], Awaitable[None]]]:
    """What to do with the events of each type that teaches; those that come together are taken in together."""

    async def executed(events: Sequence[Event]) -> None:
        await router.observe([seen_of(event) for event in events])

    async def judged(events: Sequence[Event]) -> None:
        for event in events:
            await judge(event)

    async def judge(event: Event) -> None:
        told = FeedbackRecorded.FromString(event.data)
        if not told.HasField("score") and not told.corrected:
            return
        score = told.score if told.HasField("score") else 0.0
        verdict = Verdict(
            execution_id=told.execution_id, score=min(max(score, 0.0), 1.0), source=FEEDBACK, task=told.task
        )
        await router.judge(event.tenant, verdict, event.id)

    return {EXECUTED: executed, JUDGED: judged}


def seen_of(event: Event) -> Seen:
    """The execution that an event tells of."""
    told = ExecutionCompleted.FromString(event.data)
    verdict = verdict_of(told.execution_id, [(score.value, score.source) for score in told.scores])
    return Seen(tenant=event.tenant, observation=observation_from(told), verdict=verdict, event_id=event.id)
