"""What the router hears on the bus: executions, feedback, news of adapters."""

from collections.abc import Awaitable, Callable, Mapping

from catena.api.events.v1.events_pb2 import ExecutionCompleted, FeedbackRecorded
from catena.kit.event import Event
from catena.router.core.ports import Verdict
from catena.router.core.router import Router
from catena.router.core.verdicts import FEEDBACK, verdict_of
from catena.router.handlers.messages import observation_from

EXECUTED = "executor.execution.completed"
JUDGED = "learner.feedback.recorded"
ADAPTERS = "adapters.adapter.*"


def hearing(router: Router) -> Mapping[str, Callable[[Event], Awaitable[None]]]:
    """What to do with each type of event that teaches."""

    async def executed(event: Event) -> None:
        told = ExecutionCompleted.FromString(event.data)
        verdict = verdict_of(told.execution_id, [(score.value, score.source) for score in told.scores])
        await router.observe(event.tenant, observation_from(told), verdict, event.id)

    async def judged(event: Event) -> None:
        told = FeedbackRecorded.FromString(event.data)
        if not told.HasField("score") and not told.corrected:
            return
        score = told.score if told.HasField("score") else 0.0
        verdict = Verdict(
            execution_id=told.execution_id, score=min(max(score, 0.0), 1.0), source=FEEDBACK, task=told.task
        )
        await router.judge(event.tenant, verdict, event.id)

    return {EXECUTED: executed, JUDGED: judged}
